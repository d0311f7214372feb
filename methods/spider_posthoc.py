"""SPIDER's mask, applied once to a finished Full FT checkpoint: the control for masking at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods import ops
from methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration


class SpiderPosthoc(Method):
    """spider_posthoc: I = sigmoid(z(|w*|)), G = sigmoid(z(|w_ft - w*|)), M by Eqs. 7 and 8, then
    w = w_ft M + w* (1 - M), once.

    Granularity: element; statistics per tensor. Tensors: all trained. Acts: once, on a finished Full FT checkpoint.
    Extra memory: 0 |M| in training; at the end all of w*, w_ft and the new weights, and one tensor's mask.
    Source: ours, from SPIDER's equations. A checkpoint has no gradients, so the total change replaces the accumulated
    gradient. Under plain gradient descent at a constant rate, w_ft - w* is a multiple of the sum of gradients, and the
    scale cancels in z (this gives spider_code's mask); AdamW divides each element by its own scale.
    Disagreements: the paper masks at every step, so an element with M < 1 loses part of every update and moves at most
    about M / (1 - M) steps; here it loses 1 - M of its total change once. Elements with M = 1 keep Full FT's value.
    Variants: none; this is itself a variant of SPIDER.
    Decided as in SPIDER: a tensor without a change is w*; w* = 0 keeps Full FT's weights; constant w* ranks 1/2.
    """

    posthoc = True

    def finish(
        self,
        finetuned: dict[str, Tensor],
        pretrained: dict[str, Tensor],
        calibration: Calibration | None = None,
    ) -> dict[str, Tensor]:
        result = {}
        for name, weight in finetuned.items():
            before, after = pretrained[name].float().to(weight.device), weight.float()
            mask = ops.importance_mask(ops.whole_rank(after - before), ops.whole_rank(before))
            mean = ops.mask_mean(ops.mask_sums(mask.flatten()))
            result[name] = ops.blend(before, after, ops.rescale(mask, mean))
        return result
