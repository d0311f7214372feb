"""Bootstrap intervals, paired differences, Holm correction and resolvable differences.

One draw resamples the image groups of every test set and the training seeds, then recomputes all metrics.
The random numbers depend only on the bootstrap seed, on the name and size of a test set and on the training
seeds. Two methods with the same training seeds therefore get the same draws, and their difference is paired.
CIDEr is the mean of per-image scores; document frequencies are not resampled. With few training seeds, the
spread between seeds is estimated poorly and, because it is resampled, too low.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchmark.core.errors import UserError
from eval.averages import a_s, h_average, o_average
from eval.score import ItemScore

ItemsBySeed = Mapping[int, Sequence[ItemScore]]

AVERAGES = ("A_S", "A_T", "H", "O")
LEVEL = 0.95
# Normal quantiles: two-sided 5 % level plus 80 % power.
_RESOLVABLE_IN_STANDARD_ERRORS = 1.959964 + 0.841621


@dataclass(frozen=True)
class Interval:
    """A value in points with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference in points: 95 % interval, standard error and two-sided bootstrap p-value."""

    value: float
    low: float
    high: float
    error: float
    p: float


@dataclass(frozen=True)
class Sample:
    """One method's scores on its test sets, with their bootstrap distribution.

    Attributes:
        values: points per dataset id and per name in `AVERAGES`.
        draws: the same keys, arrays of shape (draws,).
        by_seed: training seed -> the same keys, points of that seed only.
        n: items per dataset.
        shapes: dataset -> digest of its items and groups; methods with equal digests can be paired.
        draw_seed: seed of the bootstrap.
    """

    values: dict[str, float]
    draws: dict[str, np.ndarray]
    by_seed: dict[int, dict[str, float]]
    n: dict[str, int]
    shapes: dict[str, int]
    draw_seed: int


def _group_sums(dataset: str, by_seed: ItemsBySeed) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return score sums (groups, seeds), group sizes (groups,), number of items, digest of the items."""
    first, *others = (by_seed[seed] for seed in sorted(by_seed))
    ids = [item.item_id for item in first]
    if not ids:
        raise UserError(f"No item scores for {dataset}: generate and score it first.")
    for other in others:
        if {item.item_id for item in other} != set(ids) or len(other) != len(ids):
            raise UserError(f"Seeds of a method were scored on different items of {dataset}: score again.")
    names = sorted({item.group for item in first})
    position = {name: index for index, name in enumerate(names)}
    sums = np.stack(
        [
            np.bincount(
                [position[item.group] for item in by_seed[seed]],
                weights=[item.score for item in by_seed[seed]],
                minlength=len(names),
            )
            for seed in sorted(by_seed)
        ],
        axis=1,
    )
    sizes = np.bincount([position[item.group] for item in first], minlength=len(names)).astype(float)
    shape = zlib.crc32("\n".join(sorted(f"{item.group}\t{item.item_id}" for item in first)).encode())
    return sums, sizes, len(ids), shape


@lru_cache(maxsize=6)
def _group_counts(dataset: str, groups: int, draws: int, seed: int) -> np.ndarray:
    """Return how often each group is drawn, shape (draws, groups); cached, because every method uses the same."""
    random = np.random.default_rng([seed, zlib.crc32(dataset.encode())])
    drawn = random.integers(0, groups, size=(draws, groups)) + groups * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * groups).reshape(draws, groups).astype(float)


