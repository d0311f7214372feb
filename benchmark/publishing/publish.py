"""Write finished results to the published reference: cells, items and logs as tables, printed tables, figures."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark import results
from benchmark.config.compose import options_of
from benchmark.config.request import Request
from benchmark.core.errors import UserError, counted
from benchmark.core.files import sync, unfinished_folder, write_sums
from benchmark.planning import plan as planning
from benchmark.planning.plan import Planned
from benchmark.reporting import outputs, slices
from benchmark.spec import at_root, cell_id, digits_of
from benchmark.store import cell_measures
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cells import Store, published_key, read_cell, scored_datasets
from benchmark.store.keys import Digests, keys_of

FOLDERS = ("rates", "audit", "sweeps", "studies", "pid", "figures")
LIMIT_MEGABYTES = 15.0


@dataclass(frozen=True)
class Done:
    """Outcome of publishing: the folder, the number of its cells, and how many of them were published before."""

    folder: Path
    cells: int
    before: int


def publish(requests: Sequence[Request], partial_too: bool = False, drop: bool = False) -> Done:
    """Rewrite the reference folder of a profile from finished cells; its tables and plots use only these cells.

    A cell that is not finished here is taken from the earlier reference if today's code, data and base model made it.
    The reference can therefore grow cell by cell, and on several machines. Figures that are not drawn here are kept
    as long as no published cell changes. Text files (*.md), which people write, are kept. Weights are not published.

    Args:
        requests: tables of one profile and results folder; a request without a table adds only its cells.
        partial_too: do not refuse unfinished cells, but leave them out and name each in the notes of its table. A table
            also leaves out seeds that have fewer finished cells than another seed.
        drop: remove published cells and tables that are not part of the request.

    Raises:
        UserError: the profile has no reference, cells are missing, published ones would be lost, or the copy would be
            too large.
    """
    profile, store = requests[0].profile, Store(requests[0].results)
    store.check_schema()
    if profile.reference is None:
        raise UserError(f"Profile {profile.id} has no reference folder. Set `reference` in its file in conf.")
    target = at_root(profile.reference)
    old = target.with_name(f".{target.name}.old")
    if old.is_dir() and not target.is_dir():  # an earlier publish was killed between the two renames below
        old.rename(target)
    # One plan for all: an untuned model is in several tables and needs the test sets of all of them.
    everything = requests[0].of(cell for request in requests for cell in request.cells)
    plan = {item.id: item for item in planning.make(everything, store)}
    before = _published(everything, plan, store, Store(target))
    if partial_too:
        done = {name for name, item in plan.items() if item.done} | before.keys()
        requests = [planning.whole_seeds(request, done) for request in requests]
    wanted = {cell_id(one) for request in requests for one, _ in planning.expand(request.cells, request.full_ft)}
    finished = {name: item for name, item in plan.items() if name in wanted and item.done}
    before = {name: whole for name, whole in before.items() if name in wanted - finished.keys()}
    unfinished = sorted(wanted - finished.keys() - {name for name, whole in before.items() if whole})
    if unfinished and not (partial_too and (finished or before)):
        raise UserError(
            f"{len(unfinished)} of {len(wanted)} cells are not finished (first: {unfinished[0]}). "
            "Run them, then publish again."
        )
    if not drop:
        _refuse_losses(target, {*finished, *before}, {request.table for request in requests}, wanted)
    columns = [column for request in requests for column in request.layout.get("columns") or ()]
    try:
        with unfinished_folder(target.with_name(f".{target.name}.partial")) as partial:
            partial.mkdir()
            folders = {name: Store(target).folder(plan[name].cell) for name in before}
            for name, item in finished.items():
                folders[name] = store.folder(item.cell)
                cell_measures.of_cell(item.cell, folders[name], columns)  # saves what needs the delta
            keys = {name: item.keys.summary for name, item in finished.items() if item.keys is not None}
            results.write(partial, folders, keys)
            for root in [target, store.root] if _all_stay(Store(target), Store(partial)) else [store.root]:
                for path in (path for folder in FOLDERS for path in (root / folder).glob("[!.]*")):
                    if path.is_file() and not _of_a_slice(path):
                        _copy(path, partial / path.relative_to(root))
            copied = Store(partial)
            for request in (request for request in requests if request.table is not None):
                rows = planning.recorded(request, copied)
                if any(item.done for item in rows):
                    table = outputs.build_table(request, rows, copied)
                    # A reference has one table per name. If the table is partial, its first line says so.
                    part = slices.differences(request, outputs.whole(request), ignore=("seeds",))
                    outputs.write(request, replace(table, title=table.title + slices.heading(part)), partial)
            # The text files that people write may change later; all other files are fixed by their digests.
            write_sums(partial, (str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()))
            for path in target.glob("*.md"):
                _copy(path, partial / path.name)
            size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) / 1e6
            if size > LIMIT_MEGABYTES:
                raise UserError(f"The reference would take {size:.1f} MB; the limit is {LIMIT_MEGABYTES:.0f} MB.")
            for path in partial.rglob("*"):
                sync(path)  # flush to disk before replacing the old folder
            shutil.rmtree(old, ignore_errors=True)
            if target.is_dir():
                target.rename(old)
            partial.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror}.") from error
    return Done(target, len(finished) + len(before), len(before))


def _of_a_slice(path: Path) -> bool:
    """Return whether a figure shows only a part of a table or of a figure in conf/figure."""
    stem, dash, _ = path.stem.partition("-")
    return bool(dash) and stem in {*outputs.FIGURES.values(), *options_of("figure"), *options_of("table")}


def _published(asked: Request, plan: Mapping[str, Planned], store: Store, reference: Store) -> dict[str, bool]:
    """Return the cells that were published from today's code, data, base model and settings.

    Returns:
        Id -> whether it has every requested test set.

    Raises:
        UserError: data of a published cell are missing.
    """
    digests, found = Digests(store.root / "digests.json"), {}
    for cell, needs in planning.expand(asked.cells, asked.full_ft):
        name = cell_id(cell)
        folder = reference.folder(cell)
        key, wanted = published_key(folder), {one.id for one in cell.datasets}
        if key is None:
            continue
        if plan[name].keys is None:
            raise UserError(
                f"{name} is published, but its data are missing in {cell.data_root}, so nobody can say whether "
                f"today it would be the same. {planning.advice(asked.profile)}."
            )
        if cell.train is None:  # use the published test sets whose protocol is unchanged
            try:
                sets = [one for one in read_cell(folder).datasets if one == asked.datasets.get(one.id)]
            except UserError:
                continue  # damaged: the cell must be run again
            cell = replace(cell, datasets=tuple(sets))
        sources = [keys for source in needs if (keys := plan[source].keys)]
        if key == keys_of(cell, digests, sources).summary:
            found[name] = wanted <= {one.id for one in cell.datasets}
    return found


def _refuse_losses(target: Path, stay: set[str], tables: set[str | None], wanted: set[str]) -> None:
    """Refuse to drop published cells and tables that are not part of the request. Stale cells in it may go.

    Raises:
        UserError: some would be lost; the message names them.
    """
    kept = {digits_of(name) for name in stay | wanted}  # a published name may use older words
    published = [folder.name for folder in Store(target).all_cells()]
    lost = sorted(name for name in published if digits_of(name) not in kept)
    gone = sorted({path.stem for path in (target / "tables").glob("*.csv")} - tables)
    if lost or gone:
        what = [f"{counted(len(lost), 'published cell')} (first: {lost[0]})"] if lost else []
        what += [f"the table{'s' * (len(gone) != 1)} {', '.join(gone)}"] if gone else []
        raise UserError(
            f"{target} would lose {' and '.join(what)}, which are not part of this command. Name all tables, figures "
            "and seeds that the reference should have, or add --drop."
        )


def _all_stay(published: Store, again: Store) -> bool:
    """Return whether every published cell keeps its answers and scores, so that old figures are still valid."""
    copies = {digits_of(folder.name): folder for folder in again.all_cells()}
    for folder in published.all_cells():
        copy = copies.get(digits_of(folder.name))
        if copy is None:
            return False
        try:
            for dataset in scored_datasets(folder):
                if any(read(folder, dataset) != read(copy, dataset) for read in (read_items, read_answers)):
                    return False
            scores = [json.loads((one / "scores.json").read_text(encoding="utf-8")) for one in (folder, copy)]
        except (UserError, OSError, ValueError):  # missing or damaged
            return False
        if not _near(*scores):
            return False
    return True


def _near(one: Any, other: Any) -> bool:
    """Return whether JSON values are equal up to the last bits, in which processors may differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_near(value, other[key]) for key, value in one.items())
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return one == other


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
