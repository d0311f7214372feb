"""SPIDER: at every step, take elements back to w* unless the task needs them more than they matter in w*."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmark.errors import UserError
from methods import ops
from methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.shards import Shard, Shards


@dataclass(frozen=True)
class SpiderParams:
    """momentum: share of the old gradient average that a step keeps."""

    momentum: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1.")


class Spider(Method):
    """SPIDER: I = sigmoid(z(|w*|)), G = sigmoid(z(|A|)) with A <- .85 A + .15 g;
    M = G / (G + I) where G > I, else 0 (Eq. 7); M <- min(1, M / Mean(M[M != 0])) (Eq. 8);
    w <- w M + w* (1 - M) after each optimizer step (Eq. 6, Algorithm 1).

    Granularity: element; z-score (unbiased) and the mean of Eq. 8 per tensor. Tensors: all trainable.
    Acts: `before_step` accumulates the gradient, `after_step` builds the mask tensor by tensor and blends.
    Adam's moments stay as they are. Extra memory: 2 |M| (w*, A); masks are never stored for all tensors,
    except one byte per element once diagnostics are asked for.
    Source: SPIDER paper, Secs. 3.2.1-3.2.2 and App. A; per-tensor scope and unbiased deviation from the
    released code. The scale of A cancels in z, so heavy-ball and averaged momentum are the same method.
    Disagreements: the released code sums gradients instead of the text's momentum 0.85, takes them
    unclipped, and blends float32 masters whose low-precision copies lag one step behind.
    Decided where the equations are undefined: an all-zero tensor ranks 0 (no gradient yet: everything
    returns to w*; w* = 0: every element with a gradient is free); constant or one-element tensors rank 1/2
    (the released code gets NaN and freezes them; one element still stays frozen, because 1/2 > 1/2 fails).
    """

    Params = SpiderParams

    def start(self, shards: Shards) -> None:
        self._generic = self._moments(shards, lambda shard: shard.pretrained)
        self._special: dict[str, ops.Moments] = {}
        self._mean: dict[str, float] = {}
        self._selected: dict[str, Tensor] = {}
        self.accumulated = {shard.name: torch.zeros_like(shard.weight) for shard in shards}

    def before_step(self, shards: Shards) -> None:
        for shard in shards:
            self.accumulated[shard.name].lerp_(shard.grad, 1 - self.params.momentum)

    def after_step(self, shards: Shards) -> None:
        self._special |= self._moments(shards, lambda shard: self.accumulated[shard.name])
        sums = shards.sums(lambda shard: ops.mask_sums(self._mask(shard)))
        for shard in shards:
            total, count = sums[shard.name]
            self._mean[shard.name] = total / count if count else 0.0
            mask = ops.rescale(self._mask(shard), self._mean[shard.name])
            shard.weight.copy_(ops.blend(shard.pretrained, shard.weight, mask))

    def _moments(self, shards: Shards, values: Any) -> dict[str, ops.Moments]:
        """Return the moments of `values(shard)` for every tensor, in one reduction."""
        sums = shards.sums(lambda shard: ops.abs_sums(values(shard)))
        return {shard.name: ops.Moments.from_sums(*sums[shard.name], shard.numel) for shard in shards}

    def _mask(self, shard: Shard) -> Tensor:
        """Return Eq. 7's mask of one tensor; recomputed where needed, because storing it costs 1 |M|."""
        special = ops.rank(self.accumulated[shard.name], self._special[shard.name])
        return ops.importance_mask(special, ops.rank(shard.pretrained, self._generic[shard.name]))

    def state_dict(self) -> dict[str, Any]:
        state = {f"accumulated/{name}": tensor for name, tensor in self.accumulated.items()}
        return state | {f"selected/{name}": tensor for name, tensor in self._selected.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        saved = {key: tensor.shape for key, tensor in state.items() if key.startswith("accumulated/")}
        if saved != {f"accumulated/{name}": tensor.shape for name, tensor in self.accumulated.items()}:
            raise UserError(
                "spider cannot resume: the checkpoint holds other tensors than this run trains. Resume with "
                "the run's own model, train.scope and number of processes, or delete its checkpoint folder."
            )
        for name, tensor in self.accumulated.items():
            tensor.copy_(state[f"accumulated/{name}"])
            if f"selected/{name}" in state:
                self._selected[name] = state[f"selected/{name}"].to(tensor.device)

    def diagnostics(self) -> dict[str, float]:
        """Return shares of all elements: M != 0, M == 1, and selection changed since the last call."""
        if not self._mean:
            return {}
        before, self._selected = self._selected, {}

        def count(shard: Shard) -> Tensor:
            mask = self._mask(shard)
            selected = self._selected[shard.name] = mask != 0
            ones = ops.rescale(mask, self._mean[shard.name]) == 1
            changed = selected ^ before.get(shard.name, selected)
            return torch.stack([selected.sum(), ones.sum(), changed.sum()]).double()

        sums = self.shards.sums(count)
        size = sum(shard.numel for shard in self.shards)
        selected, ones, changed = (sum(column) / size for column in zip(*sums.values(), strict=True))
        return {"mask_selected": selected, "mask_ones": ones} | ({"mask_flips": changed} if before else {})
