"""L2-Reg: keep the weights close to the pretrained ones with a squared penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.penalty import Penalty, PenaltyParams

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class L2RegParams(PenaltyParams):
    """See `PenaltyParams`."""

    strength: float = 1e-3


class L2Reg(Penalty):
    """L2-Reg: loss + lambda * sum_i (w_i - w*_i)^2, so g <- g + 2 lambda (w - w*).

    Granularity: element. Tensors: all trainable. Acts: `before_step`, on the clipped gradient (the same in
    every engine; the penalty needs no graph). Extra memory: 1 |M| (w*; half if 16 bits hold it exactly); two_step
    needs 1 |M| more during a step.
    Source: SPIDER paper, App. B, lambda 1e-3 (Kirkpatrick et al., PNAS 2017, with equal importances).
    Disagreements: EWC writes lambda/2. NRCA, the authors' sibling repository, averages within each tensor and then over
    tensors, so on LLaVA-1.5-7B's matrices its penalty is 1e-9 to 3e-9 times ours. It also runs two optimizer steps per
    batch. The paper's L2-Reg row probably comes from that code. We take the sum, because only then does lambda matter.
    Variants: l2_reg_mean: lambda * mean_t mean_i (w - w*)^2, as in NRCA. l2_reg_two_step: the same penalty, with an
    AdamW step of its own before the task's step. Its gradient is nearly 0, so this step repeats the previous direction
    and the weights move about sqrt(2) times as far. engine=single only. (NRCA computes the task's gradient with
    activations from before the extra step and weights from after it; here both are from before. NRCA also rounds w* to
    bf16.) l2_reg_scaled: lambda * 425.7 M / |M|, so that the penalty of a smaller model weighs as much against the loss
    as that of LLaVA-1.5-7B.
    """

    Params = L2RegParams

    def add(self, grad: Tensor, change: Tensor, factor: float) -> None:
        grad.add_(change, alpha=2 * factor)
