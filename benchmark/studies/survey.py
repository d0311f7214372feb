"""Every method at equal learning: the curves of conf/figure/survey.yaml, read by the rule of docs/survey.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from benchmark.config.compose import AXES, GROUPS, RUN_KEYS
from benchmark.config.overrides import hydra_value, without
from benchmark.config.request import Request, check_used, request
from benchmark.core.errors import UserError, did_you_mean
from benchmark.planning.plan import NAMELESS, Planned
from benchmark.reporting import lettering, outputs
from benchmark.reporting.tables import SEEN, SEES_SOURCES, resampled, whole_seeds
from benchmark.spec import ModelSpec, sees_sources
from benchmark.store.cells import Store
from eval import stats
from eval.equal_learning import area, kept

REFERENCE, UNTUNED = "full_ft", "zero_shot"
RATE = "train.learning_rate"
REACHED = 0.95  # share of the bootstrap draws that must reach a level


@dataclass(frozen=True)
class Row:
    """A row of the survey: a method with settings of its own, over five strengths.

    Args:
        id: in conf/figure/survey.yaml.
        name: as printed.
        group: heading.
        method: id of the method.
        usual: its usual learning rate, in units of the model's.
        key: what is swept; None: the learning rate.
        values: of the key, or factors of the usual learning rate; first the one that moves the model least.
        settings: overrides that all points share.
        to_full_ft: whether the curve ends at Full FT.
    """

    id: str
    name: str
    group: str
    method: str
    usual: float
    key: str | None
    values: tuple[float, ...]
    settings: Mapping[str, Any]
    to_full_ft: bool


@dataclass(frozen=True)
class Survey:
    """What a command asks for: rows, their requests by (model, row), and the untuned models with Full FT."""

    rows: tuple[Row, ...]
    levels: tuple[float, ...]
    curves: Mapping[tuple[str, str], Request]
    base: Request

    @property
    def everything(self) -> Request:
        """All cells, each once."""
        return replace(self.base, grid=tuple(
            entry for part in (self.base, *self.curves.values()) for entry in part.grid
        ))


def rows_of(figure: Mapping[str, Any], names: Sequence[str] = ()) -> tuple[Row, ...]:
    """Return the rows of the survey, Full FT first.

    Args:
        figure: content of conf/figure/survey.yaml.
        names: ids of rows, or the user's own methods (module:Class); empty for all rows of the file. Full FT is always
            there, because every level is read off it.

    Raises:
        UserError: an unknown name.
    """
    rates = tuple(figure["rates"])

    def row(name: str, group: str, entry: Mapping[str, Any]) -> Row:
        method = entry.get("method", name)
        return Row(
            name, entry.get("name") or outputs.name_of(method), group, method, entry.get("usual", 1.0),
            entry.get("key"), tuple(entry.get("values") or rates), entry.get("set") or {},
            entry.get("to_full_ft", False),
        )

    known = {name: row(name, group, entry or {}) for group, part in figure["groups"].items()
             for name, entry in part.items()}
    if not names:
        return tuple(known.values())
    for name in names:
        if name not in known and ":" not in name:
            raise UserError(f"The survey has no row {name!r}.{did_you_mean(name, known)} Your own: module:Class.")
    return tuple(known.get(name) or row(name, "Your own", {}) for name in dict.fromkeys((REFERENCE, *names)))


def ask(figure: Mapping[str, Any], overrides: Sequence[str]) -> Survey:
    """Return the cells of the survey.

    Args:
        figure: content of conf/figure/survey.yaml.
        overrides: of the command line; methods= names rows.

    Raises:
        UserError: wrong overrides, or an unknown row.
    """
    named = [name for item in overrides if AXES.get(item.partition("=")[0]) == "methods"
             for name in item.partition("=")[2].strip("[]").split(",") if name]
    given = without(overrides, ("methods", "method"))
    if wrong := [item for item in given if item.startswith((f"{RATE}=", "train.projector_learning_rate="))]:
        raise UserError(f"{wrong[0]}: the survey sets the rates itself (docs/survey.md). Leave it out.")
    have = {AXES.get(item.partition("=")[0]) for item in given}
    fixed = [f"{axis}={','.join(map(str, figure[axis]))}" for axis in ("targets", "seeds") if axis not in have]
    rows, plain = rows_of(figure, named), [*fixed, *without(given, ("models", "model"))]
    models = [item for item in given if AXES.get(item.partition("=")[0]) == "models"]
    if not models:
        profile = request([item for item in given if item.startswith("profile=")], grid=False).profile
        models = [f"models={','.join(profile.models)}"]
    base = request([*plain, *models, f"methods={UNTUNED},{REFERENCE}"])
    curves = {(model.id, row.id): _curve(row, model, plain) for model in base.models for row in rows}
    check_used([base, *curves.values()])
    seeing = {row for (_, row), curve in curves.items() if any(map(sees_sources, curve.cells))}
    rows = tuple(replace(row, name=f"{row.name} {SEES_SOURCES}") if row.id in seeing else row for row in rows)
    return Survey(rows, tuple(figure["levels"]), curves, base)


def part_of(figure: Mapping[str, Any], overrides: Sequence[str], survey: Survey) -> dict[str, str]:
    """Return how the command differs from the whole survey, models aside; see `slices.differences`."""
    found = {}
    targets = dict.fromkeys(cell.target for cell in survey.base.cells if cell.target)
    if set(targets) != set(figure["targets"]):
        found["targets"] = ", ".join(targets)
    if {row.id for row in survey.rows} != {row.id for row in rows_of(figure)}:
        found["methods"] = ", ".join(row.id for row in survey.rows)
    given = {item.partition("=")[0]: item.partition("=")[2] for item in overrides}
    elsewhere = {*AXES, *NAMELESS, *RUN_KEYS, *GROUPS}
    return found | {key: value for key, value in given.items() if key not in elsewhere}


def _curve(row: Row, model: ModelSpec, overrides: Sequence[str]) -> Request:
    if row.key:
        points = [f"{row.key}={','.join(map(str, row.values))}"]
    else:
        rates = [float(f"{model.learning_rate * row.usual * value:.6g}") for value in row.values]
        # The projector's rate follows its own usual one: the ratio to the model's rate undoes `usual`.
        projector = float(f"{model.projector_learning_rate / row.usual:.6g}")
        points = [f"{RATE}={','.join(map(repr, rates))}", f"model.projector_learning_rate={projector!r}"]
        points = points if row.usual != 1 else points[:1]
    settings = [f"{key}={hydra_value(value)}" for key, value in row.settings.items()]
    return request([*overrides, f"models={model.id}", f"methods={row.method}", *settings, *points], optional=True)


# ---------------------------------------------------------------------------------------------------------------
# Readings


def measure(survey: Survey, store: Store, plan: Sequence[Planned]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read every finished curve.

    Args:
        survey: from `ask`.
        store: the results.
        plan: of survey.everything.

    Returns:
        (readings, points). A line of readings has model, model_name, target, target_name, row, name, group, points (the
        number of finished ones); kept_X, kept_X_low, kept_X_high and the paired difference delta_X with its interval,
        for every level X in percent, missing where it is not reached; area and H (the best) with intervals, delta_area;
        best_at, the strength of the best H. A line of points has the same names and strength, A_S, A_T, H with
        intervals, in the order of the curve; where it ends at Full FT, that point has no strength. Rows without a
        finished point, and targets without Full FT or the untuned model, are left out.
    """
    readings: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    finished = _Finished(survey, store, plan)
    for model in survey.base.models:
        for target in dict.fromkeys(cell.target for cell in survey.base.cells if cell.target):
            untuned, tuned = (finished.sample(survey.base, model.id, target, name) for name in (UNTUNED, REFERENCE))
            if untuned is None or tuned is None:
                continue
            about: dict[str, Any] = {"model": model.id, "model_name": model.name, "target": target,
                     "target_name": survey.base.datasets[target].name}
            curves = {row.id: finished.curve(row, model.id, target) for row in survey.rows}
            read = {
                row.id: _read(row, curves[row.id], untuned, tuned, survey.levels)
                for row in survey.rows if curves[row.id]
            }
            for row in survey.rows:
                if row.id not in read:
                    continue
                names = about | {"row": row.id, "name": row.name, "group": row.group}
                readings.append(names | {"points": len(curves[row.id])} | _line(read[row.id], read.get(REFERENCE)))
                ends = [(float("nan"), tuned)] if row.to_full_ft else []
                points += [names | {"strength": value} | _point(sample) for value, sample in [*curves[row.id], *ends]]
            points.append(about | {"row": UNTUNED, "name": "Zero-shot", "group": "", "strength": 0.0} | _point(untuned))
    return pd.DataFrame(readings), pd.DataFrame(points)


