"""Full fine-tuning: the baseline that changes every trainable tensor."""

from __future__ import annotations

from methods.base import Method


class FullFT(Method):
    """Full FT: w <- AdamW(w, g), nothing added.

    Granularity: none. Tensors: all trainable (last L decoder layers and the projector). Acts: never.
    Extra memory: 0 |M|.
    Source: SPIDER paper, App. B (De Boer et al., 2005).
    Disagreements: none in the method. The trainer computes the loss and clips gradients: at 1.0 for every method here;
    the released LLaVA configurations probably ran without clipping.
    Variants: none.
    """

    uses_pretrained = False
