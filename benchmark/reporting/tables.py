"""Build a table of methods: values, intervals, differences from Full FT or a default, the paper's numbers, notes.

`build` takes the item scores of each row and returns a `Table`: a data frame with one line per model, target,
method and metric, and the notes below it. `benchmark.reporting.render` prints and writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from benchmark.config.own_checkpoints import PREFIX
from benchmark.core.errors import counted
from benchmark.paper.numbers import Published
from eval import stats
from eval.score import METRICS
from methods.registry import METHODS

if TYPE_CHECKING:
    from benchmark.spec import DatasetSpec

REFERENCE = "full_ft"
PENALTIES = ("l2_reg", "grafting")
SAME_DELTA = 0.01
LEVEL = 0.05
OLDER = "†"  # follows the name of a row that older code made
SEES_SOURCES = "‡"  # follows the name of a row that training samples of the source sets made
SEEN = f"{SEES_SOURCES}: trained or calibrated on training samples of the source sets, which A^S measures."
AVERAGES = {"A_S": "A^S", "A_T": "A^T", "H": "H", "O": "O"}


@dataclass(frozen=True)
class Measure:
    """A number other than a score, from a method's diagnostics: its name, scale and rounding."""

    name: str
    scale: float
    digits: int
    meaning: str


MEASURES = {
    "memory": Measure("memory", 1, 2, "bytes that the method keeps during training beyond Full FT's, in float32 copies "
                      "of the tuned weights"),
    "peak": Measure("peak", 1, 2, "most bytes held at once by the method's own work, during a step or the merge, in "
                    "the same unit"),
    "learnable": Measure("ratio %", 100, 1, "share of the tuned weights that differ from the base at the end"),
    "step_time": Measure("time", 1, 2, "time relative to Full FT's: of a training step; for a post-hoc method, of "
                         "training and merge"),
    "rms_delta": Measure("rms", 1000, 2, "root mean square change of the tuned weights, times 1000"),
    "restored": Measure("restored %", 100, 1, "share of the tuned weights that equal the base at the end"),
    "mask_flips": Measure("flips %", 100, 1, "share of the mask that changed between the last two logged masks (10 "
                          "steps apart, fewer at the end), estimated from at most 1024 elements of each tensor"),
}
ADAPTER_RATIO = "ratio %: what it trains, with the projector, as a share of the tuned weights"


@dataclass(frozen=True)
class RowResult:
    """One method on one model and target, as the store has it.

    Attributes:
        model: model id.
        model_name: as printed.
        method: method id.
        method_name: as printed.
        target: id of the target dataset.
        target_name: as printed.
        items: dataset id -> training seed -> item scores. A dataset or seed that failed or is incomplete is
            left out.
        seeds: the requested seeds.
        tuned: False for the untuned model, which is never marked as best.
        diagnostics: training seed -> the method's last diagnostics and other `MEASURES`.
        protocol: dataset id -> how it was evaluated, see `protocol`.
        problems: one sentence per failed or missing cell.
        paper: metric or measure -> the paper's number, where the two can be compared.
        reference: id of the method to compare with.
        cells: ids of the finished cells that the numbers come from.
        older: training seed -> the stages that older code made; such a row is marked.
    """

    model: str
    model_name: str
    method: str
    method_name: str
    target: str
    target_name: str
    items: Mapping[str, stats.ItemsBySeed]
    seeds: tuple[int, ...]
    tuned: bool = True
    diagnostics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    paper: Mapping[str, Published] = field(default_factory=dict)
    reference: str = REFERENCE
    older: Mapping[int, Sequence[str]] = field(default_factory=dict)
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """What a reader must know, one sentence or two; of the best values it says how they are marked where it stands."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A finished table.

    Attributes:
        title: heading.
        upstream: upstream dataset id -> printed name, in column order.
        frame: one line per model, target, method and metric (upstream ids, A_S, A_T, H, O, then the table's
            `MEASURES`) with value, low, high (95 % interval), n (items), seeds, by_seed, reference, delta (from the
            reference, Full FT unless it names another method) with interval and p-values, best (of the tuned
            methods), star (significant), paper, paper_suspect. Missing numbers are NaN.
        notes: what a reader must know, in one or two sentences each.
        shown: the metrics to print, in order; empty for all of the scores.
    """

    title: str
    upstream: Mapping[str, str]
    frame: pd.DataFrame
    notes: tuple[Note, ...]
    shown: tuple[str, ...] = ()

    def texts(self, best: str = "Bold") -> list[str]:
        """Return the notes as printed.

        Args:
            best: how the best values are marked.
        """
        return [f"{best}: {note.text}" if note.best else note.text for note in self.notes]

    def blocks(self) -> list[tuple[str, str, pd.DataFrame]]:
        """Return (model name, target name, lines) for each model and target, in order of appearance."""
        groups = self.frame.groupby(["model", "target"], sort=False)
        return [(block.model_name.iloc[0], block.target_name.iloc[0], block) for _, block in groups]

    def columns(self) -> dict[str, str]:
        """Return metric -> printed name, in column order."""
        scores = {**self.upstream, **AVERAGES}
        names = {**scores, **{metric: measure.name for metric, measure in MEASURES.items()}}
        return {metric: names[metric] for metric in self.shown or scores}

    def compared(self) -> list[str]:
        """Return the metrics with an arrow: the averages of both sides, H and O, of those printed."""
        return [metric for metric in self.columns() if metric in ("H", "O")]

    def paper_metrics(self) -> list[str]:
        """Return the printed metrics that have a column for the paper's number: H, and all that the paper gives."""
        given = set(self.frame.loc[self.frame["paper"].notna(), "metric"])
        # The paper's large tables have room for H only; their CSV has every number.
        return [name for name in self.columns() if name == "H" or (self.shown and name in given)]


