"""Choose exactly the n largest elements of every tensor, however the tensors are sharded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from methods.fused import fused
from methods.ops import ROW, at_least

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shard, Shards

INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True)
class Largest:
    """The elements of one tensor with the largest magnitudes, as two numbers on its device.

    Attributes:
        limit: every element of a larger magnitude is chosen.
        ties: how many elements of exactly this magnitude are chosen in this part, the first ones; 0 or less: none.
    """

    limit: Tensor
    ties: Tensor

    def mask(self, values: Tensor) -> Tensor:
        """Return the chosen elements as bool, in the shape of `values`, the part that they were chosen from."""
        return at_least(values.abs(), self.limit, self.ties)


@fused
def _reached(values: Tensor, limit: Tensor) -> Tensor:
    """Return how many magnitudes reach a limit above 0."""
    if torch.compiler.is_compiling():  # in rows, see `_parts` in methods/ops.py
        values = functional.pad(values, (0, -values.numel() % ROW)).view(-1, ROW)
        return (values.abs() >= limit).sum(-1).sum().double()[None]
    return (values.abs() >= limit).sum().double()[None]


def _quickselect(values: Tensor, count: int) -> Tensor:
    """Return the largest magnitude that more than `count` elements reach, or 0 if there is none."""
    if count >= values.numel():
        return values.new_zeros(())
    magnitudes = values.abs().nan_to_num_(nan=0.0, posinf=torch.inf)  # as in the bisection, NaN reaches no limit
    return magnitudes.kthvalue(values.numel() - count).values


def _bisect(shards: Shards, values: Callable[[Shard], Tensor], wanted: Tensor) -> dict[str, Tensor]:
    """Return the largest magnitude that more than `wanted` elements of each tensor reach, or 0 if there is none."""
    names = [shard.name for shard in shards]
    like = values(next(iter(shards)))
    patterns = torch.zeros(len(names), dtype=INTEGER[like.dtype], device=like.device)
    for bit in range(torch.finfo(like.dtype).bits - 2, -1, -1):  # the topmost bit is the sign
        tried = patterns | 1 << bit
        limits = dict(zip(names, tried.view(like.dtype), strict=True))

        def count_reached(shard: Shard, limits: dict[str, Tensor] = limits) -> Tensor:
            return _reached(values(shard), limits[shard.name])

        enough = torch.cat([*shards.totals(count_reached).values()]) > wanted
        patterns = torch.where(enough, tried, patterns)
    return dict(zip(names, patterns.view(like.dtype), strict=True))


def largest(shards: Shards, values: Callable[[Shard], Tensor], count: Callable[[int], int]) -> dict[str, Largest]:
    """Choose exactly the `count` elements with the largest magnitudes of every tensor; of equal ones, the first.

    "First" is by position in the flattened tensor, as in torch.topk on a GPU; on a CPU torch.topk takes any of them.
    The result does not depend on how a tensor is sharded.

    The limit is found by bisection. The bit patterns of |x| sort like the numbers, so the limit's pattern is found bit
    by bit; each bit needs a count of the elements that reach the tried limit. The counts of all tensors are summed over
    the processes together: 31 reductions for float32, whatever the size of the tensors, and one more for the number of
    ties in earlier parts. Patterns and counts stay on the device, so the host never waits. On a CPU that holds the
    tensors whole, quickselect finds the same limit in a few passes.

    Args:
        shards: the tensors of a hook call.
        values: maps a shard to a float32 or float64 tensor of the shard's length; all of one dtype and device.
        count: maps a tensor's number of elements to the number to choose, from 0 to all.

    Returns:
        The choice by tensor name.
    """
    sizes = {shard.name: shard.numel for shard in shards}
    like = values(next(iter(shards)))
    counts = {name: count(size) for name, size in sizes.items()}
    # Filled on the device: the host would wait for a copy.
    wanted = torch.stack([like.new_full((), number, dtype=torch.float64) for number in counts.values()])
    if shards.whole and like.device.type == "cpu":
        limits = {shard.name: _quickselect(values(shard), counts[shard.name]) for shard in shards}
    else:
        limits = _bisect(shards, values, wanted)
    limits |= {name: like.new_full((), -1.0) for name, size in sizes.items() if counts[name] >= size}  # all exceed -1

    def count_beside(shard: Shard) -> Tensor:
        size, limit = values(shard).abs(), limits[shard.name]
        return torch.stack([(size > limit).sum(), (size == limit).sum()]).double()

    found = shards.totals_and_before(count_beside)
    return {
        name: Largest(limits[name], number - total[0] - before[1])
        for (name, (total, before)), number in zip(found.items(), wanted, strict=True)
    }
