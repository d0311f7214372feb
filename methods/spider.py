"""SPIDER: after every step, pull elements back to w* unless the task needs them more than they matter in w*."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from benchmark.core.errors import UserError
from methods import ops
from methods.base import Method
from methods.blocks import split_layer
from methods.fused import fused
from methods.mask_log import MaskLog
from methods.masks import OUTSIDE, load_accumulated, save_accumulated

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shard, Shards


@dataclass(frozen=True)
class SpiderParams:
    """momentum: share of the old gradient average that a step keeps; accumulate: this average, or the sum of all
    gradients; absolute: accumulate |g|; mask: "soft" is Eq. 8's, "hard" is Eq. 5's 0 and 1; scope: take mean and
    deviation over one tensor, or over one parameter group (all decoder layers, or the projector); lag: mask the weights
    only right before the next step, so that forward passes and the saved model see them unmasked."""

    momentum: float = 0.85
    accumulate: Literal["average", "sum"] = "average"
    absolute: bool = False
    mask: Literal["soft", "hard"] = "soft"
    scope: Literal["tensor", "group"] = "tensor"
    lag: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1.")


def _ranks(accumulated: Tensor, source: Tensor, special: Tensor, generic: Tensor) -> tuple[Tensor, Tensor]:
    """Return G and I."""
    return ops.rank(accumulated, special), ops.rank(source.to(accumulated.dtype), generic)


@fused
def _mask_sums(accumulated: Tensor, source: Tensor, special: Tensor, generic: Tensor) -> Tensor:
    """Return the sums over Eq. 7's mask that give the mean of Eq. 8."""
    return ops.mask_sums(ops.importance_mask(*_ranks(accumulated, source, special, generic)))


def _scaled(accumulated: Tensor, source: Tensor, special: Tensor, generic: Tensor, mean: Tensor | None) -> Tensor:
    """Return Eq. 8's mask, or Eq. 5's if there is no mean."""
    ranks = _ranks(accumulated, source, special, generic)
    return ops.selection(*ranks) if mean is None else ops.rescale(ops.importance_mask(*ranks), mean)


@fused
def _blend(
    weight: Tensor, accumulated: Tensor, source: Tensor, special: Tensor, generic: Tensor, mean: Tensor | None
) -> Tensor:
    """Set w to w M + w* (1 - M), in place."""
    mask = _scaled(accumulated, source, special, generic, mean)
    return weight.copy_(ops.blend(source.to(weight.dtype), weight, mask))


_abs_sums, _mask = fused(ops.abs_sums), fused(_scaled)