def protocol(spec: DatasetSpec, split: str) -> str:
    """Describe how a dataset is evaluated, in one line.

    Args:
        spec: the dataset.
        split: train, validation or test.

    Returns:
        Metric, official name of the split, prompt, answer length and stop rule.
    """
    prompt = spec.prompt.replace("\n", "\\n")
    official = spec.splits.get(split) or split
    stop = "".join(f", up to {word!r}" for word in spec.stop)
    return (
        f'{METRICS[spec.metric]}; {split} split ({official}); prompt "{prompt}"; '
        f"at most {spec.max_new_tokens} new tokens, greedy{stop}"
    )


@dataclass(frozen=True)
class _Evaluated:
    """A row with its numbers; `sample` is None where a test set is missing."""

    row: RowResult
    seeds: tuple[int, ...]
    sample: stats.Sample | None
    intervals: dict[str, stats.Interval]
    n: dict[str, int]


def whole_seeds(row: RowResult, upstream: Sequence[str]) -> set[int]:
    """Return the training seeds of a row that have all test sets."""
    return set.intersection(*(set(row.items.get(name, {})) for name in (*upstream, row.target)))


def resampled(
    row: RowResult, seeds: Iterable[int], upstream: Sequence[str], draws: int = 2000, seed: int = 0
) -> stats.Sample:
    """Return the bootstrap sample of a row over some of its `whole_seeds`.

    Args:
        row: the row.
        seeds: training seeds.
        upstream: ids of the source sets.
        draws: bootstrap draws.
        seed: bootstrap seed.
    """
    names, chosen = (*upstream, row.target), sorted(seeds)
    items = {name: {one: row.items[name][one] for one in chosen} for name in names}
    return stats.resample(items, row.target, upstream, draws, seed)


def _evaluate(row: RowResult, upstream: Sequence[str], draws: int, seed: int) -> _Evaluated:
    """Compute a row's numbers over the seeds that have all test sets, or of single test sets if none has."""
    names = [*upstream, row.target]
    if seeds := sorted(whole_seeds(row, upstream)):
        sample = resampled(row, seeds, upstream, draws, seed)
        return _Evaluated(row, tuple(seeds), sample, stats.intervals(sample), sample.n)
    present = {name: row.items[name] for name in names if row.items.get(name)}
    alone = {name: stats.dataset_interval(name, by_seed, draws, seed) for name, by_seed in present.items()}
    if row.target in alone:
        alone["A_T"] = alone[row.target]
    return _Evaluated(row, (), None, alone, {name: _size(by_seed) for name, by_seed in present.items()})