class _Finished:
    """Bootstrap samples of finished cells, each made once."""

    def __init__(self, survey: Survey, store: Store, plan: Sequence[Planned]) -> None:
        self._survey, self._store, self._plan = survey, store, plan
        self._samples: dict[tuple[str, ...], stats.Sample | None] = {}

    def sample(self, asked: Request, model: str, target: str, method: str) -> stats.Sample | None:
        """Return the sample of one setting over its seeds; None unless all of them are finished."""
        cells = [cell for cell in asked.cells if cell.model.id == model and cell.method.id == method
                 and cell.target in (target, None)]
        rows = [row for row in outputs.build_rows(asked.of(cells), self._plan, self._store) if row.target == target]
        if not rows or len(rows[0].cells) < len({cell.seed for cell in cells}):
            return None
        place = (*rows[0].cells, target)
        if place not in self._samples:
            upstream = [dataset.id for dataset in cells[0].upstream]
            seeds = whole_seeds(rows[0], upstream)
            self._samples[place] = resampled(rows[0], seeds, upstream) if seeds else None
        return self._samples[place]

    def curve(self, row: Row, model: str, target: str) -> list[tuple[float, stats.Sample]]:
        """Return (strength, sample) of a row's finished points, from the one that should move the model least."""
        asked, key = self._survey.curves[model, row.id], row.key or RATE
        found = []
        for value in dict.fromkeys(entry.settings[key] for entry in asked.grid):
            part = replace(asked, grid=tuple(entry for entry in asked.grid if entry.settings[key] == value))
            if (sample := self.sample(part, model, target, row.method)) is not None:
                found.append((float(value), sample))
        return sorted(found, key=lambda point: point[0], reverse=row.values[0] > row.values[-1])


