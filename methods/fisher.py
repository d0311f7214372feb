"""Fisher merging: after training, weigh base and fine-tuned weights by how much each model depends on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from benchmark.core.errors import UserError
from methods.posthoc import ContrastMethod

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration
    from benchmark.training.contrast import Contrast

FLOOR = 1e-6  # added to both importances, so that a weight on which neither model depends gets alpha


@dataclass(frozen=True)
class FisherParams:
    """alpha: weight of the fine-tuned model's importances, 1 - alpha of the base's (0 is the base model, 1 is Full FT);
    samples: training samples of the target, and samples of the generic data, that they are measured on."""

    alpha: float = 0.5
    samples: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must be between 0 and 1.")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1.")


def importances(gradients: Iterable[dict[str, Tensor]], model: str) -> dict[str, Tensor]:
    """Return the diagonal of the empirical Fisher information, divided by its root mean square over all tensors.

    Args:
        gradients: of the loss of one sample after another; name -> float32 tensor.
        model: words for the model that they belong to.

    Raises:
        UserError: all are zero, or some are not finite.
    """
    squares: dict[str, Tensor] = {}
    for sample in gradients:
        for name, gradient in sample.items():
            squares[name] = squares[name] + gradient.square() if name in squares else gradient.square()
    size = sum(values.numel() for values in squares.values())
    total = sum(float(values.double().square().sum()) for values in squares.values())
    if not 0 < total < torch.inf:
        raise UserError(
            f"fisher cannot tell which weights matter to {model}: the gradients of its loss are "
            f"{'zero' if total == 0 else 'not finite'}. Give other samples (generic=), or use method=wise_ft."
        )
    scale = (total / size) ** 0.5
    return {name: values / scale for name, values in squares.items()}


class Fisher(ContrastMethod):
    """Fisher merging: w = (alpha F w_ft + (1 - alpha) F* w*) / (alpha F + (1 - alpha) F*), where F is the diagonal of
    the Fisher information of the fine-tuned model on training samples of the target and F* that of the base model on
    generic data, each divided by its root mean square and raised by 1e-6; w* at alpha 0 and w_ft at alpha 1.

    Granularity: element; the scale of each Fisher covers all tensors together. Tensors: all trained.
    Acts: once, on a finished Full FT checkpoint; a forward and backward pass for each of 2 x `samples` samples.
    Extra memory: 0 |M| in training; at the end about 6 |M| (w*, w_ft, both Fishers, a gradient, the new weights) and
    the activations of a pass.
    Source: Matena and Raffel, NeurIPS 2022, Eq. 4. The division by the norm is MergeLM's normalize_fisher_weight (the
    L2 norm over all tensors; the root mean square is the same ratio).
    Disagreements: the paper draws labels from each model; here the answers of the samples are the labels (the empirical
    Fisher, as MergeLM takes for a regression). The paper measures a model on its own task's data; the base model's are
    the source sets, which must not be seen, so generic descriptions take their place, as in ewc. MergeLM adds 1e-6
    before it divides, so a large model whose Fisher is far below that is only averaged; here it is relative.
    Variants: fisher alone.
    """

    Params = FisherParams
    single_samples = True

    def finish(
        self, finetuned: dict[str, Tensor], pretrained: dict[str, Tensor], calibration: Calibration | None
    ) -> dict[str, Tensor]:
        contrast = cast("Contrast", calibration)
        assert contrast is not None and contrast.generic is not None
        ours = importances(contrast.sample_gradients(finetuned), "the fine-tuned model")
        theirs = importances(contrast.generic.sample_gradients(pretrained), "the base model")
        result = {}
        for name, weight in finetuned.items():
            new = self.params.alpha * (ours[name].to(weight.device) + FLOOR)
            old = (1 - self.params.alpha) * (theirs[name].to(weight.device) + FLOOR)
            result[name] = torch.lerp(pretrained[name].float().to(weight.device), weight.float(), new / (new + old))
        return result