def _paired(one: _Evaluated, other: _Evaluated, upstream: Sequence[str]) -> tuple[stats.Sample, stats.Sample] | None:
    """Return the samples of two rows over the training seeds that both have; None if they have none.

    An untuned model has no seed, and that of a user's own checkpoint is unknown: their rows pair with any.
    """
    if one.sample is None or other.sample is None:
        return None
    if one.seeds == other.seeds or not (_seeded(one) and _seeded(other)):
        return one.sample, other.sample
    common = set(one.seeds) & set(other.seeds)
    if not common:
        return None
    how = (common, upstream, len(one.sample.draws["H"]), one.sample.draw_seed)
    return resampled(one.row, *how), resampled(other.row, *how)


def _seeded(item: _Evaluated) -> bool:
    """Whether the seed of a row is that of its training."""
    return item.row.tuned and not item.row.method.startswith(PREFIX)


def _size(by_seed: stats.ItemsBySeed) -> int:
    return len(next(iter(by_seed.values())))


def _lines(
    found: _Evaluated, metrics: Iterable[str], reference: _Evaluated | None, upstream: Sequence[str]
) -> list[dict]:
    """Return the frame's lines of one row."""
    row, sample = found.row, found.sample
    pair = _paired(found, reference, upstream) if reference is not None and reference is not found else None
    lines = []
    for metric in metrics:
        interval = found.intervals.get(metric)
        line = {
            "model": row.model, "model_name": row.model_name,
            "target": row.target, "target_name": row.target_name,
            "method": row.method, "method_name": row.method_name, "older_code": bool(row.older), "tuned": row.tuned,
            "metric": metric,
            "value": interval and interval.value, "low": interval and interval.low,
            "high": interval and interval.high, "n": found.n.get(row.target if metric == "A_T" else metric),
            "seeds": " ".join(map(str, found.seeds)), "by_seed": "",
            "reference": row.reference if reference is not None and reference is not found else "",
            "delta": None, "delta_low": None, "delta_high": None, "delta_error": None, "p": None,
            "paper": row.paper[metric].value if metric in row.paper else None,
            "paper_suspect": row.paper[metric].suspect if metric in row.paper else "", "cells": " ".join(row.cells),
        }
        if metric in MEASURES:
            line["value"] = _mean(row, metric)
        elif sample is not None:
            line["by_seed"] = " ".join(f"{sample.by_seed[seed][metric]:.4f}" for seed in found.seeds)
            if pair is not None:
                difference = stats.paired_difference(*pair, metric)
                line |= {
                    "delta": difference.value, "delta_low": difference.low, "delta_high": difference.high,
                    "delta_error": difference.error, "p": difference.p,
                }
        lines.append(line)
    return lines


def build(
    title: str,
    rows: Sequence[RowResult],
    upstream: Mapping[str, str],
    notes: Sequence[str] = (),
    draws: int = 2000,
    seed: int = 0,
    shown: Sequence[str] = (),
) -> Table:
    """Compute a table.

    Args:
        title: heading.
        rows: in print order; blocks of one model and target are formed from them.
        upstream: upstream dataset id -> printed name.
        notes: further sentences, printed first.
        draws: bootstrap draws.
        seed: bootstrap seed.
        shown: the metrics to print, upstream ids, averages and `MEASURES`; all scores if empty.

    Returns:
        The table. Differences are taken from the row of the method that a row names as its reference (full_ft
        unless the table says otherwise) in the same block; stars are for H of the tuned methods, Holm-corrected
        over the whole table.

    Raises:
        UserError: rows of one block were scored on different items.
    """
    found = [_evaluate(row, list(upstream), draws, seed) for row in rows]
    places = {(item.row.model, item.row.target, item.row.method): item for item in found}
    references = {key[:2]: item for key, item in places.items() if key[2] == REFERENCE}
    metrics = [*upstream, *AVERAGES, *(metric for metric in shown if metric in MEASURES)]
    lines = []
    for item in found:
        other = places.get((item.row.model, item.row.target, item.row.reference))
        lines += _lines(item, metrics, other, list(upstream))
    frame = pd.DataFrame(lines)
    numbers = ["value", "low", "high", "delta", "delta_low", "delta_high", "delta_error", "p", "paper"]
    frame[numbers] = frame[numbers].astype(float)
    frame["n"] = frame["n"].astype("Int64")

    # Printed values decide, so that equal numbers are both marked.
    rounded = frame["value"].round(2)
    keys = [frame["model"], frame["target"], frame["metric"]]
    top = rounded.where(frame["tuned"]).groupby(keys).transform("max")
    frame["best"] = frame["tuned"] & (rounded == top) & ~frame["metric"].isin(list(MEASURES))

    tested = frame.index[(frame["metric"] == "H") & frame["tuned"] & frame["p"].notna()]
    frame["p_holm"] = pd.Series(stats.holm(frame.loc[tested, "p"].tolist()), index=tested, dtype=float)
    frame["star"] = frame["p_holm"] < LEVEL

    before = [
        *notes,
        *_missing_notes(found),
        *_older_notes(rows),
        *([SEEN] if any(row.method_name.endswith(SEES_SOURCES) for row in rows) else []),
        *_count_notes(found, upstream),
        *_seed_notes(found),
    ]
    after = [
        *_test_notes(len(tested), frame, draws),
        *_resolvable_notes(frame),
        *_penalty_notes(found, references),
        *_measure_notes(shown, {item.row.method for item in found}),
        *_paper_notes(frame),
        *_protocol_notes(rows, upstream),
    ]
    below = (*map(Note, before), *_best_notes(frame), *map(Note, after))
    return Table(title, dict(upstream), frame, below, tuple(shown))


