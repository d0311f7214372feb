from dataclasses import dataclass

from methods.base import Method
from methods.threshold import largest


@dataclass(frozen=True)
class TopKGradientParams:
    share: float = 0.1


class TopKGradient(Method):
    """At every step, give the optimizer only the largest gradients of each tensor."""

    Params = TopKGradientParams

    def before_step(self, shards):
        limit = largest(shards, lambda shard: shard.grad, lambda size: int(self.params.share * size))
        for shard in shards:
            shard.grad[shard.grad.abs() <= limit[shard.name]] = 0.0
