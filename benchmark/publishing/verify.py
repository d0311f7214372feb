"""Check a results folder against itself: files, digests, items, answers scored again, averages, tables, provenance.

The folder is only read. It may be a published folder (benchmark.publishing.publish) or a folder of runs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError, counted
from benchmark.core.files import SUMS, read_sums, sha256_file
from benchmark.publishing.findings import Fault, Findings, Wrong
from benchmark.publishing.verify_cell import CellCheck, Data
from benchmark.publishing.verify_tables import check_table
from benchmark.spec import CellSpec, at_root, cell_id, is_name_of
from benchmark.store.cells import Store, read_cell

if TYPE_CHECKING:
    from benchmark.core.progress import StageTold
    from benchmark.data import Record



def verify(
    root: Path, show: Callable[[Fault], None], sample: int = 1, draw: bool = True, told: StageTold | None = None
) -> Findings:
    """Check every finished cell and every table of a results folder.

    Args:
        root: results folder.
        show: called with each fault.
        sample: with n, score answers again and recompute intervals in every nth cell (at least one), chosen by the
            hash of the name. All other checks cover all cells.
        draw: draw missing data if the profile can draw them.
        told: called with (stage, done, total), first for files whose digest is checked, then for cells.

    Returns:
        Counts and faults.

    Raises:
        UserError: the folder does not exist, has no cells, or has another schema.
    """
    store, found = Store(root), Findings(show)
    store.check_schema()
    names = sorted(path.name for path in store.cells.glob("*") if path.is_dir()) if store.cells.is_dir() else []
    if not names:
        raise UserError(f"{root} has no cells. Name a results folder of a run or a published one: verify RESULTS.")
    _sums(root, found, told)
    records, chosen, cells = _reader(draw), _chosen(names, sample), {}
    for done, name in enumerate(names):
        if told is not None:
            told("cells", done, len(names))
        folder = store.cells / name
        cell = _cell(store, folder, records, found, name in chosen)
        if cell is not None:
            cells[name] = cell
    for path in sorted((root / "tables").glob("*.csv")):
        with found.checking("-", f"tables/{path.name}"):
            check_table(store, path, cells, found)
            found.tables += 1
    return found


def summary(found: Findings, root: Path) -> str:
    """Return the lines of the summary; the last one is the verdict."""
    lines = []
    if found.unfinished:
        lines.append(f"Unfinished, so neither results nor checked: {counted(found.unfinished, 'cell')}.")
    if not found.files and not any((root / "cells").glob("*/status.json")):
        lines.append(f"No {SUMS} in {root}: digests of files were not recorded when it was published.")
    if found.without_items:
        lines.append(f"Without a digest of their item ids (older code): {counted(found.without_items, 'cell')}.")
    if found.older:
        lines.append(
            f"Of older code than this: {counted(found.older, 'cell')}"
            + (f", {found.without_code} of them from before it was recorded" if found.without_code else "")
            + "; tables and report say so."
        )
    if found.dirty:
        lines.append(f"Made with local changes to their commit: {counted(found.dirty, 'cell')}.")
    if found.rounded:
        lines.append(
            f"Different in the last bits only (other processor, numpy or threads): {counted(found.rounded, 'number')}."
        )
    if found.other_layout:
        lines.append(
            "Printed with other columns than today's, so only the CSV was compared: "
            f"{counted(found.other_layout, 'table')}."
        )
    part = "" if found.rescored == found.cells else f" (of {counted(found.rescored, 'cell')})"
    lines.append(
        f"Verified {root}: {counted(found.cells, 'cell')}, {counted(found.files, 'file digest')}, "
        f"{counted(found.answers, 'answer')} scored again{part}, {counted(found.tables, 'table')} recomputed: "
        f"{counted(len(found.faults), 'fault') if found.faults else 'no faults'}."
    )
    return "\n".join(lines)


def _chosen(names: Sequence[str], sample: int) -> set[str]:
    """Return 1 / `sample` of the names, at least one: those with the smallest hashes."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(order[: math.ceil(len(order) / sample)])


def _reader(draw: bool) -> Data:
    """Return a function that reads and caches records. `draw` draws missing data of profiles that can draw them."""
    from benchmark import data

    known: dict[tuple[Any, ...], Sequence[Record] | UserError] = {}

    def read(cell: CellSpec, name: str, split: str, limit: int | None) -> Sequence[Record]:
        spec = cell.dataset(name)
        key = (repr(spec), cell.data_root, split, limit)
        if key not in known:
            try:
                if draw:
                    _draw(cell)
                known[key] = data.load(spec, at_root(cell.data_root), split, limit)
            except UserError as error:
                known[key] = error
        result = known[key]
        if isinstance(result, UserError):
            raise UserError(f"cannot be checked: {result}")
        return result

    return read


def _draw(cell: CellSpec) -> None:
    from benchmark.config.compose import options_of
    from benchmark.config.request import request
    from benchmark.core.progress import Lines
    from benchmark.planning import plan
    from benchmark.running import runner

    if plan.data_missing(cell) and cell.profile in options_of("profile"):
        profile = request([f"profile={cell.profile}"], grid=False).profile
        if profile.prepare and cell.data_root == f"data/{profile.id}":
            runner.draw(profile, cell.data_root, Lines())


# ---------------------------------------------------------------------------------------------------------------
# Digests of a published folder


def _sums(root: Path, found: Findings, told: StageTold | None = None) -> None:
    """Compare files with SHA256SUMS: none altered, missing or added. Text files that people write are exempt."""
    if not (root / SUMS).is_file():
        return
    listed: dict[str, str] = {}
    with found.checking("-", SUMS):
        listed = read_sums(root / SUMS)
    for done, (name, digest) in enumerate(listed.items()):
        if told is not None:
            told("files", done, len(listed))
        with found.checking(*_place(name)):
            if not (root / name).is_file():
                raise Wrong(f"is missing; {SUMS} lists it")
            if sha256_file(root / name) != digest:
                raise Wrong(f"its digest is not the one in {SUMS}: the file was altered or damaged")
            found.files += 1
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name not in listed and name != SUMS and path.parent != root:
            found.add(*_place(name), f"is not in {SUMS}: it was added later")


def _place(name: str) -> tuple[str, str]:
    """Return (cell, file) of a path relative to the results folder."""
    parts = name.split("/", 2)
    return (parts[1], parts[2]) if parts[0] == "cells" and len(parts) == 3 else ("-", name)


def _cell(store: Store, folder: Path, records: Data, found: Findings, rescore: bool) -> CellSpec | None:
    """Check a cell; return its spec if it is readable and the cell is finished."""
    status = store.status(folder) if (folder / "status.json").is_file() else None
    if status is not None and status["state"] != "done":
        found.unfinished += 1
        return None
    found.cells += 1
    cell = None
    with found.checking(folder.name, "cell.yaml"):
        cell = read_cell(folder)
        if not is_name_of(folder.name, cell):
            raise Wrong(f"describes the cell {cell_id(cell)}, not this folder's")
    if cell is not None:
        CellCheck(cell, folder, records, found, rescore).run(status and status["stages"])
    return cell
