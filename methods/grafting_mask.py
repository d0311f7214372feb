"""Grafting's own algorithm: after training, learn which few weights to take from the fine-tuned model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from benchmark.core.errors import UserError
from methods.base import Method
from methods.ops import exact, first_largest

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration


@dataclass(frozen=True)
class GraftingMaskParams:
    """share: largest share of elements that are grafted; steps: number of gradient descent steps on the mask's scores;
    rate: size of the first step (root mean square); bias: magnitude of the initial scores, which puts gamma near 0 or
    1; samples: number of training samples of the target whose mean loss is minimised; count: size of the base patch:
    "exact" takes int(share n) elements; "released" takes those above the int(share n)-th largest, as the released code
    does, which is one element less, and fewer still with ties."""

    share: float = 0.1
    steps: int = 10
    rate: float = 0.3
    bias: float = 10.0
    samples: int = 128
    count: Literal["exact", "released"] = "exact"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1.")
        if self.steps < 1 or self.samples < 1:
            raise ValueError(f"steps={self.steps} and samples={self.samples} must be at least 1.")
        if not (self.rate > 0 and 0 < self.bias <= 15):
            raise ValueError(
                f"rate={self.rate} must be above 0, and bias={self.bias} above 0 and at most 15: in float32, gamma "
                "hardly differs from 0 and 1 beyond it, so that nothing would be learned."
            )


class GraftingMask(Method):
    """grafting_mask: w = w_ft where M = 1, else w*, with M = [gamma > 1/2] and gamma = sigmoid(z) learned by
    z <- z - eta dL/dz of the task's loss L(w* + gamma (w_ft - w*)); z starts at +bias on the largest |w_ft - w*| of
    the whole model (the base patch) and at -bias elsewhere.

    Granularity: element; the base patch and the bound on the share cover all tensors together. Tensors: all trained.
    Acts: once, on a finished Full FT checkpoint; `steps` forward and backward passes over `samples` training samples.
    Extra memory: 0 |M| in training; at the end about 6 |M| (w*, w_ft, their difference, z, the grafted weights, their
    gradient) and the activations of a forward pass.
    Source: Panigrahi et al., ICML 2023 (Task-Specific Skill Localization), Sec. 2, and the released code's
    src/graft_trainer.py: gamma = gamma_0 + (1 - 2 gamma_0) sigmoid(S - 10), whose descent on S equals ours on z.
    Disagreements: the released code uses a learning rate of 1e7, which suits the scale of one model and loss. Here the
    first step has a given size, eta = rate / rms(dL/dz), and later steps use the same eta. The released code draws S
    uniformly from [0, 1); here nothing is random. It keeps the mask that scores best on validation data; we keep the
    last one. It bounds only the base patch's share (1e-7 to 1e-5 of the weights); we bound the result's, at 10 % as in
    DARE and Tailor: if more elements have gamma > 1/2, those with the largest z are grafted.
    Variants: none; this is itself a variant of Grafting.
    Decided: of elements that tie at the limit of a share, the first are taken (count=released: none); a loss without a
    gradient returns the base patch; a gradient that is not finite fails the cell.
    """

    Params = GraftingMaskParams
    posthoc = True

    def finish(
        self, finetuned: dict[str, Tensor], pretrained: dict[str, Tensor], calibration: Calibration | None
    ) -> dict[str, Tensor]:
        assert calibration is not None
        params = self.params
        after = {name: weight.float() for name, weight in finetuned.items()}
        before = {name: pretrained[name].float().to(weight.device) for name, weight in after.items()}
        change = {name: weight - before[name] for name, weight in after.items()}
        patch = top_share(params.share, {name: values.abs() for name, values in change.items()}, params.count)
        scores = {name: torch.where(chosen, params.bias, -params.bias) for name, chosen in patch.items()}
        rate = None
        for _ in range(params.steps):
            grafted = {name: torch.lerp(before[name], after[name], z.sigmoid()) for name, z in scores.items()}
            slopes = calibration.gradient(grafted)
            for name, z in scores.items():
                gamma = z.sigmoid()
                slopes[name] = slopes[name].to(z).mul_(change[name]).mul_(gamma * (1 - gamma))
            # For mypy a sum may be its start, the int 0. There is at least one tensor.
            size = sum(slope.double().square().sum() for slope in slopes.values()).sqrt().item()  # type: ignore[union-attr]
            if not math.isfinite(size):
                raise UserError(
                    "grafting_mask: the gradient of the loss on the calibration samples is not finite, so no mask can "
                    "be learned. Look at the Full FT cell's train.jsonl; a lower train.learning_rate may help."
                )
            if rate is None:
                rate = params.rate * sum(z.numel() for z in scores.values()) ** 0.5 / size if size else 0.0
            for name, z in scores.items():
                z.sub_(slopes[name], alpha=rate)
        chosen = top_share(params.share, scores)
        # z > 0 where gamma > 1/2.
        return {name: torch.where(chosen[name] & (z > 0), after[name], before[name]) for name, z in scores.items()}


def top_share(
    share: float, values: dict[str, Tensor], count: Literal["exact", "released"] = "exact"
) -> dict[str, Tensor]:
    """Choose the largest elements of all tensors together.

    Args:
        share: of all elements, in (0, 1].
        values: tensors of any shapes.
        count: "exact": k = int(share n) elements, the first of equal ones; "released": those above the k-th largest.

    Returns:
        bool tensors with the same names and shapes.
    """
    flat = torch.cat([tensor.flatten() for tensor in values.values()])
    size = int(exact(share) * flat.numel())
    if count == "released" and size:
        mask = flat > flat.kthvalue(flat.numel() - size + 1).values
    else:
        mask = first_largest(flat, size)
    pieces = mask.split([tensor.numel() for tensor in values.values()])
    return {name: piece.view_as(values[name]) for name, piece in zip(values, pieces, strict=True)}
