"""The largest elements of every tensor, exactly as many as asked for, wherever the tensor's parts are."""

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
    """Which elements of one tensor have the largest magnitudes; two numbers on its device.

    Attributes:
        limit: all elements of a larger magnitude are among them.
        ties: how many of this part's elements of just this magnitude are; the first ones. At most 0: none.
    """

    limit: Tensor
    ties: Tensor

    def mask(self, values: Tensor) -> Tensor:
        """Return which elements they are: bool, of the shape of `values`, the part that they were chosen from."""
        return at_least(values.abs(), self.limit, self.ties)


@fused
def _reached(values: Tensor, limit: Tensor) -> Tensor:
    """Return how many magnitudes are at least as large as a limit, which is above 0."""
    if torch.compiler.is_compiling():  # in rows, for the reason that methods/ops.py gives
        values = functional.pad(values, (0, -values.numel() % ROW)).view(-1, ROW)
        return (values.abs() >= limit).sum(-1).sum().double()[None]
    return (values.abs() >= limit).sum().double()[None]


def largest(shards: Shards, values: Callable[[Shard], Tensor], count: Callable[[int], int]) -> dict[str, Largest]:
    """Choose exactly `count` elements of every tensor, those of the largest magnitudes; of equal ones the first.

    First in the flattened tensor, as torch.topk chooses on a GPU: there it fills up with "the first seen", on a CPU
    with any. How a tensor is cut makes no difference.

    Bisection: the bit patterns of |x| order like the numbers, so the limit's pattern is found bit by bit, each time by
    counting the elements that are at least as large. The counts of all tensors are summed over the processes at once,
    31 reductions in float32, whatever the tensors' size; one more says how many ties lie in earlier parts. Patterns
    and counts stay on the device: the host never waits for a tensor's.

    Args:
        shards: the tensors of a hook call.
        values: maps a shard to a float32 or float64 tensor as long as the shard, all of one dtype and device.
        count: maps a tensor's number of elements to how many to choose, from 0 to all.

    Returns:
        The choice by tensor name.
    """
    sizes = {shard.name: shard.numel for shard in shards}
    like = values(next(iter(shards)))
    counts = {name: count(size) for name, size in sizes.items()}
    # Filled, not copied there, for which the host would wait.
    wanted = torch.stack([like.new_full((), number, dtype=torch.float64) for number in counts.values()])
    patterns = torch.zeros(len(sizes), dtype=INTEGER[like.dtype], device=like.device)
    for bit in range(torch.finfo(like.dtype).bits - 2, -1, -1):  # the first is the sign
        tried = patterns | 1 << bit
        limits = dict(zip(sizes, tried.view(like.dtype), strict=True))

        def count_reached(shard: Shard, limits: dict[str, Tensor] = limits) -> Tensor:
            return _reached(values(shard), limits[shard.name])

        enough = torch.cat([*shards.totals(count_reached).values()]) > wanted
        patterns = torch.where(enough, tried, patterns)
    limits = dict(zip(sizes, patterns.view(like.dtype), strict=True))
    limits |= {name: like.new_full((), -1.0) for name, size in sizes.items() if counts[name] >= size}  # all exceed it

    def count_beside(shard: Shard) -> Tensor:
        size, limit = values(shard).abs(), limits[shard.name]
        return torch.stack([(size > limit).sum(), (size == limit).sum()]).double()

    found = shards.totals_and_before(count_beside)
    return {
        name: Largest(limits[name], number - total[0] - before[1])
        for (name, (total, before)), number in zip(found.items(), wanted, strict=True)
    }