def _place(row: RowResult) -> str:
    return f"{row.model_name}, {row.target_name}"


def _missing_notes(found: Sequence[_Evaluated]) -> list[str]:
    """Name every missing number and the reason."""
    notes = []
    for item in found:
        row = item.row
        where = f"{row.method_name} ({_place(row)})"
        lost = [seed for seed in row.seeds if seed not in item.seeds]
        if not lost and not row.problems:
            continue
        which = "no complete result" if not item.seeds else f"seed {', '.join(map(str, lost))} left out"
        reasons = "; ".join(" ".join(text.split()).rstrip(".") for text in row.problems)
        notes.append(f"Missing: {where}: {which}: {reasons or 'not run or not finished'}.")
    return notes


def _older_notes(rows: Sequence[RowResult]) -> list[str]:
    """Name the rows that older code made, and which of their stages."""
    places: dict[str, list[str]] = {}
    for row in rows:
        for seed, stages in row.older.items():
            seeds = f", seed {seed}" if len(row.seeds) > 1 else ""
            places.setdefault(", ".join(stages), []).append(f"{row.method_name} ({_place(row)}{seeds})")
    return [
        f"{OLDER} older code: the code of {stages} has changed since these numbers were made, run them again to see "
        f"whether they did: {'; '.join(where)}."
        for stages, where in places.items()
    ]


def _count_notes(found: Sequence[_Evaluated], upstream: Mapping[str, str]) -> list[str]:
    """State the number of items of each test set."""
    names = {**upstream, **{item.row.target: item.row.target_name for item in found}}
    counts = {name: sorted({item.n[name] for item in found if name in item.n}) for name in names}
    parts = [f"{names[name]} {' or '.join(map(str, sizes))}" for name, sizes in counts.items() if sizes]
    return [f"Items (n): {', '.join(parts)}."] if parts else []


def _seed_notes(found: Sequence[_Evaluated]) -> list[str]:
    """State the training seeds, and what one seed cannot show."""
    # A user's own checkpoint was trained elsewhere: its row has a seed, but the seed of its training is unknown.
    trained = [item for item in found if _seeded(item)]
    seeds = sorted({seed for item in trained for seed in item.seeds})
    if not seeds:
        return []
    if len(seeds) == 1:
        return [
            f"Training seed: {seeds[0]}. With one seed, intervals and stars cover the choice of test items "
            "only, not another training run."
        ]
    listed = ", ".join(map(str, seeds))
    some = " Where rows have different seeds, differences are over those that both have." if (
        len({item.seeds for item in trained if item.seeds}) > 1
    ) else ""
    return [f"Training seeds: {listed}; values are means, intervals resample seeds and image groups.{some}"]


def _best_notes(frame: pd.DataFrame) -> list[Note]:
    """Explain the mark of the best values, and the arrows; nothing in a table of one untuned model."""
    arrows = f" Arrows: difference from {_reference(frame)}." if any(frame["reference"]) else ""
    if not arrows and REFERENCE not in set(frame["method"]):
        return []
    return [Note(f"best of the tuned methods.{arrows}", best=True)]


def _reference(frame: pd.DataFrame) -> str:
    """Return what the methods are compared with, in words."""
    return "the method named in `vs`" if {*frame["reference"]} - {"", REFERENCE} else "Full FT"


