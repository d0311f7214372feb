"""What predicts forgetting: rank correlations of the A^S that cells lose with cheap measures of the same cells."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark.core.errors import UserError, counted, did_you_mean
from benchmark.reporting import lettering, outputs
from benchmark.spec import CellSpec, Faults, answering_dtype, input_form, is_tuned
from benchmark.store import provenance
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cells import Store, read_cell
from benchmark.store.scores import read_scores
from benchmark.studies import drift
from eval.format import MAX_WORDS
from eval.stats import LEVEL

LOST = "forgetting"
RIGHT = 0.5  # an item is right from this score on
FEWEST = 4   # cells of a group with a rank correlation
MISSING = float("nan")


@dataclass(frozen=True)
class Measure:
    """A measure of a tuned cell.

    Attributes:
        name: as printed.
        unit: of its numbers.
        log: whether its axis is logarithmic.
        of_scores: whether it is computed from the source sets' scores, as forgetting itself is.
    """

    name: str
    unit: str = ""
    log: bool = False
    of_scores: bool = False


MEASURES = {
    "kl": Measure("KL(tuned || base), target", "nats", log=True),
    "kl_of_base": Measure("KL(base || tuned), target", "nats", log=True),
    "cka_lost": Measure("1 - CKA, source", log=True),
    "distance": Measure("distance of the weights", log=True),
    "changed": Measure("changed weights", "%"),
    "form_lost": Measure("answers in another form", "%"),
    "E": Measure("E, learned", "points"),
    "wrong_now": Measure("right to wrong", "% of items", of_scores=True),
    "right_now": Measure("wrong to right", "% of items", of_scores=True),
    "O": Measure("E + F", "points", of_scores=True),
}


# ---------------------------------------------------------------------------------------------------------------
# One line per cell


def choose(store: Store, profile: str, wanted: Mapping[str, Iterable[str]]) -> list[Path]:
    """Return the folders of the finished cells of a profile.

    Args:
        store: the results.
        profile: id.
        wanted: models, methods, targets, seeds -> their values; an axis that is left out has all. Untuned models are
            always there.

    Raises:
        UserError: no finished cell of the profile has one of these values.
    """
    sets = {axis: set(values) for axis, values in wanted.items()}
    seen: dict[str, set[str]] = {axis: set() for axis in sets}
    found = []
    for folder in store.finished():
        cell = read_cell(folder)
        place = {"models": cell.model.id, "methods": cell.method.id, "targets": cell.target, "seeds": str(cell.seed)}
        if not is_tuned(cell):
            place = {"models": cell.model.id}
        if cell.profile != profile or cell.eval.examples:  # the same model, asked in another way
            continue
        for axis in place.keys() & seen.keys():
            seen[axis].add(str(place[axis]))
        if all(place[axis] in sets[axis] for axis in place.keys() & sets.keys()):
            found.append(folder)
    faults = Faults()
    for axis, values in sets.items():
        for value in sorted(values - seen[axis]) if seen[axis] else ():
            faults.add(f"{axis}={value}: no finished cell has it.{did_you_mean(value, sorted(seen[axis]))}")
    faults.stop()
    return found


def collect(folders: Sequence[Path]) -> tuple[pd.DataFrame, list[str]]:
    """Return the measures of every tuned cell whose untuned model was scored on the same items.

    Args:
        folders: of finished cells, those of the untuned models among them.

    Returns:
        (frame, notes). A line of the frame has cell, model, model_name, target, target_name, method, method_name, seed;
        forgetting, A^S of the untuned model less A^S of the cell; E = A^T less that of the untuned model, F =
        -forgetting and O = E + F (survey, arXiv 2503.04543), in points; and the other columns of `MEASURES`, missing
        where they were not measured.

    Raises:
        UserError: a file of a cell is damaged.
    """
    cells = {folder: read_cell(folder) for folder in folders}
    untuned = {_place(cell, target.id): folder for folder, cell in cells.items() if not is_tuned(cell)
               for target in cell.targets}
    items: dict[tuple[Path, str], dict[str, float]] = {}

    def scores_of(folder: Path, dataset: str, keep: bool) -> dict[str, float]:
        if (folder, dataset) in items:
            return items[folder, dataset]
        found = {item.item_id: item.score for item in read_items(folder, dataset)}
        if keep:
            items[folder, dataset] = found
        return found

    @cache
    def form_of(folder: Path, names: tuple[str, ...]) -> float:
        return float(np.mean([other_form(read_answers(folder, name).values()) for name in names]))

    lines, alone, older = [], 0, 0
    for folder, cell in cells.items():
        if not is_tuned(cell):
            continue
        base = untuned.get(_place(cell, cell.target))
        if base is None:
            alone += 1
            continue
        names = tuple(dataset.id for dataset in cell.upstream)
        pairs = [(scores_of(base, name, True), scores_of(folder, name, False)) for name in names]
        if any(before.keys() != after.keys() for before, after in pairs):
            alone += 1
            continue
        older += bool(provenance.older_code(cell, folder))
        about = {
            "cell": folder.name, "model": cell.model.id, "model_name": cell.model.name, "target": cell.target,
            "target_name": cell.dataset(cell.target).name, "method": cell.method.id,
            "method_name": outputs.name_of(cell.method.id), "seed": cell.seed,
        }
        lines.append(about | _scored(read_scores(base), read_scores(folder), cell.target) | flips(pairs)
                     | {"form_lost": form_of(folder, names) - form_of(base, names)}
                     | _drifted(drift.recorded(folder)))
    notes = []
    if alone:
        notes.append(f"Left out: {counted(alone, 'cell')} whose untuned model was not scored on the same items.")
    if older:
        notes.append(f"Older code made {counted(older, 'cell')}.")
    return pd.DataFrame(lines), notes


def _place(cell: CellSpec, target: str) -> tuple[str, ...]:
    """Return what a tuned cell and its untuned model have in common."""
    sets = [*cell.upstream, cell.dataset(target)]
    how = (cell.model.checkpoint, input_form(cell.model), cell.dtype, answering_dtype(cell), cell.eval.split)
    return cell.model.id, repr(how), str(cell.eval.limit), repr(sets)


def _scored(before: Mapping[str, Any], after: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Return what two scores.json say."""
    (kept, learned), (start, start_learned) = (
        tuple(scores["averages"][target][name]["value"] for name in ("A_S", "A_T")) for scores in (after, before)
    )
    gain, lost = learned - start_learned, start - kept
    return {LOST: lost, "E": gain, "F": -lost, "O": gain - lost}


