"""The n-th largest magnitude of every tensor, exactly, wherever its parts are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.shards import Shard, Shards

DIGIT = 8  # bits per round
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def largest(
    shards: Shards, values: Callable[[Shard], Tensor], count: Callable[[int], int]
) -> dict[str, float]:
    """Return per tensor the magnitude that exactly `count` of its elements exceed.

    Radix selection: the bit patterns of |x| order like the numbers, so the wanted pattern is found digit by digit
    from histograms of 256 bins. Only these are summed over the processes, for all tensors at once: four reductions
    in float32, whatever the tensors' size, and the same result however they are cut. Ties: fewer than `count`
    elements exceed the result if several are equal to it.

    Args:
        shards: the tensors of a hook call.
        values: maps a shard to a float32 or float64 tensor of any length, all of one dtype.
        count: maps a tensor's number of elements to how many should exceed the result.

    Returns:
        A value that compares exactly with |x|: inf for a count below 0, -1 if all elements should exceed it.
    """
    sizes = {shard.name: shard.numel for shard in shards}
    dtype = values(next(iter(shards))).dtype
    left = {name: count(size) for name, size in sizes.items()}
    outside = {
        name: math.inf if left[name] < 0 else -1.0 for name in sizes if not 0 <= left[name] < sizes[name]
    }
    prefix = dict.fromkeys(sizes, 0)
    for shift in range(torch.finfo(dtype).bits - DIGIT, -1, -DIGIT):

        def histogram(shard: Shard, shift: int = shift) -> Tensor:
            pattern = values(shard).abs().view(INTEGER[dtype]) >> shift
            digits = pattern[pattern >> DIGIT == prefix[shard.name]] & (1 << DIGIT) - 1
            return torch.bincount(digits, minlength=1 << DIGIT).double()

        for name, counts in shards.sums(histogram).items():
            digit = len(counts) - 1
            while digit and left[name] >= counts[digit]:
                left[name] -= int(counts[digit])
                digit -= 1
            prefix[name] = prefix[name] << DIGIT | digit
    patterns = torch.tensor([0 if name in outside else prefix[name] for name in sizes], dtype=INTEGER[dtype])
    return dict(zip(sizes, patterns.view(dtype).tolist(), strict=True)) | outside
