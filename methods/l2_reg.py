"""L2-Reg: keep the weights near the pretrained ones with a squared penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.base import Method

if TYPE_CHECKING:
    from benchmark.shards import Shards


@dataclass(frozen=True)
class L2RegParams:
    """strength: lambda, the weight of the penalty's sum over all trainable elements."""

    strength: float = 1e-3

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength={self.strength} must be at least 0.")


class L2Reg(Method):
    """L2-Reg: loss + lambda * sum_i (w_i - w*_i)^2, so g <- g + 2 lambda (w - w*).

    Granularity: element. Tensors: all trainable. Acts: `before_step`, on the clipped gradient (the same in
    every engine; the penalty needs no graph). Extra memory: 1 |M| (w*).
    Source: SPIDER paper, App. B, lambda 1e-3 (Kirkpatrick et al., PNAS 2017, with equal importances).
    Disagreements: EWC writes lambda/2. The authors' sibling repository NRCA averages inside and over
    tensors, which makes the penalty about 1e-10 of this one, and runs two optimizer steps per batch; the
    paper's L2-Reg row is likely to come from that code. The sum is the reading under which lambda matters.
    """

    Params = L2RegParams

    def before_step(self, shards: Shards) -> None:
        for shard in shards:
            shard.grad.add_(shard.weight - shard.pretrained, alpha=2 * self.params.strength)