def _rows(function: Callable[[Tensor], Tensor], sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply a function of rows to the sums of all tensors at once, with as few kernels as for one tensor."""
    return dict(zip(sums, function(torch.stack([*sums.values()])), strict=True))


class Spider(Method):
    """SPIDER: I = sigmoid(z(|w*|)), G = sigmoid(z(|A|)) with A <- .85 A + .15 g;
    M = G / (G + I) where G > I, else 0 (Eq. 7); M <- min(1, M / Mean(M[M != 0])) (Eq. 8);
    w <- w M + w* (1 - M) after each optimizer step (Eq. 6, Algorithm 1).

    Granularity: element; z-score (unbiased) and the mean of Eq. 8 per tensor. Tensors: all trainable.
    Acts: `before_step` accumulates the gradient, `after_step` builds the mask tensor by tensor and blends.
    Adam's moments are left alone. Extra memory: 2 |M| (w*, A; 1.5 if 16 bits hold w* exactly); the masks of all tensors
    are never stored together.
    Source: SPIDER paper, Secs. 3.2.1-3.2.2 and App. A; per-tensor scope and unbiased deviation from the
    released code. The scale of A cancels in z, so heavy-ball and averaged momentum are the same method.
    Disagreements: the released code sums gradients instead of averaging them with momentum 0.85 as in the text, reads
    them before clipping, and blends float32 masters whose low-precision copies lag one step behind.
    Variants: spider_idm: Eq. 5's hard mask M = [G > I] (Table 4 without ISM; Table 3's last row; Table 4's IDM + ISM is
    spider itself). spider_code: A <- A + g, as released. spider_lag: spider_code, but a step's mask reaches the weights
    only right before the next update. Gradients are computed at unmasked weights and the last update is never masked,
    as in the released code's low-precision model. spider_instant: A = g. spider_abs: A <- .85 A + .15 |g|.
    spider_global: takes the mean and deviation in z and the mean of Eq. 8 over a whole parameter group. It needs all
    tensors of a group in one optimizer call, which engine=zero3 does not give (its sub_group_size may split a group).
    spider_posthoc: a method of its own in methods/spider_posthoc.py.
    Decided where the equations are undefined: an all-zero tensor ranks 0 (no gradient yet: everything returns to w*;
    w* = 0: every element with a gradient is free); constant and one-element tensors rank 1/2 (the released code gets
    NaN and freezes them; here too a single element stays frozen, because 1/2 > 1/2 is false).
    """

    Params = SpiderParams

    def refuses(self, engine: str) -> str | None:
        if self.params.scope == "tensor" or engine != "zero3":
            return None
        return (
            "scope=group ranks a whole parameter group at once, and ZeRO-3 may step it in several pieces "
            "(zero_optimization.sub_group_size). Train on engine=zero2, or with scope=tensor (spider)."
        )

    def start(self, shards: Shards) -> None:
        self._groups: dict[str, dict[str, int]] = {}  # group -> tensor -> number of elements
        for shard in shards:
            self._groups.setdefault(self._group(shard.name), {})[shard.name] = shard.numel
        self._generic = self._moments(shards, lambda shard: shard.pretrained)
        self._special: dict[str, Tensor] = {}
        self._mean: dict[str, Tensor] = {}
        self._log = MaskLog()
        self.accumulated = {shard.name: torch.zeros_like(shard.weight) for shard in shards}

    def before_step(self, shards: Shards) -> None:
        if self.params.lag:
            self._blend(shards)
        for shard in shards:
            gradient = shard.grad.abs() if self.params.absolute else shard.grad
            if self.params.accumulate == "sum":
                self.accumulated[shard.name].add_(gradient)
            else:
                self.accumulated[shard.name].lerp_(gradient, 1 - self.params.momentum)

    def after_step(self, shards: Shards) -> None:
        if not self.params.lag:
            self._blend(shards)

    def _blend(self, shards: Shards) -> None:
        """Set w to w M + w* (1 - M)."""
        self._measure(shards)
        for shard in shards:
            _blend(shard.weight, *self._known(shard), self._mean.get(shard.name))

    def mask(self, shard: Shard) -> Tensor:
        """Return one tensor's M of the last step, in [0, 1]. It is recomputed, because storing it would take 1 |M|."""
        return _mask(*self._known(shard), self._mean.get(shard.name))

    def _known(self, shard: Shard) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the inputs of both ranks of a tensor: A, w*, and the moments of |A| and |w*|."""
        name = shard.name
        return self.accumulated[name], shard.source, self._special[name], self._generic[name]

    def _measure(self, shards: Shards) -> None:
        """Update the statistics of whole tensors or groups that masks need, from the current A."""
        self._special |= self._moments(shards, lambda shard: self.accumulated[shard.name])
        if self.params.mask == "soft":
            sums = self._sums(shards, lambda shard: _mask_sums(*self._known(shard)))
            self._mean |= _rows(ops.mask_mean, sums)

    def _moments(self, shards: Shards, values: Callable[[Shard], Tensor]) -> dict[str, Tensor]:
        """Return the moments of `values(shard)` for every tensor, in one reduction."""
        return _rows(ops.moments, self._sums(shards, lambda shard: _abs_sums(values(shard))))

    def _sums(self, shards: Shards, function: Callable[[Shard], Tensor]) -> dict[str, Tensor]:
        """Return a function's sums per tensor, over the tensor or over its group. They stay on the device."""
        sums = shards.totals(function)
        if self.params.scope == "tensor":
            return sums
        result: dict[str, Tensor] = {}
        for tensors in self._groups.values():
            missing = tensors.keys() - sums.keys()
            if missing and missing != tensors.keys():
                raise UserError(
                    f"scope=group needs all tensors of a parameter group in one optimizer call; {min(missing)} is not "
                    f"in that of {min(tensors.keys() & sums.keys())}. Raise zero_optimization.sub_group_size to "
                    f"{sum(tensors.values())} or more, or train on engine=zero2."
                )
            if not missing:
                # For mypy a sum may be its start, the int 0. A group has at least one tensor.
                result |= dict.fromkeys(tensors, sum(sums[name] for name in tensors))  # type: ignore[arg-type]
        return result

    def _group(self, name: str) -> str:
        """Return the name under which a tensor's statistics are pooled: its own, or its parameter group's."""
        if self.params.scope == "tensor":
            return name
        return "layers" if split_layer(name) else OUTSIDE

    def state_dict(self) -> dict[str, Any]:
        return save_accumulated(self.accumulated) | self._log.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_accumulated(self.accumulated, state)
        self._log.load_state_dict(state, {shard.name: shard.weight.device for shard in self.shards})

    def diagnostics(self) -> dict[str, float]:
        """Return the shares of elements with M != 0, with M == 1, and whose selection changed; see methods/masks.py."""
        if not self._special:
            return {}
        if self.params.lag:
            self._measure(self.shards)  # nothing has needed the last step's mask yet
        return self._log.measure(self.shards, self.mask)
