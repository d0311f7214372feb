"""Grafting, as the SPIDER paper uses it: an L1 penalty on the change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.penalty import Penalty, PenaltyParams

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GraftingParams(PenaltyParams):
    """See `PenaltyParams`."""

    strength: float = 1e-6


class Grafting(Penalty):
    """Grafting: loss + lambda * sum_i |w_i - w*_i|, so g <- g + lambda sign(w - w*), with sign(0) = 0.

    Granularity: element. Tensors: all trainable. Acts: `before_step`, on the clipped gradient.
    Extra memory: 1 |M| (w*; half if 16 bits hold it exactly); two_step needs 1 |M| more during a step.
    Source: SPIDER paper, App. B, lambda 1e-6 ("could be regarded as L1 regularization"). The same sum is
    the l1_reg option of the Grafting code (Panigrahi et al., ICML 2023).
    Disagreements: Grafting's main algorithm learns a sparse binary mask after training; the paper does not
    use it. The authors' sibling repository NRCA takes a mean of tensor means and two optimizer steps.
    Variants: grafting_mean, grafting_two_step (engine=single only), grafting_scaled: like those of L2-Reg.
    grafting_mask: the main algorithm, a method of its own in methods/grafting_mask.py.
    """

    Params = GraftingParams

    def add(self, grad: Tensor, change: Tensor, factor: float) -> None:
        grad.add_(change.sign_(), alpha=factor)
