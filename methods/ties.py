"""TIES: trim every model's change, elect one sign per element, average the changes that have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.ops import CHUNK, exact, first_largest
from methods.posthoc import SeedMerge, check_members

# A magnitude's float32 pattern has 31 bits and sorts like the number. Two histograms, over the upper 16 bits and over
# the lower 15 bits of one bin, give any order statistic of a whole model exactly.
LOW_BITS = 15
HIGH, LOW = 1 << 16, 1 << LOW_BITS

Tensors = Iterable[tuple[str, Tensor, Sequence[Tensor]]]  # name, w*, the tuned tensors


@dataclass(frozen=True)
class TiesParams:
    """keep: share of each model's changes that survives the trim; scale: what the merged change is multiplied by
    (lambda); variant: "released" trims over the whole model and gives an element whose changes cancel the sign that
    most elements have; "mergekit" trims each tensor by itself and gives it the positive sign."""

    keep: float = 0.2
    scale: float = 1.0
    variant: Literal["released", "mergekit"] = "released"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} must be above 0 and at most 1.")


@dataclass(frozen=True)
class TiesSeedsParams(TiesParams):
    """Those of `TiesParams`, and members: number of Full FT runs, which differ in the seed."""

    members: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_members(self.members)


class Ties(SeedMerge):
    """TIES over seeds: w = w* + scale mean(d_s : sign d_s = sign sum_s d_s), where d_s is the change of the Full FT run
    with seed s, trimmed to its largest share. See `TiesMerge`, which also merges files.

    Granularity: element. Tensors: all trained; the trim counts these alone, not the whole model as a merge of files
    does. Acts: once, on finished Full FT checkpoints of `members` seeds.
    Extra memory: 0 |M| in training; at the end all of w*, the members' weights and the new weights.
    Source: Yadav et al., NeurIPS 2023.
    Disagreements: the paper merges models of several tasks. Here the task is one and the seed differs, so what the
    signs' election removes is what the runs do not share.
    Variants: ties alone; variant=mergekit trims each tensor by itself.
    """

    Params = TiesSeedsParams

    def combine(self, tuned: Sequence[dict[str, Tensor]], pretrained: dict[str, Tensor]) -> dict[str, Tensor]:
        def tensors(stage: str) -> Tensors:
            for name, weight in tuned[0].items():
                others = [one[name].float().to(weight.device) for one in tuned]
                yield name, pretrained[name].float().to(weight.device), others

        rule = TiesMerge(self.params, tensors, len(tuned))
        return {name: rule(name, before, after) for name, before, after in tensors("merge")}


class TiesMerge:
    """TIES: w = w* + scale mean(d_t : sign d_t = sign sum_t d_t), where d_t is w_t - w* trimmed to its largest share.

    Granularity: element. Tensors: all that are stored as floats. In float32.
    Source: Yadav et al., NeurIPS 2023, and its released code, whose arithmetic MergeLM has too: with k = int(n (1 -
    keep)) over all n elements of the model, every |change| of at least the k-th smallest survives, so one element more
    than n - k, and all ties with it.
    Variants: mergekit (0.1.5, `ties` with every weight 1): exactly max(1, int(keep n)) elements of each tensor survive.
    Decided: of equal changes the first survive (mergekit: whichever its sort puts first); the sum of signs is exact
    (MergeLM: float32); with k = 0 nothing is trimmed (MergeLM fails).

    Args:
        params: see `TiesParams`.
        tensors: starts a pass over all tensors; each tensor is needed once per pass. Not called by "mergekit".
        models: number of tuned models.
    """

    def __init__(self, params: TiesParams, tensors: Callable[[str], Tensors], models: int) -> None:
        self.params = params
        self._limits = [0.0] * models
        self._majority = 1.0
        if params.variant == "released":
            self._limits = _limits(params.keep, tensors, models)
            signs = 0
            for base, tuned in _pieces(tensors("elect signs")):
                total = self._trimmed(base, tuned).sum(0)
                signs += int((total > 0).sum()) - int((total < 0).sum())
            self._majority = float((signs > 0) - (signs < 0))

    def __call__(self, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """Return the merged tensor in float32; its name does not matter."""
        size = CHUNK if self.params.variant == "released" else max(1, base.numel())  # trimmed per tensor: in one piece
        parts = [self._merged(*piece) for piece in _pieces([(name, base, tuned)], size)]
        return torch.cat(parts).view(base.shape) if parts else base.float()

    def _merged(self, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        changes = self._trimmed(base, tuned)
        total = changes.sum(0)
        sign = torch.where(total == 0, self._majority, total.sign())
        agreeing = (changes.sign() == sign) & (changes != 0)  # the elected sign may be 0: if the majority's is
        mean = torch.where(agreeing, changes, 0.0).sum(0) / agreeing.sum(0).clamp(min=1)
        return base.float() + self.params.scale * mean

    def _trimmed(self, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """Return (models, elements), each model's change, 0 where it is trimmed."""
        changes = [tensor.float() - base.float() for tensor in tuned]
        if self.params.variant == "released":
            kept = [change.abs() >= limit for change, limit in zip(changes, self._limits, strict=True)]
        else:
            count = max(1, int(exact(self.params.keep) * base.numel()))
            kept = [first_largest(change.abs(), count) for change in changes]
        return torch.stack([torch.where(mask, change, 0.0) for mask, change in zip(kept, changes, strict=True)])


def _pieces(tensors: Tensors, size: int = CHUNK) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield (w*, tuned) of up to `size` elements, 1-D: what is computed with a large tensor stays small."""
    for _, base, tuned in tensors:
        columns = [tensor.flatten().split(size) for tensor in (base, *tuned)]
        for first, *others in zip(*columns, strict=True):
            if first.numel():
                yield first, others


def _limits(keep: float, tensors: Callable[[str], Tensors], models: int) -> list[float]:
    """Return each model's k-th smallest |w_t - w*| of all n elements, k = int(n (1 - keep)); 0 if k is 0."""
    high = torch.zeros(models, HIGH, dtype=torch.int64)
    for base, tuned in _pieces(tensors("trim, first pass")):
        for row, tensor in zip(high, tuned, strict=True):
            row += torch.bincount(_pattern(base, tensor) >> LOW_BITS, minlength=HIGH)
    size = int(high[0].sum())
    rank = int(size * (1 - exact(keep)))
    if not rank:
        return [0.0] * models
    bins = [_bin(row, rank) for row in high]
    low = torch.zeros(models, LOW, dtype=torch.int64)
    for base, tuned in _pieces(tensors("trim, second pass")):
        for row, tensor, (upper, _) in zip(low, tuned, bins, strict=True):
            pattern = _pattern(base, tensor)
            row += torch.bincount(pattern[pattern >> LOW_BITS == upper] & (LOW - 1), minlength=LOW)
    patterns = [(upper << LOW_BITS) | _bin(row, rest)[0] for row, (upper, rest) in zip(low, bins, strict=True)]
    return torch.tensor(patterns, dtype=torch.int32).view(torch.float32).tolist()


def _pattern(base: Tensor, tuned: Tensor) -> Tensor:
    """Return the bits of |w_t - w*| as whole numbers."""
    return (tuned.float() - base.float()).abs().view(torch.int32)


def _bin(counts: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that holds the rank-th smallest element (from 1), and its rank within the bin."""
    total = counts.cumsum(0)
    place = int((total < rank).sum())
    return place, rank - (int(total[place - 1]) if place else 0)
