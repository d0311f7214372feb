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
    """keep: share of elements that keep their change (at random: the probability of keeping it); choose: how these
    elements are chosen; rescale: divide the kept change by `keep`; count: how many of the largest changes are kept:
    "exact" keeps n - int((1 - keep) n); "released" also drops every change equal to the largest dropped one, as the
    released code does."""

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
    Extra memory: 0 |M| in training; at the end all of w*, w_ft and the new weights, and one tensor's mask.
    Randomness: one CPU generator per (seed, tensor name); no tensor's draw depends on another tensor.
    Source: Yu et al., ICML 2024; SPIDER's Table 2 gives 10 % as the kept share.
    Disagreements: by default, MergeLM's command line drops 10 % and does not rescale. It draws from the global
    generator in tensor order.
    Variants: dare_drop_only: m (w_ft - w*), without the division (DARE's own ablation). dare_magnitude: trims by
    magnitude, without the division (MergeLM's mask_strategy "magnitude"). In each tensor, m = 0 for the
    int(n (1 - keep)) smallest |w_ft - w*| and for every change that ties with the largest of these; a tensor too small
    to drop anything keeps its change. Such ties are rare in float32. In a 16-bit checkpoint the changes take few
    values, so far less than `keep` may remain; count=exact keeps exactly that share, and of equal changes the first.
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
