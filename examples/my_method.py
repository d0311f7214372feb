from dataclasses import dataclass

import torch

from methods.base import Method
from methods.ops import exact
from methods.threshold import largest


@dataclass(frozen=True)
class TopKGradientParams:
    share: float = 0.1
    momentum: float = 0.9


class TopKGradient(Method):
    """At every step, give the optimizer only the gradients whose running average is among each tensor's largest."""

    Params = TopKGradientParams

    def start(self, shards):
        self.average = {shard.name: torch.zeros_like(shard.weight) for shard in shards}

    def before_step(self, shards):
        for shard in shards:
            self.average[shard.name].lerp_(shard.grad, 1 - self.params.momentum)
        share = exact(self.params.share)
        top = largest(shards, lambda shard: self.average[shard.name], lambda size: int(share * size))
        for shard in shards:
            shard.grad[~top[shard.name].mask(self.average[shard.name])] = 0.0

    def state_dict(self):
        return self.average

    def load_state_dict(self, state):
        for name, average in self.average.items():
            average.copy_(state[name])
