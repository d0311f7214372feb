"""What L2-Reg and Grafting share: how much a penalty on w - w* weighs, and when it is added to the gradient."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.core.errors import UserError
from methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shards


ONE_STEP = (
    "a penalty with two_step takes a second optimizer step on every batch, on whole weights, which only engine=single "
    "does. Train on engine=single, or leave two_step off (l2_reg, l2_reg_mean, grafting, grafting_mean)."
)


@dataclass(frozen=True)
class PenaltyParams:
    """strength: lambda; mean: penalise the mean over tensors of the means over elements, not the sum over all elements;
    reference_size: multiply lambda by reference_size / |M| (0: do not); two_step: take an optimizer step on the
    penalty's gradient before the step on the task's."""

    strength: float
    mean: bool = False
    reference_size: int = 0
    two_step: bool = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength={self.strength} must be at least 0.")
        if self.reference_size < 0:
            raise ValueError(f"reference_size={self.reference_size} must be at least 0.")


class Penalty(Method):
    """loss + lambda * sum_i p(w_i - w*_i); a subclass adds its derivative to a gradient."""

    @abstractmethod
    def add(self, grad: Tensor, change: Tensor, factor: float) -> None:
        """Add factor * dp/d(change) to grad, in place; `change` may be overwritten."""

    def refuses(self, engine: str) -> str | None:
        return ONE_STEP if self.params.two_step and engine != "single" else None

    def start(self, shards: Shards) -> None:
        if self.params.two_step and self.extra_step is None:
            raise UserError(f"Here {ONE_STEP}")
        sizes = {shard.name: shard.numel for shard in shards}
        scale = self.params.reference_size / sum(sizes.values()) if self.params.reference_size else 1.0
        means = {name: 1 / (len(sizes) * size) if self.params.mean else 1.0 for name, size in sizes.items()}
        self._factors = {name: self.params.strength * scale * mean for name, mean in means.items()}

    def before_step(self, shards: Shards) -> None:
        task = {}
        for shard in shards:
            if self.params.two_step:
                task[shard.name] = shard.grad.clone()
                shard.grad.zero_()
            self.add(shard.grad, shard.weight - shard.pretrained, self._factors[shard.name])
        if self.params.two_step:
            self.extra_step()  # type: ignore[misc]  # `start` has checked that it is set
            for shard in shards:
                shard.grad.copy_(task[shard.name])
