"""DARE: after training, drop most of the change at random and rescale the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from methods.base import Method
from methods.ops import drop_and_rescale, generator

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.calibration import Calibration


@dataclass(frozen=True)
class DareParams:
    """keep: probability with which an element keeps its (rescaled) change."""

    keep: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} must be above 0 and at most 1.")


class Dare(Method):
    """DARE: w = w* + m (w_ft - w*) / keep with m ~ Bernoulli(keep), so that E[w] = w_ft.

    Granularity: element, independent. Tensors: all trained (also norms, biases and the projector).
    Acts: once, on a finished Full FT checkpoint, in float32 (0.9 is not exact in bf16).
    Extra memory: 0 |M| in training; w* and one mask, tensor by tensor, at the end.
    Randomness: one CPU generator per (seed, tensor name); no tensor's draw depends on another's.
    Source: Yu et al., ICML 2024; SPIDER's Table 2 gives 10 % as the kept share.
    Disagreements: the MergeLM command line drops 10 % and does not rescale by default, and draws from the
    global stream in tensor order.
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
            drawn = torch.rand(weight.shape, generator=generator(self.seed, name)) < self.params.keep
            result[name] = drop_and_rescale(
                pretrained[name].float().to(weight.device),
                weight.float(),
                drawn.to(weight.device),
                self.params.keep,
            )
        return result
