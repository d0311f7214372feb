"""Choose exactly the n largest elements of every row of every matrix, however the matrices are sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from methods.threshold import INTEGER

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shard, Shards


def largest_per_row(shards: Shards, values: Callable[[Shard], Tensor], count: int) -> dict[str, Tensor]:
    """Choose exactly the `count` elements with the largest magnitudes of every row; of equal ones, the first.

    The limits of all rows are found together by the bisection of `methods.threshold.largest`: 31 reductions for
    float32, of one number per row, and one more for ties in earlier parts of a row that two processes share.

    Args:
        shards: matrices; a row is what the first index selects.
        values: maps a shard to a float32 or float64 tensor of the shard's length; all of one dtype and device.
        count: from 1; a row that is not longer is chosen whole.

    Returns:
        bool by tensor name, in the shape of the shard.
    """
    shards_now = list(shards)
    if not shards_now:
        return {}
    like = values(shards_now[0])
    most = max(shard.shape[0] for shard in shards_now)  # reductions need one length for all tensors
    rows = {shard.name: _Rows(shard) for shard in shards_now}
    patterns = {
        shard.name: torch.zeros(shard.shape[0], dtype=INTEGER[like.dtype], device=like.device) for shard in shards_now
    }
    for bit in range(torch.finfo(like.dtype).bits - 2, -1, -1):  # the topmost bit is the sign
        tried = {name: pattern | 1 << bit for name, pattern in patterns.items()}

        def reached(shard: Shard, tried: dict[str, Tensor] = tried) -> Tensor:
            part = rows[shard.name]
            limits = part.of(tried[shard.name].view(like.dtype))
            counts = (part.lay(values(shard).abs()) >= limits).sum(1)
            return part.spread(counts, most)

        for name, total in shards.totals(reached).items():
            enough = total[: len(patterns[name])] >= count
            patterns[name] = torch.where(enough, tried[name], patterns[name])

    def beside(shard: Shard) -> Tensor:
        part = rows[shard.name]
        laid, limits = part.lay(values(shard).abs()), part.of(patterns[shard.name].view(like.dtype))
        return torch.cat([part.spread((laid > limits).sum(1), most), part.spread((laid == limits).sum(1), most)])

    result = {}
    found = shards.totals_and_before(beside)
    for shard in shards_now:
        (total, before), part = found[shard.name], rows[shard.name]
        laid, limits = part.lay(values(shard).abs()), part.of(patterns[shard.name].view(like.dtype))
        ties = part.of(count - total[:most] - before[most:])
        first = (laid == limits) & ((laid == limits).cumsum(1) <= ties)
        result[shard.name] = part.flat((laid > limits) | first)
    return result


class _Rows:
    """This process's part of a matrix, laid out in whole rows.

    Args:
        shard: the part.
    """

    def __init__(self, shard: Shard) -> None:
        self._width = shard.numel // shard.shape[0]
        self._length = shard.weight.numel()
        self._head = shard.offset % self._width
        self._first = shard.offset // self._width
        self._count = -(-(self._head + self._length) // self._width) if self._length else 0

    def lay(self, values: Tensor) -> Tensor:
        """Return magnitudes as (rows, width), -1 where another process holds the element."""
        tail = self._count * self._width - self._head - self._length if self._length else 0
        padded = functional.pad(values, (self._head, tail), value=-1.0) if self._length else values
        return padded.view(self._count, self._width)

    def of(self, numbers: Tensor) -> Tensor:
        """Return the numbers of these rows as a column, out of those of all rows."""
        return numbers.narrow(0, self._first if self._count else 0, self._count)[:, None]

    def spread(self, counts: Tensor, length: int) -> Tensor:
        """Return numbers of these rows as float64, at their places among `length` rows."""
        whole = torch.zeros(length, dtype=torch.float64, device=counts.device)
        whole[self._first : self._first + self._count] = counts.double()
        return whole

    def flat(self, laid: Tensor) -> Tensor:
        """Undo `lay`."""
        return laid.flatten()[self._head : self._head + self._length] if self._length else laid.flatten()