@dataclass(frozen=True)
class _Reading:
    """Readings of a curve, the exact value first and then the draws; the strength of the best H."""

    kept: Mapping[float, np.ndarray]
    area: np.ndarray
    h: np.ndarray
    best_at: float


def _read(
    row: Row, curve: Sequence[tuple[float, stats.Sample]], untuned: stats.Sample, tuned: stats.Sample,
    levels: Sequence[float],
) -> _Reading:
    samples = [untuned, *(sample for _, sample in curve), *([tuned] if row.to_full_ft else [])]
    learned, retained = (np.stack([_with_value(sample, name) for sample in samples]) for name in ("A_T", "A_S"))
    start, end = _with_value(untuned, "A_T"), _with_value(tuned, "A_T")
    heights = {level: kept(learned, retained, start + level * (end - start)) for level in levels}
    own = np.stack([_with_value(sample, "H") for _, sample in curve])
    return _Reading(
        {level: np.where(end > start, height, np.nan) for level, height in heights.items()},
        area(learned, retained, start, end), own.max(axis=0), curve[int(own[:, 0].argmax())][0],
    )


def _with_value(sample: stats.Sample, name: str) -> np.ndarray:
    return np.concatenate([[sample.values[name]], sample.draws[name]])


def _line(reading: _Reading, reference: _Reading | None) -> dict[str, Any]:
    """Return the columns of a reading; differences where Full FT has one too."""
    line: dict[str, Any] = {}
    for level, values in reading.kept.items():
        line |= _interval(f"kept_{level:.0%}".rstrip("%"), values)
    line |= _interval("area", reading.area) | _interval("H", reading.h) | {"best_at": reading.best_at}
    if reference is not None and reference is not reading:
        for level, values in reading.kept.items():
            line |= _interval(f"delta_{level:.0%}".rstrip("%"), values - reference.kept[level])
        line |= _interval("delta_area", reading.area - reference.area)
    return line


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Return a value with its 95 % interval; nothing if too few draws have one."""
    value, draws = values[0], values[1:][np.isfinite(values[1:])]
    if not np.isfinite(value) or len(draws) < REACHED * (len(values) - 1):
        return {}
    low, high = np.quantile(draws, [(1 - stats.LEVEL) / 2, (1 + stats.LEVEL) / 2])
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}


def _point(sample: stats.Sample) -> dict[str, float]:
    return {
        f"{name}{end}": value for name in ("A_S", "A_T", "H")
        for end, value in zip(("", "_low", "_high"), vars(stats.intervals(sample)[name]).values(), strict=True)
    }


# ---------------------------------------------------------------------------------------------------------------
# Text


def markdown(readings: pd.DataFrame, levels: Sequence[float], title: str, notes: Iterable[str] = ()) -> str:
    """Return the survey of one model as Markdown: a table per target, what keeps most at 90 % first.

    Args:
        readings: of one model, see `measure`.
        levels: shares of Full FT's gain.
        title: heading.
        notes: lines below the tables.
    """
    names = [f"{level:.0%}".rstrip("%") for level in levels]
    order = [f"kept_{name}" for name in (names[1:2] or names[:1])] + ["area"]
    lines = [f"# {title}", ""]
    heads = ["method", "group", *(f"kept at {name} %" for name in names), "area", "best H", "time", "memory"]
    for _, block in readings.groupby("target", sort=False):
        ranked = block.reindex(columns=[*dict.fromkeys([*block.columns, *order])])
        ranked = ranked.sort_values(order, ascending=False, na_position="last", kind="stable")
        table = [[
            lettering.markdown(line["name"]), line["group"],
            *(_text(line, f"kept_{name}", f"delta_{name}") for name in names),
            _text(line, "area", "delta_area"), _text(line, "H"),
            *(f"{line[name]:.2f}" if pd.notna(line.get(name)) else "-" for name in ("time", "memory")),
        ] for _, line in ranked.iterrows()]
        lines += [f"## {lettering.markdown(block['target_name'].iloc[0])}", "", *lettering.table([heads, *table]), ""]
    return "\n".join([*lines, *(f"{note}  " for note in notes), ""])


def _text(line: pd.Series, column: str, difference: str = "") -> str:
    """Return a value with its interval, and an arrow if it differs from Full FT's."""
    if pd.isna(line.get(column, np.nan)):
        return "not reached"
    mark = ""
    if difference and not pd.isna(line.get(difference, np.nan)):
        mark = " ↑" if line[f"{difference}_low"] > 0 else " ↓" if line[f"{difference}_high"] < 0 else ""
    return f"{line[column]:.1f} ({line[f'{column}_low']:.1f} to {line[f'{column}_high']:.1f}){mark}"


