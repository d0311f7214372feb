"""WiSE-FT with an alpha for each tensor: after training, learn how much of each tensor's change to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from benchmark.core.errors import UserError
from methods.posthoc import ContrastMethod

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration
    from benchmark.training.contrast import Contrast


@dataclass(frozen=True)
class WiseFTTensorsParams:
    """share: weight of the loss on the target's samples, 1 - share of that on generic data; steps: of gradient descent
    on the scores; rate: size of the first step (root mean square over tensors); samples: training samples of the
    target, and samples of the generic data."""

    share: float = 0.5
    steps: int = 10
    rate: float = 0.5
    samples: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must be between 0 and 1.")
        if self.steps < 1 or self.samples < 1:
            raise ValueError(f"steps={self.steps} and samples={self.samples} must be at least 1.")
        if not self.rate > 0:
            raise ValueError(f"rate={self.rate} must be above 0.")


class WiseFTTensors(ContrastMethod):
    """wise_ft_tensors: w_t = w*_t + s(a_t) (w_ft,t - w*_t) for each tensor t, where s is the logistic function and a
    minimises share L_target + (1 - share) L_generic by a_t <- a_t - eta dL/da_t from a = 0, so from alpha 1/2.

    Granularity: tensor. Tensors: all trained. Acts: once, on a finished Full FT checkpoint; `steps` forward and
    backward passes over `samples` training samples of the target and as many generic ones. No test data are read.
    Extra memory: 0 |M| in training; at the end about 6 |M| (w*, w_ft, their difference, the merged weights and two
    gradients) and the activations of a pass.
    Source: AlphaWiSE's rule: alpha_t = s(a_t), fitted on a few exemplars from alpha 1/2.
    Disagreements: AlphaWiSE fits on exemplars of the source task. The source sets must not be seen here, so generic
    descriptions take their place, as in ewc, and the target's loss is in the objective; otherwise alpha would go to 0.
    The steps are ours, as in grafting_mask: eta = rate / rms(dL/da) at the first step, and the same eta later.
    Variants: none; this is itself a variant of wise_ft. Nothing is random.
    Decided: a tensor without a change keeps alpha 1/2, which changes nothing; a loss without a gradient gives wise_ft.
    """

    Params = WiseFTTensorsParams

    def finish(
        self, finetuned: dict[str, Tensor], pretrained: dict[str, Tensor], calibration: Calibration | None
    ) -> dict[str, Tensor]:
        contrast = cast("Contrast", calibration)
        assert contrast is not None and contrast.generic is not None
        params = self.params
        after = {name: weight.float() for name, weight in finetuned.items()}
        before = {name: pretrained[name].float().to(weight.device) for name, weight in after.items()}
        scores, rate = dict.fromkeys(after, 0.0), None
        for _ in range(params.steps):
            merged = _merged(before, after, scores)
            target, generic = contrast.gradient(merged), contrast.generic.gradient(merged)
            slopes = {}
            for name, score in scores.items():
                gradient = params.share * target[name].double() + (1 - params.share) * generic[name].double()
                along = float((gradient.to(after[name].device) * (after[name] - before[name])).sum())
                alpha = _logistic(score)
                slopes[name] = along * alpha * (1 - alpha)
            size = math.sqrt(sum(slope * slope for slope in slopes.values()) / len(slopes))
            if not math.isfinite(size):
                raise UserError(
                    "wise_ft_tensors: the gradient of the loss on the calibration samples is not finite, so no alpha "
                    "can be learned. Look at the Full FT cell's train.jsonl; a lower train.learning_rate may help."
                )
            if rate is None:
                rate = params.rate / size if size else 0.0
            scores = {name: score - rate * slopes[name] for name, score in scores.items()}
        return _merged(before, after, scores)


def _logistic(score: float) -> float:
    return 0.5 * (1 + math.tanh(score / 2))  # does not overflow


def _merged(before: dict[str, Tensor], after: dict[str, Tensor], scores: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.lerp(before[name], after[name], _logistic(score)) for name, score in scores.items()}
