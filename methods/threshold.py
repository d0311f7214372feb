"""The n-th largest magnitude of every tensor, exactly, wherever its parts are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from methods.fused import fused
from methods.ops import ROW

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.shards import Shard, Shards

INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


@fused
def _reached(values: Tensor, limit: Tensor) -> Tensor:
    """Return how many magnitudes are at least as large as a limit, which is above 0."""
    if torch.compiler.is_compiling():  # in rows, for the reason that methods/ops.py gives
        values = functional.pad(values, (0, -values.numel() % ROW)).view(-1, ROW)
        return (values.abs() >= limit).sum(-1).sum().double()[None]
    return (values.abs() >= limit).sum().double()[None]


def largest(shards: Shards, values: Callable[[Shard], Tensor], count: Callable[[int], int]) -> dict[str, Tensor]:
    """Return per tensor the magnitude that exactly `count` of its elements exceed.

    Bisection: the bit patterns of |x| order like the numbers, so the wanted pattern is found bit by bit, each time by
    counting the elements that are at least as large. The counts of all tensors are summed over the processes at once:
    31 reductions in float32, whatever the tensors' size, and the same result however they are cut. Patterns and counts
    stay on the device: the host never waits for a tensor's. Ties: fewer than `count` elements exceed the result if
    several are equal to it.

    Args:
        shards: the tensors of a hook call.
        values: maps a shard to a float32 or float64 tensor of any length, all of one dtype and device.
        count: maps a tensor's number of elements to how many should exceed the result.

    Returns:
        A scalar that compares exactly with |x|: inf for a count below 0, -1 if all elements should exceed it.
    """
    sizes = {shard.name: shard.numel for shard in shards}
    like = values(next(iter(shards)))
    counts = {name: count(size) for name, size in sizes.items()}
    outside = {
        name: math.inf if counts[name] < 0 else -1.0 for name in sizes if not 0 <= counts[name] < sizes[name]
    }
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
    found = dict(zip(sizes, patterns.view(like.dtype), strict=True))
    return found | {name: like.new_full((), limit) for name, limit in outside.items()}