def notes(survey: Survey, readings: pd.DataFrame) -> list[str]:
    """Return what a reader must know below the tables of a model."""
    waiting = [row.name for row in survey.rows if row.id not in set(readings["row"])]
    short = readings[readings["points"] < readings["row"].map({row.id: len(row.values) for row in survey.rows})]
    lines = [
        "Kept: A^S where A^T has gained this share of Full FT's gain; area: its mean over all shares, 0 where not "
        "reached; best H: of the five points. 95 % intervals. ↑ ↓: the interval of the difference from Full FT's own "
        "curve excludes 0. The rule is in docs/survey.md.",
        "Time: of the training, in units of Full FT's (a merge: all trainings that it needs, and itself). Memory: "
        "gradients, AdamW's moments and what the method keeps, in float32 copies of the weights that Full FT trains, "
        "which has 3. Both of the middle strength.",
    ]
    if any(name.endswith(SEES_SOURCES) for name in readings["name"]):
        lines.append(SEEN)
    if waiting:
        lines.append(f"No finished cell: {', '.join(waiting)}.")
    if len(short):
        parts = dict.fromkeys(f"{name} ({target})" for name, target in zip(short["name"], short["target_name"],
                                                                          strict=True))
        lines.append(f"Not all points are finished: {', '.join(parts)}.")
    return lines
