"""Choose a model's learning rate: once, with Full FT, on validation, before any other method runs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from benchmark.config.compose import AXES
from benchmark.config.overrides import without
from benchmark.config.request import Request, request
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.planning import plan
from benchmark.reporting import lettering, outputs
from benchmark.running import runner
from benchmark.spec import CellSpec, ModelSpec, is_tuned, shown
from benchmark.store.cells import Store
from benchmark.store.keys import Digests
from benchmark.store.scores import read_scores

SEED = 100
TARGETS = "flickr30k,coco"
METRICS = ("A_S", "A_T", "H")


@dataclass(frozen=True)
class Point:
    """One method at one rate: points per metric, mean over the targets, and the standard error of A^T's mean."""

    method: str
    rate: float
    means: dict[str, float]
    error: float


def run(overrides: Sequence[str]) -> int:
    """Run the grid (missing cells only), print it, choose a rate per model, write CSV, Markdown and figures.

    Args:
        overrides: of `benchmark.config.request.request`; models= and methods= (default full_ft) narrow the grid.

    Returns:
        The runner's exit code.

    Raises:
        UserError: wrong overrides, targets or seeds among them, or Full FT is not among the methods.
    """
    wrong = [item for item in overrides if AXES.get(item.partition("=")[0]) in ("targets", "seeds")]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: the rates are chosen on {TARGETS} with seed {SEED} alone. Leave it out.")
    base = request(["table=table5", "methods=full_ft", f"targets={TARGETS}", *overrides])
    grids = {model.id: grid_of(model, overrides) for model in base.models}
    everything = base.of(cell for asked in grids.values() for cell in asked.cells)
    code = runner.run(everything)
    if code:
        return code
    store = Store(base.results)
    tables = []
    for model in base.models:
        points = read(grids[model.id], store)
        rate = choose([point for point in points if point.method == "full_ft"])
        write(model, points, rate, lines(grids[model.id], store), base.results / "rates")
        tables.append(table(model, points, rate))
    text = protocol(base, next(cell for cell in everything.cells if cell.train), tables)
    if {cell.method.id for cell in everything.cells} == {"full_ft"}:
        # With a second method, it would no longer document what was fixed before any other method ran.
        write_atomic(base.results / "rates" / "protocol.md", text)
    print(text)
    return 0


def requests(models: Sequence[ModelSpec], overrides: Sequence[str]) -> list[Request]:
    """Return the cells of each model's grid, as requests without a table.

    Args:
        models: whose grids.
        overrides: of a table. Its methods, targets and seeds do not count: the grid has its own.
    """
    kept = without(overrides, AXES)
    return [replace(grid_of(model, kept), table=None) for model in models]


def protocol(base: Request, cell: CellSpec, tables: Sequence[str]) -> str:
    """Return as Markdown what was fixed before any method but Full FT ran: data, bases, training, rates.

    Args:
        base: names profile, models and datasets.
        cell: any cell of the grid, for the training settings.
        tables: the grid of every model, see `table`.
    """
    digests = Digests(base.results / "digests.json")
    grid = ", ".join(f"{rate:g}" for rate in base.profile.rate_grid)
    settings = {key: value for key, value in shown(cell.train).items() if "learning_rate" not in key}
    lines = [
        f"# Protocol of the {base.profile.id} results",
        "",
        "Fixed before any method but Full FT was run. A later change needs a new version of this whole folder.",
        "Written by `make rates`.",
        "",
        "## Learning rate",
        "",
        f"One rate for all methods of a model, chosen on Full FT alone: {grid};",
        f"seed {SEED}; targets {TARGETS}; *validation* split. Of the rates whose mean A^T over both",
        "targets lies within one standard error of the best, the smallest. The projector keeps its",
        "configured ratio to the rate.",
        "",
        *tables,
        "## Equal learning",
        "",
        "The survey's five strengths per method, its levels and readings: docs/survey.md and conf/figure/survey.yaml.",
        "",
        "## Training",
        "",
        ", ".join(f"{key} {value}" for key, value in settings.items()) + ".",
        "",
        "## Bases (content digests)",
        "",
        *(f"- {model.id}: `{digests.model(model)[:16]}`" for model in base.models),
        "",
        "## Data (digests of the records, images included)",
        "",
        "| set | split | items | digest |",
        "| --- | --- | --- | --- |",
    ]
    for name in (*base.profile.upstream, *base.profile.targets):
        dataset = base.datasets[name]
        for split in ("train", "validation", "test") if dataset.role == "target" else ("validation", "test"):
            digest = digests.records(dataset, base.data_root, split, None)
            lines.append(f"| {name} | {split} | {dataset.counts.get(split)} | `{digest[:16]}` |")
    return "\n".join(lines) + "\n"


