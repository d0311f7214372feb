"""Intruder dimensions: after training, shrink the directions of a matrix that the pretrained matrix does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration


@dataclass(frozen=True)
class IntruderParams:
    """top: how many of the largest singular directions of a tuned matrix may be intruders; threshold: a direction is
    one if its |cosine| with every pretrained direction is below this; scale: what an intruder is multiplied by."""

    top: int = 10
    threshold: float = 0.5
    scale: float = 0.75

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top={self.top} must be at least 1.")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must be between 0 and 1.")
        if not 0 <= self.scale <= 1:
            raise ValueError(f"scale={self.scale} must be between 0 and 1.")


def reduced(pretrained: Tensor, finetuned: Tensor, params: IntruderParams) -> Tensor:
    """Return a tuned matrix whose intruder dimensions are scaled; see `Intruder`.

    Args:
        pretrained, finetuned: (d_out, d_in), float32 on one device.
        params: see `IntruderParams`.

    Returns:
        float32 (d_out, d_in); `finetuned` itself if it has no intruder.
    """
    left, values, right = torch.linalg.svd(finetuned, full_matrices=False)
    left, values, right = left[:, : params.top], values[: params.top], right[: params.top]
    before = torch.linalg.svd(pretrained, full_matrices=False).U
    intruders = (left.T @ before).abs().amax(1) < params.threshold
    if not bool(intruders.any()):
        return finetuned
    removed = (left[:, intruders] * values[intruders]) @ right[intruders]
    return finetuned - (1 - params.scale) * removed


class Intruder(Method):
    """Intruder reduction: w = w_ft - (1 - scale) sum_i s_i u_i v_i^T over the intruders among the `top` largest
    singular triples (s_i, u_i, v_i) of w_ft: those with max_j |u_i . u*_j| < threshold, u*_j all left singular vectors
    of w*.

    Granularity: singular direction. Tensors: all trained matrices; vectors stay fine-tuned. Acts: once, on a finished
    Full FT checkpoint, in float32. Extra memory: 0 |M| in training; at the end all of w*, w_ft and the new weights, and
    the singular vectors of one matrix and of its base.
    Source: Shuttleworth et al., arXiv 2410.21228; numbers and arithmetic as in peft's reduce_intruder_dimension, which
    acts on W + B A of a LoRA adapter.
    Disagreements: peft's text calls lambda the share that is subtracted; its code multiplies intruders by lambda, as
    here. peft then cuts the result to the adapter's rank; a Full FT change has none.
    Variants: intruder alone. Its authors report that full fine-tuning makes few intruders, so expect little here.
    """

    Params = IntruderParams
    posthoc = True

    def finish(
        self,
        finetuned: dict[str, Tensor],
        pretrained: dict[str, Tensor],
        calibration: Calibration | None = None,
    ) -> dict[str, Tensor]:
        result = {}
        for name, weight in finetuned.items():
            after = weight.float()
            if after.ndim == 2:
                after = reduced(pretrained[name].float().to(weight.device), after, self.params)
            result[name] = after.clone()
        return result
