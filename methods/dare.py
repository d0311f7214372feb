"""DARE: after training, drop most of the change at random and rescale the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from methods.base import Method
from methods.ops import drop_and_rescale, generator, largest_changes

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration


@dataclass(frozen=True)
class DareParams:
    """keep: share of the elements that keep their change (its probability, if chosen at random); choose: how they
    are chosen; rescale: divide the kept change by `keep`; count: of the largest changes, as many as the released code
    keeps, which drops all that equal the largest dropped one, or exactly n - int((1 - keep) n)."""

    keep: float = 0.1
    choose: Literal["random", "magnitude"] = "random"
    rescale: bool = True
    count: Literal["released", "exact"] = "released"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} must be above 0 and at most 1.")


class Dare(Method):
    """DARE: w = w* + m (w_ft - w*) / keep with m ~ Bernoulli(keep), so that E[w] = w_ft.

    Granularity: element, independent. Tensors: all trained (also norms, biases and the projector).
    Acts: once, on a finished Full FT checkpoint, in float32 (0.9 is not exact in bf16).
    Extra memory: 0 |M| in training; at the end w*, the fine-tuned and the new weights whole, one tensor's mask.
    Randomness: one CPU generator per (seed, tensor name); no tensor's draw depends on another's.
    Source: Yu et al., ICML 2024; SPIDER's Table 2 gives 10 % as the kept share.
    Disagreements: the MergeLM command line drops 10 % and does not rescale by default, and draws from the
    global stream in tensor order.
    Variants: dare_drop_only: m (w_ft - w*), without the division (DARE's own ablation). dare_magnitude: magnitude
    trim, m = 1 for all but the int(n (1 - keep)) smallest |w_ft - w*| of each tensor and those equal to the largest
    of these, no division (MergeLM's mask_strategy "magnitude"; a tensor too small to drop anything keeps its change).
    In float32 such ties are rare. The changes of a 16-bit checkpoint take few values, so there it may keep much less
    than `keep`; count=exact keeps just that, of equal changes the first.
    """

    Params = DareParams
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
            if self.params.choose == "random":
                kept = torch.rand(weight.shape, generator=generator(self.seed, name)) < self.params.keep
            else:
                kept = largest_changes(before, after, self.params.keep, self.params.count)
            divisor = self.params.keep if self.params.rescale else 1.0
            result[name] = drop_and_rescale(before, after, kept.to(weight.device), divisor)
        return result
