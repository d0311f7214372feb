"""Grafting, as the SPIDER paper uses it: an L1 penalty on the change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.base import Method

if TYPE_CHECKING:
    from benchmark.shards import Shards


@dataclass(frozen=True)
class GraftingParams:
    """strength: lambda, the weight of the penalty's sum over all trainable elements."""

    strength: float = 1e-6

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength={self.strength} must be at least 0.")


class Grafting(Method):
    """Grafting: loss + lambda * sum_i |w_i - w*_i|, so g <- g + lambda sign(w - w*), with sign(0) = 0.

    Granularity: element. Tensors: all trainable. Acts: `before_step`, on the clipped gradient.
    Extra memory: 1 |M| (w*).
    Source: SPIDER paper, App. B, lambda 1e-6 ("could be regarded as L1 regularization"); the term is the
    l1_reg option of the Grafting code (Panigrahi et al., ICML 2023), a sum there too.
    Disagreements: Grafting's main algorithm learns a sparse binary mask after training; the paper does not
    use it. The authors' sibling repository NRCA takes a mean of tensor means (see L2-Reg).
    """

    Params = GraftingParams

    def before_step(self, shards: Shards) -> None:
        for shard in shards:
            shard.grad.add_((shard.weight - shard.pretrained).sign_(), alpha=self.params.strength)