def other_form(answers: Iterable[str]) -> float:
    """Return the share of answers in percent that are in a form which no source set asks for.

    Args:
        answers: to questions of a source set. More than three words are the form of a caption, a single capital letter,
            with or without a full stop, is that of a lettered option.
    """
    other = [len(text.split()) > MAX_WORDS or re.fullmatch(r"[A-Z]\.?", text.strip()) is not None for text in answers]
    return 100 * float(np.mean(other))


def flips(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> dict[str, float]:
    """Return the share of items that were right and are wrong now, and the reverse, in percent: means over source sets.

    Args:
        pairs: of each source set, (item id -> score of the untuned model, the same of the tuned one).
    """
    shares = []
    for before, after in pairs:
        was, now = (np.array([scores[name] for name in before]) >= RIGHT for scores in (before, after))
        shares.append((np.mean(was & ~now), np.mean(~was & now)))
    wrong, right = 100 * np.mean(shares, axis=0)
    return {"wrong_now": float(wrong), "right_now": float(right)}


def _drifted(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the measures of a drift.json."""
    known = {name: float(measured.get(name, MISSING)) for name in ("kl", "kl_of_base", "distance", "changed")}
    cka = float(np.mean(measured["cka"])) if "cka" in measured else MISSING
    return known | {"cka_lost": 1 - cka, "changed": 100 * known["changed"]}


# ---------------------------------------------------------------------------------------------------------------
# Rank correlations


def ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the ranks of values that occur several times; equal values share their mean rank.

    Args:
        values: (n,).
        counts: how often each value occurs in each draw, (draws, n).

    Returns:
        From 1, (draws, n); meaningless where the count is 0.
    """
    distinct, place = np.unique(values, return_inverse=True)
    together = counts @ (place[:, None] == np.arange(len(distinct)))
    return (together.cumsum(axis=1) - (together - 1) / 2)[:, place]


def spearman(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation in each draw, (draws,); not a number where one of them is constant.

    Args:
        first: (n,).
        second: (n,).
        counts: how often each pair occurs in each draw, (draws, n).
    """
    total = counts.sum(axis=1, keepdims=True)
    x, y = (ranked - (ranked * counts).sum(axis=1, keepdims=True) / total
            for ranked in (ranks(first, counts), ranks(second, counts)))
    products = [(counts * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y))]
    spread = np.sqrt(products[1] * products[2])
    return np.divide(products[0], spread, out=np.full(len(counts), np.nan), where=spread > 1e-9)


def correlations(frame: pd.DataFrame, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Correlate forgetting with every measure, with 95 % bootstrap intervals.

    Within: Spearman's correlation in each group of cells of one model and target, then the mean over groups. Pooled:
    over all cells. A draw takes groups with replacement, and in each of them methods with replacement; a method's cells
    (its seeds and strengths) stay together, because they are not independent.

    Args:
        frame: from `collect`.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A line per measure that enough cells have, the strongest within first: measure, name, cells, groups; within and
        pooled, each with _low and _high.
    """
    lines = []
    for measure, about in MEASURES.items():
        known = frame[np.isfinite(frame[measure]) & np.isfinite(frame[LOST])]
        groups = [group for _, group in known.groupby(["model", "target"], sort=False) if len(group) >= FEWEST]
        if groups:
            within, pooled = _resampled(groups, measure, draws, np.random.default_rng(seed))
            lines.append({"measure": measure, "name": about.name, "cells": sum(map(len, groups)),
                          "groups": len(groups)} | bounds("within", within) | bounds("pooled", pooled))
    found = pd.DataFrame(lines)
    return found if found.empty else found.sort_values("within", key=abs, ascending=False, kind="stable",
                                                       ignore_index=True)


def _resampled(
    groups: Sequence[pd.DataFrame], measure: str, draws: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return both correlations, the value itself first and then the draws."""
    values = [(group[measure].to_numpy(float), group[LOST].to_numpy(float)) for group in groups]
    methods = [pd.factorize(group["method"])[0] for group in groups]
    taken = random.integers(0, len(groups), (draws, len(groups)))
    totals = [np.zeros((draws, len(group))) for group in groups]
    within = np.full((draws, len(groups)), np.nan)
    for slot in range(len(groups)):
        for place, (pair, method) in enumerate(zip(values, methods, strict=True)):
            rows = np.flatnonzero(taken[:, slot] == place)
            number = method.max() + 1
            drawn = random.integers(0, number, (len(rows), number))
            counts = (drawn[:, :, None] == method).sum(axis=1).astype(float)
            within[rows, slot] = spearman(*pair, counts)
            totals[place][rows] += counts
    whole = np.concatenate([pair[0] for pair in values]), np.concatenate([pair[1] for pair in values])
    every = np.ones((1, len(whole[0])))
    itself = np.concatenate([spearman(*pair, np.ones((1, len(pair[0])))) for pair in values])
    return (
        np.append(_mean(itself[None]), _mean(within)),
        np.append(spearman(*whole, every), spearman(*whole, np.concatenate(totals, axis=1))),
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row over its numbers; not a number if it has none."""
    known = np.isfinite(values)
    return np.divide(np.where(known, values, 0).sum(axis=1), known.sum(axis=1),
                     out=np.full(len(values), np.nan), where=known.any(axis=1))


def bounds(name: str, values: np.ndarray) -> dict[str, float]:
    """Return a value, which comes first, and the interval of its draws, as <name>, <name>_low and <name>_high."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (math.nan, math.nan)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


# ---------------------------------------------------------------------------------------------------------------
# Text


def markdown(found: pd.DataFrame, title: str, notes: Iterable[str]) -> str:
    """Return the correlations as a Markdown table.

    Args:
        found: from `correlations`.
        title: heading.
        notes: lines below it.

    Raises:
        UserError: there is nothing to correlate.
    """
    if found.empty:
        raise UserError(
            f"No model and target has {FEWEST} finished cells and a finished zero_shot to compare them with. Run a "
            "table first, for example table5."
        )
    rows = [["measure", "within models and targets", "over all cells", "cells", "groups"]]
    for line in found.to_dict("records"):
        mark = " *" if MEASURES[line["measure"]].of_scores else ""
        rows.append([lettering.markdown(line["name"]) + mark, _text(line, "within"), _text(line, "pooled"),
                     str(line["cells"]), str(line["groups"])])
    below = [
        "Spearman's rank correlation with forgetting (A^S of the untuned model less A^S of the cell), with 95 % "
        "intervals: draws of groups (a model and a target), and of methods in each. docs/measurement.md has the "
        "definitions.",
        "* computed from the same source scores as forgetting: no independent predictor.", *notes,
    ]
    return "\n".join([f"# {title}", "", *lettering.table(rows), "", *(f"{line}  " for line in below), ""])


def _text(line: Mapping[str, Any], name: str) -> str:
    if not math.isfinite(line[name]):
        return "constant"
    return f"{line[name]:+.2f} ({line[f'{name}_low']:+.2f} to {line[f'{name}_high']:+.2f})"
