"""A method's view of the trained tensors: this process's part of each, and sums over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """This process's part of one trainable tensor, as 1-D views.

    Attributes:
        name: the tensor's name in the model.
        shape: of the whole tensor.
        numel: of the whole tensor; the local part may be shorter, even empty.
        weight: a live view, at least float32; writing to it changes the model.
        grad: a live view of the final gradient in `before_step` and `after_step`. In `start` and `diagnostics` it is
            None, whatever the type says: no method needs it there.
        source: the base checkpoint's values, in 16 bits if that loses nothing.
        offset: index of the part's first element within the flattened tensor.
    """

    name: str
    shape: torch.Size
    numel: int
    weight: Tensor
    grad: Tensor
    source: Tensor
    offset: int = 0

    @property
    def pretrained(self) -> Tensor:
        """The base checkpoint's values, on the weight's device and in its dtype; every access makes a new tensor."""
        return self.source.to(self.weight)


class Shards:
    """The tensors of one hook call; iterating reads the current views.

    Args:
        read: returns the shards, in the same order in every process.
        reduce: sums a float64 vector over all processes that hold parts. The default is for a single process (plain
            torch) and for replicas that each hold everything (DDP).
        place: this process's number and the number of processes; a tensor's parts are in the order of the processes.
    """

    def __init__(
        self,
        read: Callable[[], list[Shard]],
        reduce: Callable[[Tensor], Tensor] = lambda values: values,
        place: tuple[int, int] = (0, 1),
    ) -> None:
        self._read = read
        self._reduce = reduce
        self._place = place

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._read())

    @property
    def whole(self) -> bool:
        """Whether every process holds every tensor whole, so that nothing needs a reduction."""
        return self._place[1] == 1

    def where(self, wanted: Callable[[Shard], bool]) -> Shards:
        """Return the shards that a function accepts; it must accept the same tensors in every process."""
        return Shards(lambda: [shard for shard in self if wanted(shard)], self._reduce, self._place)

    def reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a 1-D float64 tensor over the processes. Every process must call it, with the same length."""
        return self._reduce(values)

    def totals(self, function: Callable[[Shard], Tensor]) -> dict[str, Tensor]:
        """Sum a few numbers per tensor over its parts: one reduction for all tensors, without a host wait.

        Args:
            function: maps a shard to a 1-D float64 tensor, the same length for all.

        Returns:
            The summed numbers by tensor name.
        """
        shards = list(self)
        rows = torch.stack([function(shard) for shard in shards])
        totals = self.reduce_sum(rows.flatten()).view_as(rows)
        return {shard.name: total for shard, total in zip(shards, totals, strict=True)}

    def totals_and_before(self, function: Callable[[Shard], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum a few numbers per tensor over all its parts, and over the parts that come before this process's.

        Args:
            function: maps a shard to a 1-D float64 tensor, the same length for all.

        Returns:
            (over all parts, over the parts before) by tensor name, from one reduction.
        """
        shards, (process, processes) = list(self), self._place
        rows = torch.stack([function(shard) for shard in shards])
        apart = rows.new_zeros(processes, *rows.shape)
        apart[process] = rows
        apart = self.reduce_sum(apart.flatten()).view_as(apart)
        sums = zip(shards, apart.sum(0), apart[:process].sum(0), strict=True)
        return {shard.name: (total, before) for shard, total, before in sums}

    def sums(self, function: Callable[[Shard], Tensor]) -> dict[str, list[float]]:
        """Return `totals` as numbers. The host waits for the GPU once, for all tensors together."""
        totals = self.totals(function)
        return dict(zip(totals, torch.stack([*totals.values()]).tolist(), strict=True))


LIVE = (Shard, Shards)  # a method may keep these: they are not state of its own
