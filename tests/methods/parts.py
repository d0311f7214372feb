"""Tensors cut into the parts of several processes, here threads that meet at every reduction."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from methods.shards import Shard, Shards


def run(
    processes: list[dict[str, tuple[int, Tensor]]], sizes: dict[str, int], work: Callable[[Shards], Any],
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> list:
    """Run `work` on the shards of every process at once.

    Args:
        processes: per process, tensor name -> (offset, its part of w*); the weight is a copy, the gradient the square.
        sizes: tensor name -> number of elements of the whole tensor.
        work: gets the process's Shards.
        shapes: tensor name -> shape of the whole tensor; None: all have one dimension.

    Returns:
        What `work` returned in each process.
    """
    barrier, totals = threading.Barrier(len(processes)), {}

    def reduce_as(rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(values: Tensor) -> Tensor:
            totals[rank] = values
            barrier.wait(10)
            result = torch.stack([totals[i] for i in range(len(processes))]).sum(0)
            barrier.wait(10)
            return result

        return reduce

    def shards(rank: int) -> Shards:
        parts = [
            Shard(
                name, torch.Size(shapes[name] if shapes else [sizes[name]]), sizes[name], part.clone(), part.square(),
                part, offset,
            )
            for name, (offset, part) in processes[rank].items()
        ]
        return Shards(lambda: parts, reduce_as(rank), (rank, len(processes)))

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(lambda rank: work(shards(rank)), range(len(processes))))


def cut(
    tensors: dict[str, Tensor], processes: int, at: Callable[[int, int], int]
) -> list[dict[str, tuple[int, Tensor]]]:
    """Cut every tensor into `processes` parts, perhaps empty ones; `at(i, size)` is the end of part i."""
    result: list[dict[str, tuple[int, Tensor]]] = [{} for _ in range(processes)]
    for name, tensor in tensors.items():
        start = 0
        for rank in range(processes):
            end = (
                tensor.numel()
                if rank == processes - 1
                else max(start, min(at(rank, tensor.numel()), tensor.numel()))
            )
            result[rank][name] = (start, tensor[start:end])
            start = end
    return result
