"""Which samples each optimizer step sees, in which order, and what each weighs in the loss."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler

from benchmark.models.batch import Item, Items


class Order(Sampler[tuple[int, float]]):
    """The data order of an epoch, a function of seed, epoch and index alone, with each sample's loss weight.

    An epoch is one pass over the target's items, whatever is replayed. Every batch ends with its replayed items; a
    smaller last batch has proportionally fewer. All of them have been replayed once before any is for a second time.

    Args:
        seed: the cell's seed.
        tokens: number of supervised tokens of each item; those of replayed items come last.
        batch_size: samples per optimizer step.
        loss_group: number of samples whose tokens are averaged together.
        replayed: number of items that are replayed.
        per_batch: number of them in each batch.
    """

    def __init__(
        self, seed: int, tokens: Sequence[int], batch_size: int, loss_group: int, replayed: int = 0, per_batch: int = 0
    ) -> None:
        self.seed = seed
        self.tokens = tokens
        self.batch_size = batch_size
        self.loss_group = loss_group
        self.rows = len(tokens) - replayed
        self.replayed = replayed
        self.per_batch = per_batch
        self.epoch = 0

    def __len__(self) -> int:
        last = self.rows - (self.steps - 1) * self._fresh
        return self.rows + (self.steps - 1) * self.per_batch + self._share(last)

    @property
    def steps(self) -> int:
        """Number of optimizer steps per epoch; the last batch may be smaller."""
        return math.ceil(self.rows / self._fresh)

    @property
    def _fresh(self) -> int:
        return self.batch_size - self.per_batch

    def _share(self, fresh: int) -> int:
        """Return how many items are replayed beside `fresh` items of the target."""
        return round(fresh * self.per_batch / self._fresh)

    def _replay(self, number: int, count: int) -> list[int]:
        """Return the first items that batch `number` of this epoch replays."""
        first = (self.epoch * self.steps + number) * self.per_batch
        chosen = []
        for position in range(first, first + count):
            cycle, index = divmod(position, self.replayed)
            chosen.append(self.rows + _cycle(self.seed, cycle, self.replayed)[index])
        return chosen

    def __iter__(self) -> Iterator[tuple[int, float]]:
        """Yield (index, weight). The loss of a batch is the sum over samples of weight times summed token losses."""
        order = permutation(self.seed, self.epoch, self.rows)
        for number, start in enumerate(range(0, len(order), self._fresh)):
            batch = order[start : start + self._fresh]
            batch += self._replay(number, self._share(len(batch)))
            groups = [batch[i : i + self.loss_group] for i in range(0, len(batch), self.loss_group)]
            for group in groups:
                weight = 1 / (len(groups) * sum(self.tokens[index] for index in group))
                yield from ((index, weight) for index in group)


class Share(Sampler[tuple[int, float]]):
    """One process's share of an Order: its own micro-batch of each round.

    All processes get the same number of samples. Samples of weight 0 fill an incomplete last round.

    Args:
        order: the order of all processes.
        micro_batch_size: samples per forward pass and process.
        rank: number of this process.
        processes: number of processes.
    """

    def __init__(self, order: Order, micro_batch_size: int, rank: int, processes: int) -> None:
        self.order = order
        self.size = micro_batch_size
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        samples, together = list(self.order), self.size * self.processes
        for start in range(0, len(samples), self.order.batch_size):
            batch = samples[start : start + self.order.batch_size]
            batch += [(batch[0][0], 0.0)] * (-len(batch) % together)
            for first in range(self.rank * self.size, len(batch), together):
                yield from batch[first : first + self.size]


@functools.lru_cache(maxsize=2)
def _cycle(seed: int, number: int, size: int) -> list[int]:
    """Return the order in which all replayed items are replayed for the time `number`."""
    return permutation(f"replay/{seed}", number, size)


def permutation(seed: int | str, epoch: int, size: int) -> list[int]:
    """Return 0 .. size-1, shuffled by hashes, so that no version of a library can change the order."""
    return sorted(range(size), key=lambda index: hashlib.sha256(f"{seed}/{epoch}/{index}".encode()).digest())


@dataclass
class TrainingSet:
    """Items, indexed by the (index, weight) pairs of Order."""

    items: Items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, float]) -> tuple[Item, float]:
        return self.items[key[0]], key[1]