def _test_notes(comparisons: int, frame: pd.DataFrame, draws: int) -> list[str]:
    """Explain stars."""
    what, notes = _reference(frame), []
    whose = "Full FT's" if what == "Full FT" else f"{what} (its H)"
    if comparisons:
        notes.append(
            f"*: H differs from {whose}, p < {LEVEL} (two-sided paired bootstrap, {draws} draws; "
            f"Holm-corrected over {counted(comparisons, 'comparison')} in this table)."
        )
        if comparisons * 2 / (draws + 1) >= LEVEL:
            notes.append(f"{draws} draws are too few for a star among so many comparisons.")
    return notes


def _resolvable_notes(frame: pd.DataFrame) -> list[str]:
    """State which difference in H these test sets can show, per block."""
    parts = []
    tested = frame[(frame["metric"] == "H") & frame["tuned"] & frame["delta_error"].notna()]
    for (model, target), block in tested.groupby(["model_name", "target_name"], sort=False):
        differences = [stats.Difference(0, 0, 0, error, 1) for error in block["delta_error"]]
        parts.append(f"{model}, {target} {stats.smallest_resolvable(differences):.2f}")
    if not parts:
        return []
    what = "Smallest resolvable difference in H (80 % power, 5 % level, one comparison)"
    return [f"{what}: {'; '.join(parts)}."]


def _mean(row: RowResult, measure: str) -> float | None:
    """Return a measure of a row, mean over the seeds that have it."""
    found = [values[measure] for values in row.diagnostics.values() if measure in values]
    return sum(found) / len(found) if found else None


def _penalty_notes(found: Sequence[_Evaluated], references: Mapping) -> list[str]:
    """Name penalties that leave the weights as far from the start as Full FT does."""
    places: dict[str, list[str]] = {}
    for item in found:
        row = item.row
        reference = references.get((row.model, row.target))
        if row.method not in PENALTIES or reference is None:
            continue
        own, full = _mean(row, "rms_delta"), _mean(reference.row, "rms_delta")
        if own is not None and full and abs(own - full) <= SAME_DELTA * full:
            places.setdefault(row.method_name, []).append(f"{_place(row)}: {own:.4g} and {full:.4g}")
    return [
        f"{method}: the penalty hardly acts at this strength, its root mean square weight change is within "
        f"{SAME_DELTA * 100:.0f} % of Full FT's ({'; '.join(where)})."
        for method, where in places.items()
    ]


def _measure_notes(shown: Sequence[str], methods: Collection[str]) -> list[str]:
    """Explain the columns that are not scores."""
    parts = [f"{MEASURES[name].name}: {MEASURES[name].meaning}" for name in shown if name in MEASURES]
    if "learnable" in shown and any(name in METHODS and METHODS[name].kind == "adapter" for name in methods):
        parts.append(f"of an adapter, {ADAPTER_RATIO}")
    return [f"Columns: {'; '.join(parts)}; '-' where it was not measured or does not exist."] if parts else []


def _paper_notes(frame: pd.DataFrame) -> list[str]:
    """Explain the column of the paper's numbers, and name those that are not targets."""
    paper = frame[frame["paper"].notna()]
    notes = []
    if not (paper["metric"] == "H").any():
        notes = ["Paper H: '-', the paper has no number at this scale to compare with."]
    if not paper.empty:
        notes.append("Paper: as printed in the paper, with ours minus the paper's; '-' where it has none.")
    suspect = paper[paper["paper_suspect"] != ""]
    if not suspect.empty:
        places = dict.fromkeys(f"{line.method_name}, {line.target_name}" for line in suspect.itertuples())
        notes.append(f"? marks numbers of the paper that rest on cells which look copied ({'; '.join(places)}): "
                     "no targets.")
    return notes


def _protocol_notes(rows: Sequence[RowResult], upstream: Mapping[str, str]) -> list[str]:
    """State the protocol of each dataset, and warn where rows were evaluated differently."""
    names = {**upstream, **{row.target: row.target_name for row in rows}}
    notes = []
    for dataset, name in names.items():
        used = sorted({row.protocol[dataset] for row in rows if dataset in row.protocol})
        if len(used) > 1:
            notes.append(f"{name}: rows of this table were evaluated DIFFERENTLY: {' | '.join(used)}.")
        elif used:
            notes.append(f"{name}: {used[0]}.")
    return notes
