"""After a run: the table and its radar plots from finished cells, or a line per cell where no table was asked for."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.config import own_checkpoints
from benchmark.config.request import Request
from benchmark.config.request import request as ask
from benchmark.core.errors import INTERRUPTED, PREEMPTED, UserError, counted
from benchmark.planning.plan import Planned, has_source_weights, with_datasets
from benchmark.reporting import slices
from benchmark.spec import CellSpec, cell_id, sees_sources
from benchmark.store.cells import Store
from methods.registry import entry

if TYPE_CHECKING:
    from benchmark.reporting.tables import RowResult, Table

# Tables of the paper's full layout have radar plots; those with columns of their own have none.
ZERO_SHOT = "zero_shot"
FIGURES = {"table5": "fig4", "table6": "fig4"}
SEVERAL = (
    "A table or a figure shows one setting, but a key has several values. Give one value per key, or run the cells "
    "without table= (methods=, models=, targets=)."
)


def make(request: Request) -> tuple[int, list[Planned]]:
    """Run what a request lacks, then report what is finished.

    Returns:
        (exit code of the runner, the finished cells; none if the run was stopped).

    Raises:
        UserError: several settings were asked for in one table, or see `benchmark.running.runner.run`.
    """
    from benchmark.planning import plan as planning
    from benchmark.running import runner

    check_one_setting(request)
    code = runner.run(request)
    if code in (PREEMPTED, INTERRUPTED):
        return code, []
    store = Store(request.results)
    planned = planning.make(request, store)
    done = [item for item in planned if item.done]
    if done:
        measure(request, planned, store)
        report(request, planned, store)
    return code, done


def report(request: Request, plan: Sequence[Planned], store: Store) -> None:
    """Write the files of what was asked for below the results folder, then print it.

    Args:
        request: with or without a table.
        plan: its cells.
        store: the results.

    Raises:
        UserError: several settings were asked for in one table, or the folder cannot be written.
    """
    if request.table is None:
        for item in plan:
            if item.done:
                print(f"{item.id}\n  {_averages(store.folder(item.cell))}")
        return
    from rich.console import Console

    from benchmark.reporting import render

    found = slices.differences(request, whole(request))
    table = build_table(request, plan, store)
    table = replace(table, title=table.title + slices.heading(found))
    written, drawn = write(request, table, store.root, slices.suffix(found))
    print()
    render.show(table, Console(file=sys.stdout))
    print(f"\nTable: {written[0].with_suffix('')}.{{md,csv,tex}}")
    for stem in sorted({path.with_suffix("") for path in drawn}):
        print(f"Radar: {stem}.{{png,pdf,csv}}")


def measure(request: Request, plan: Sequence[Planned], store: Store) -> None:
    """Measure the footprint of each method of a table that shows it; what is known is not measured again.

    Merges whose sources have no weights here are left out: their cells were restored from published results.
    """
    from benchmark.store.cell_measures import OF_FOOTPRINT

    if not set(OF_FOOTPRINT) & set(request.layout.get("columns") or ()):
        return
    from benchmark.running import method_cost
    from benchmark.running.worker import prepare_process

    measurable = [item for item in plan if has_source_weights(item, plan, store)]
    if any(item.done and item.cell.train and not method_cost.known(item, store) for item in measurable):
        cell = request.cells[0]
        prepare_process(cell.threads, cell.device, request.gpus[0] if request.gpus else None)
    for line in method_cost.measure(request, measurable, store):
        print(line, flush=True)


def whole(request: Request) -> Request:
    """Return the table that a request is of, as its file in conf/table defines it for this profile."""
    return ask([f"table={request.table}", f"profile={request.profile.id}"])


def write(request: Request, table: Table, root: Path, suffix: str = "") -> tuple[list[Path], list[Path]]:
    """Write a table to root/tables and its radar plots to root/figures.

    Args:
        request: names the table.
        table: its numbers.
        root: results folder.
        suffix: behind the names of the files of a slice, which never replace those of the whole table.

    Returns:
        The files of the table and those of the plots, which a table of columns of its own or of untuned models lacks.

    Raises:
        UserError: the folder cannot be written.
    """
    from benchmark.reporting import radar, render

    assert request.table is not None
    stem = FIGURES.get(request.table, request.table)
    cider = [name for name, dataset in request.datasets.items() if dataset.metric == "cider"]
    plain = bool(table.shown) or not table.frame["tuned"].any()  # one untuned model has nothing to be compared with
    drawn = [] if plain else radar.radars(table, root / "figures", f"{stem}{suffix}", request.radar, cider)
    return render.write(table, root / "tables", f"{request.table}{suffix}"), drawn


def build_table(request: Request, plan: Sequence[Planned], store: Store) -> Table:
    """Return the table of a request from the cells that are done; the others are named in its notes.

    Raises:
        UserError: two cells claim the same place, because a setting has several values.
    """
    from benchmark.reporting import tables

    rows = build_rows(request, plan, store)
    upstream = {dataset.id: dataset.name for dataset in request.cells[0].upstream}
    shown = request.layout.get("columns") or ()
    title = f"{request.title or request.table} ({_sets(rows)})"
    return tables.build(title, rows, upstream, _notes(request, rows), shown=shown)


def _sets(rows: Sequence[RowResult]) -> str:
    """Return the targets that a table has numbers of, for its heading; all of them while it has none."""
    tuned = dict.fromkeys(row.target_name for row in rows if row.tuned and row.items.get(row.target))
    return ", ".join(tuned or dict.fromkeys(row.target_name for row in rows))


def build_rows(request: Request, plan: Sequence[Planned], store: Store) -> list[RowResult]:
    """Return the rows of a request, one per model, target and method, in print order; unfinished ones are empty.

    Raises:
        UserError: two cells claim the same place, because a setting has several values.
    """
    cells: dict[str, CellSpec] = {}
    for cell in request.cells:
        cells[cell_id(cell)] = with_datasets(cells.get(cell_id(cell), cell), cell.datasets)
    check_places(cells.values())
    planned = {item.id: item for item in plan}
    models = dict.fromkeys(cell.model.id for cell in cells.values())
    targets = dict.fromkeys(target for cell in cells.values() for target in _targets(cell))
    rows = []
    for model, target in itertools.product(models, targets):
        here = {name: cell for name, cell in cells.items() if cell.model.id == model and target in _targets(cell)}
        for method in dict.fromkeys(cell.method.id for cell in here.values()):
            seeds = [planned[name] for name, cell in here.items() if cell.method.id == method]
            rows.append(_row((model, target, method), seeds, store, request))
    return rows


def _targets(cell: CellSpec) -> list[str]:
    """Return the targets in whose rows a cell stands: its own, or all that an untuned model was evaluated on."""
    return [cell.target] if cell.target else [dataset.id for dataset in cell.targets]


def check_one_setting(request: Request) -> None:
    """Refuse a table of several settings.

    Raises:
        UserError: two cells of one table differ only in a setting.
    """
    if request.table is not None:
        check_places(request.cells)


def check_places(cells: Collection[CellSpec]) -> None:
    """Refuse two cells that differ only in a setting: a table or a figure has one place for them.

    Raises:
        UserError: there are two such cells.
    """
    if len({(cell.model.id, cell.target, cell.method.id, cell.seed) for cell in cells}) < len(cells):
        raise UserError(SEVERAL)


def name_of(method: str) -> str:
    """Return a method's printed name; a user's own checkpoint is called as the user calls it."""
    own = method.startswith(own_checkpoints.PREFIX)
    return method.removeprefix(own_checkpoints.PREFIX) if own else entry(method).name


def _row(key: tuple[str, str, str], found: Sequence[Planned], store: Store, request: Request) -> RowResult:
    """Return one row: a method on a model and target, over its seeds."""
    from benchmark.paper import numbers
    from benchmark.reporting import tables
    from benchmark.store import cell_measures, provenance
    from benchmark.store.answers import read_items
    from eval.score import ItemScore

    model, target, method = key
    first = found[0].cell
    specs = {dataset.id: dataset for dataset in (*request.datasets.values(), *first.datasets)}
    names = [*(dataset.id for dataset in first.upstream), target]
    items: dict[str, dict[int, list[ItemScore]]] = {name: {} for name in names}
    diagnostics, problems, older = {}, [], {}
    for item in found:
        folder, seed = store.folder(item.cell), item.cell.seed
        if not item.done:
            status = store.status(folder)
            why = "older code, settings or data made it, run it again" if status["state"] == "done" else "not run yet"
            problems.append(f"seed {seed}: {status['error']['message'] if status['error'] else why}")
            continue
        # The keys of a run say that today's code made it; a published cell has none.
        if item.keys is None and (changed := provenance.older_code(item.cell, folder)):
            older[seed] = changed
        for name in (name for name in names if any(dataset.id == name for dataset in item.cell.datasets)):
            items[name][seed] = read_items(folder, name)
        diagnostics[seed] = cell_measures.of_cell(item.cell, folder, request.layout.get("columns") or ())
    name = (request.layout.get("names") or {}).get(method) or name_of(method)
    name += f" {tables.SEES_SOURCES}" * any(sees_sources(item.cell) for item in found)
    return tables.RowResult(
        model=model, model_name=first.model.name, method=method, method_name=name, target=target,
        target_name=specs[target].name, items={name: seeds for name, seeds in items.items() if seeds},
        seeds=tuple(item.cell.seed for item in found), tuned=method != ZERO_SHOT, diagnostics=diagnostics,
        protocol={name: tables.protocol(specs[name], first.eval.split) for name in names},
        problems=tuple(problems), paper=numbers.of_row(model, target, method, name_of(method)),
        reference=(request.layout.get("references") or {}).get(method) or tables.REFERENCE, older=older,
        cells=tuple(item.id for item in found if item.done),
    )


def _notes(request: Request, rows: Sequence[RowResult]) -> list[str]:
    """Return what a reader must know before the numbers: scale, settings, parts of test sets."""
    cell = next((cell for cell in request.cells if cell.train is not None), request.cells[0])
    notes = []
    if cell.train is not None:
        rates = {
            item.model.name: f"{item.train.learning_rate:g} (projector {item.train.projector_learning_rate:g})"
            for item in request.cells if item.train is not None
        }
        notes.append(
            f"{request.profile.name}: {cell.train.epochs} epochs, batch {cell.train.batch_size}, learning rate "
            + "; ".join(f"{name} {rate}" for name, rate in rates.items())
            + f"; {cell.dtype}{f', answers in {cell.eval.dtype}' if cell.eval.dtype else ''}, {cell.device}."
        )
    if cell.eval.examples:
        solved = counted(cell.eval.examples, "solved question")
        notes.append(f"NOT THE PROTOCOL: {solved} of the validation split in front of each question.")
    limited = [f"{what} {limit} items" for what, limit in (
        ("training", cell.train.limit if cell.train else None), ("evaluation", cell.eval.limit)) if limit is not None]
    if limited:
        notes.append(f"NOT THE WHOLE PROTOCOL: limited to {' and '.join(limited)} per dataset.")
    parts = sorted({
        item.name for cell in request.cells for item in cell.datasets if item.metric == "cider"
        and (cell.eval.limit is not None or (item.options.get("sample") or {}).get(cell.eval.split) is not None)
    })
    if parts:
        # Its document frequencies come from the evaluated images, so another subset is another metric.
        notes.append(f"CIDEr of a part of a test set is NOT COMPARABLE with any other ({', '.join(parts)}).")
    return notes


def _averages(folder: Path) -> str:
    """Return a finished cell's averages with intervals in one line."""
    from benchmark.store.scores import read_scores

    lines = []
    for target, values in read_scores(folder)["averages"].items():
        numbers = (
            f"{name.replace('_', '^')} {entry['value']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"
            for name, entry in values.items()
        )
        lines.append(f"{target}: {', '.join(numbers)}")
    return "\n  ".join(lines) or "no averages: no target was asked for"