def _resampled_scores(dataset: str, sums: np.ndarray, sizes: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return mean scores in points, shape (draws, seeds), each over groups drawn with replacement."""
    totals = _group_counts(dataset, len(sizes), draws, seed) @ np.column_stack([sums, sizes])
    return 100 * totals[:, :-1] / totals[:, -1:]


def _seed_weights(seeds: Sequence[int], draws: int, seed: int) -> np.ndarray:
    """Return how much each training seed counts in each draw, shape (draws, seeds), rows summing to 1."""
    random = np.random.default_rng([seed, zlib.crc32(b"training seeds"), *(value % 2**32 for value in seeds)])
    drawn = random.integers(0, len(seeds), size=(draws, len(seeds)))
    return (drawn[:, :, None] == np.arange(len(seeds))).mean(axis=1)


def _with_averages(
    scores: Mapping[str, np.ndarray], target: str, upstream: Sequence[str]
) -> dict[str, np.ndarray]:
    """Add A^S, A^T, H, O to arrays of scores by dataset."""
    source = np.mean([scores[name] for name in upstream], axis=0)
    goal = scores[target]
    total = source + goal
    harmonic = np.divide(2 * source * goal, total, out=np.zeros_like(total), where=total > 0)
    return {**scores, "A_S": source, "A_T": goal, "H": harmonic, "O": total / 2}


def resample(
    items: Mapping[str, ItemsBySeed], target: str, upstream: Sequence[str], draws: int = 2000, seed: int = 0
) -> Sample:
    """Compute all metrics of one method and their bootstrap distribution (Eqs. 9 and 10).

    With several training seeds a dataset's score is the mean over seeds; A^S, H and O follow from the means.

    Args:
        items: dataset id -> training seed -> item scores, for the upstream sets and the target.
        target: id of the target dataset.
        upstream: ids of the upstream datasets.
        draws: number of bootstrap draws.
        seed: seed of the bootstrap.

    Returns:
        Values, draws and per-seed values.

    Raises:
        UserError: a dataset is missing or empty, or the training seeds or the items disagree.
    """
    names = [*upstream, target]
    absent = [name for name in names if not items.get(name)]
    if absent:
        raise UserError(f"No item scores for {', '.join(absent)}: no summary over a part of the test sets.")
    seeds = sorted(items[target])
    if any(sorted(items[name]) != seeds for name in names):
        found = "; ".join(f"{name}: {sorted(items[name])}" for name in names)
        raise UserError(f"The datasets were scored for different training seeds ({found}).")

    weights = _seed_weights(seeds, draws, seed)
    exact: dict[str, np.ndarray] = {}
    drawn: dict[str, np.ndarray] = {}
    n: dict[str, int] = {}
    shapes: dict[str, int] = {}
    for name in names:
        sums, sizes, n[name], shapes[name] = _group_sums(name, items[name])
        exact[name] = 100 * sums.sum(axis=0) / sizes.sum()
        drawn[name] = (_resampled_scores(name, sums, sizes, draws, seed) * weights).sum(axis=1)

    values = {name: float(scores.mean()) for name, scores in exact.items()}
    source = a_s([values[name] for name in upstream])
    summary = (source, values[target], h_average(source, values[target]), o_average(source, values[target]))
    per_seed = _with_averages(exact, target, upstream)
    return Sample(
        values={**values, **dict(zip(AVERAGES, summary, strict=True))},
        draws=_with_averages(drawn, target, upstream),
        by_seed={s: {name: float(array[k]) for name, array in per_seed.items()} for k, s in enumerate(seeds)},
        n=n,
        shapes=shapes,
        draw_seed=seed,
    )


def _bounds(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def intervals(sample: Sample) -> dict[str, Interval]:
    """Return value and percentile interval for each dataset and for A_S, A_T, H, O."""
    return {name: Interval(value, *_bounds(sample.draws[name])) for name, value in sample.values.items()}


def bootstrap(
    items: Mapping[str, ItemsBySeed], target: str, upstream: Sequence[str], draws: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Return `intervals(resample(...))`; see there for arguments and errors."""
    return intervals(resample(items, target, upstream, draws, seed))


def dataset_interval(dataset: str, by_seed: ItemsBySeed, draws: int = 2000, seed: int = 0) -> Interval:
    """Return value and interval of a single dataset, with the draws that `resample` uses for it.

    Args:
        dataset: its id.
        by_seed: training seed -> item scores.
        draws: number of bootstrap draws.
        seed: seed of the bootstrap.

    Returns:
        Points with 95 % interval.

    Raises:
        UserError: no items, or the seeds have different items.
    """
    sums, sizes, _, _ = _group_sums(dataset, by_seed)
    weights = _seed_weights(sorted(by_seed), draws, seed)
    drawn = (_resampled_scores(dataset, sums, sizes, draws, seed) * weights).sum(axis=1)
    return Interval(float(100 * sums.sum() / sizes.sum() / sums.shape[1]), *_bounds(drawn))


def paired_difference(method: Sample, reference: Sample, name: str) -> Difference:
    """Return how much a method differs from a reference on one metric, with both resampled alike.

    Args:
        method: sample of the method.
        reference: sample of what it is compared with.
        name: dataset id or one of `AVERAGES`.

    Returns:
        Method minus reference. The smallest possible p-value is 2 / (draws + 1).

    Raises:
        UserError: the two were scored on different items, or resampled with different seeds or numbers of draws.
    """
    other = [key for key in method.shapes if method.shapes[key] != reference.shapes.get(key)]
    if other or method.shapes.keys() != reference.shapes.keys():
        which = ", ".join(other) or "other datasets"
        raise UserError(f"Two methods were scored on different items ({which}): no paired difference.")
    drawn, against = method.draws[name], reference.draws[name]
    if drawn.shape != against.shape or method.draw_seed != reference.draw_seed:
        raise UserError("A paired difference needs one bootstrap seed and number of draws for both methods.")
    delta = drawn - against
    tail = min(int((delta <= 0).sum()), int((delta >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(delta) + 1))
    value = method.values[name] - reference.values[name]
    return Difference(value, *_bounds(delta), float(delta.std(ddof=1)), p)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given."""
    adjusted = [0.0] * len(pvalues)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        running = max(running, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = running
    return adjusted


def smallest_resolvable(differences: Sequence[Difference]) -> float | None:
    """Return the true difference that these test sets would detect with 80 % power at the 5 % level.

    Args:
        differences: paired differences on one metric, on the same test sets.

    Returns:
        2.8 times the median standard error, in points; None if there are no finite differences.
    """
    errors = [difference.error for difference in differences if math.isfinite(difference.error)]
    return float(_RESOLVABLE_IN_STANDARD_ERRORS * np.median(errors)) if errors else None
