"""Full fine-tuning: the baseline that changes every trainable tensor."""

from __future__ import annotations

from methods.base import Method


class FullFT(Method):
    """Full FT: w <- AdamW(w, g), nothing added.

    Granularity: none. Tensors: all trainable (last L decoder layers and the projector). Acts: never.
    Extra memory: 0 |M|.
    Source: SPIDER paper, App. B (De Boer et al., 2005).
    Disagreements: the loss and gradient clipping are the trainer's matter, see DESIGN.md; the released
    LLaVA configurations probably ran without clipping, ours clips at 1.0 for every method.
    Variants: none.
    """

    uses_pretrained = False
