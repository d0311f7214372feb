"""WiSE-FT: after training, a point on the line between the pretrained and the fine-tuned weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration


@dataclass(frozen=True)
class WiseFTParams:
    """alpha: 0 is the base model, 1 is Full FT."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must be between 0 and 1.")


class WiseFT(Method):
    """WiSE-FT: w = w* + alpha (w_ft - w*); w* at alpha 0 and w_ft at alpha 1, bit for bit.

    Granularity: whole model. Tensors: all trained. Acts: once, on a finished Full FT checkpoint.
    Extra memory: 0 |M| in training; at the end all of w*, w_ft and the new weights.
    Source: Wortsman et al., CVPR 2022 (weight-space ensemble); alpha 0.5 is its recommendation.
    Use: the control for every claim about a trade-off. Full FT and one number give a whole curve between forgetting and
    learning (method=wise_ft method.alpha=0.1,0.2,0.3). A method is worth using only if it lies above that curve.
    Disagreements: none. Variants: none.
    """

    Params = WiseFTParams
    posthoc = True

    def finish(
        self,
        finetuned: dict[str, Tensor],
        pretrained: dict[str, Tensor],
        calibration: Calibration | None = None,
    ) -> dict[str, Tensor]:
        return {
            name: torch.lerp(pretrained[name].float().to(weight.device), weight.float(), self.params.alpha)
            for name, weight in finetuned.items()
        }