def grid_of(model: ModelSpec, overrides: Sequence[str]) -> Request:
    """Return one model's cells: every rate, both captioning targets, seed 100, validation.

    The projector's rate keeps the ratio to the model's rate that its configuration has.
    """
    ratio = model.projector_learning_rate / model.learning_rate
    kept = without(overrides, ("model", "models"))
    grid = request(["table=table5", "methods=full_ft", *kept, f"models={model.id}"]).profile.rate_grid
    fixed = ["table=table5", "methods=full_ft", *kept, f"models={model.id}", f"targets={TARGETS}", f"seeds={SEED}"]
    parts = []
    for rate in grid:
        rates = [f"train.learning_rate={rate!r}", f"train.projector_learning_rate={rate * ratio!r}"]
        parts.append(request([*fixed, "eval.split=validation", *rates]))
    asked = replace(parts[0], grid=tuple(entry for part in parts for entry in part.grid))
    if not any(cell.method.id == "full_ft" for cell in asked.cells):
        raise UserError("The rate is chosen on Full FT: methods= must contain full_ft.")
    return asked


def read(asked: Request, store: Store) -> list[Point]:
    """Return the points of finished cells, by method and rate."""
    found: dict[tuple[str, float], list[dict]] = {}
    for cell in filter(is_tuned, asked.cells):
        averages = read_scores(store.folder(cell))["averages"][cell.target]
        found.setdefault((cell.method.id, cell.train.learning_rate), []).append(averages)
    return [
        Point(
            method,
            rate,
            {metric: sum(entry[metric]["value"] for entry in entries) / len(entries) for metric in METRICS},
            # A 95 % interval is about 3.92 standard errors wide; the targets' errors are independent.
            math.hypot(*((entry["A_T"]["high"] - entry["A_T"]["low"]) / 3.92 for entry in entries)) / len(entries),
        )
        for (method, rate), entries in sorted(found.items())
    ]


def choose(points: Sequence[Point]) -> float:
    """Return the smallest rate whose mean A^T lies within one standard error of the best.

    Args:
        points: of Full FT.

    Raises:
        UserError: there are no points.
    """
    if not points:
        raise UserError("No finished Full FT cell to choose a learning rate from.")
    best = max(points, key=lambda point: point.means["A_T"])
    return min(point.rate for point in points if point.means["A_T"] >= best.means["A_T"] - best.error)


def table(model: ModelSpec, points: Sequence[Point], chosen: float) -> str:
    """Return the grid of one model as Markdown."""
    lines = [
        f"### {lettering.markdown(model.name)}",
        "",
        "| method | learning rate | A^S | A^T | standard error of A^T | H |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for point in points:
        mark = " (chosen)" if point.method == "full_ft" and point.rate == chosen else ""
        a_s, a_t, h = (f"{point.means[metric]:.2f}" for metric in METRICS)
        lines.append(f"| {point.method} | {point.rate:g}{mark} | {a_s} | {a_t} | {point.error:.2f} | {h} |")
    return "\n".join(lines) + "\n"


def lines(asked: Request, store: Store) -> pd.DataFrame:
    """Return the lines of `benchmark.reporting.tables` at every rate, of each target on its own."""
    planned, frames = plan.make(asked, store), []
    for rate in sorted({cell.train.learning_rate for cell in asked.cells if cell.train}):
        cells = [cell for cell in asked.cells if cell.train and cell.train.learning_rate == rate]
        frame = outputs.build_table(asked.of(cells), planned, store).frame
        frames.append(frame[frame["value"].notna()].assign(learning_rate=rate))
    return pd.concat(frames, ignore_index=True)


def write(model: ModelSpec, points: Sequence[Point], chosen: float, frame: pd.DataFrame, folder: Path) -> None:
    """Write <model>.md, <model>.csv (means over the targets) and the figure lr_<model> (from `lines`)."""
    from benchmark.reporting import plots

    write_atomic(folder / f"{model.id}.md", table(model, points, chosen))
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["model", "method", "learning_rate", "chosen", *METRICS, "A_T_standard_error"])
    for point in points:
        values = [f"{point.means[metric]:.4f}" for metric in METRICS]
        chosen_here = int(point.method == "full_ft" and point.rate == chosen)
        writer.writerow([model.id, point.method, f"{point.rate:g}", chosen_here, *values, f"{point.error:.4f}"])
    write_atomic(folder / f"{model.id}.csv", rows.getvalue())
    title = f"{model.name}: learning rate, validation, seed {SEED}. Dotted: chosen"
    plots.lines(frame, ["learning_rate"], title, folder / f"lr_{model.id}", marked=chosen)
