"""Copy finished results to the published reference: scores, answers, provenance, tables, figures; no weights."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmark import answers, measures, outputs
from benchmark import plan as planning
from benchmark.compose import Request
from benchmark.errors import UserError
from benchmark.files import unfinished_folder, write_atomic, write_sums
from benchmark.keys import Digests, keys_of
from benchmark.plan import Planned
from benchmark.spec import at_root
from benchmark.store import Store

CELL_FILES = (
    "cell.yaml", "scores.json", "provenance.json", "items/*.jsonl.gz", "weights.json", "footprint.json",
)  # fmt: skip
KEY = "key"  # of a published cell: the digest of all that its scores follow from, to tell whether they are today's
FOLDERS = ("rates", "audit", "sweeps", "pid", "figures")
LIMIT_MEGABYTES = 15.0


def publish(requests: Sequence[Request], partial_too: bool = False) -> tuple[Path, int, int]:
    """Write the reference folder of a profile anew from finished cells; tables and plots are made from just these.

    A cell that is not finished here but was published before, from today's code, data and base model, is taken from
    there: the reference grows cell by cell, also on another machine. Figures that are not drawn here stay, if every
    published cell does. Text files (*.md), which people write, stay. Answers and logs
    are packed.

    Args:
        requests: tables of one profile and results folder; a request without a table adds only its cells.
        partial_too: leave unfinished cells out, each named in the notes of its table, instead of refusing; and of each
            table the seeds of which fewer cells are finished than of another.

    Returns:
        The reference folder, the number of its cells, and how many of them were published before.

    Raises:
        UserError: the profile has no reference, cells are missing, or the copy would be too large.
    """
    profile, store = requests[0].profile, Store(requests[0].results)
    store.check_schema()
    if profile.reference is None:
        raise UserError(f"Profile {profile.id} has no reference folder. Set `reference` in its file in conf.")
    target = at_root(profile.reference)
    columns = [column for request in requests for column in request.layout.get("columns") or ()]
    plans = [planning.make(request, store) for request in requests]
    before = _published(requests, plans, store, Store(target))
    plans = [[replace(item, missing=()) if item.id in before else item for item in plan] for plan in plans]
    if partial_too:
        requests, plans = zip(*map(planning.whole_seeds, requests, plans), strict=True)
    wanted = {item.id for plan in plans for item in plan}
    before &= wanted
    finished = {item.id: item for plan in plans for item in plan if item.done and item.id not in before}
    unfinished = sorted({item.id for plan in plans for item in plan if not item.done})
    if unfinished and not (partial_too and (finished or before)):
        raise UserError(
            f"{len(unfinished)} of {len(wanted)} cells are not finished (first: {unfinished[0]}). "
            "Run them, then publish again."
        )
    every_one_stays = {folder.name for folder in Store(target).all_cells()} <= {*finished, *before}
    try:
        with unfinished_folder(target.with_name(f".{target.name}.partial")) as partial:
            for item in finished.values():
                _copy_cell(item, store.folder(item.cell), partial / "cells" / item.id, columns)
            for name in sorted(before):
                shutil.copytree(target / "cells" / name, partial / "cells" / name)
            for root in [target, store.root] if every_one_stays else [store.root]:
                for path in (path for folder in FOLDERS for path in (root / folder).glob("*")):
                    _copy(path, partial / path.relative_to(root))
            copied = Store(partial)
            for request in (request for request in requests if request.table is not None):
                plan = planning.recorded(request, copied)
                if any(item.done for item in plan):
                    outputs.write(request, outputs.build_table(request, plan, copied), partial)
            # The text files that people write may change; all else is what it was when it was published.
            write_sums(partial, (str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file()))
            for path in target.glob("*.md"):
                _copy(path, partial / path.name)
            size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) / 1e6
            if size > LIMIT_MEGABYTES:
                raise UserError(f"The reference would take {size:.1f} MB, {LIMIT_MEGABYTES:.0f} MB are allowed.")
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror}.") from error
    return target, len(finished) + len(before), len(before)


def _published(
    requests: Sequence[Request], plans: Sequence[Sequence[Planned]], store: Store, reference: Store
) -> set[str]:
    """Return the ids of unfinished cells that were published from today's code, data, base model and settings."""
    digests = Digests(store.root / "digests.json")
    found: set[str] = set()
    for request, plan in zip(requests, plans, strict=True):
        keys = {item.id: item.keys for item in plan}
        for item in plan:
            folder = reference.folder(item.cell)
            if item.done or item.keys is None or not (folder / KEY).is_file():
                continue
            cell = planning.keep_datasets(item.cell, folder, request)
            if keys_of(cell, digests, keys.get(item.needs or "")).summary == (folder / KEY).read_text().strip():
                found.add(item.id)
    return found


def _copy_cell(item: Planned, source: Path, target: Path, columns: Sequence[str]) -> None:
    """Copy what is published of a finished cell."""
    measures.of_cell(item.cell, source, columns)  # keeps in weights.json what only the delta says
    for pattern in CELL_FILES:
        for path in source.glob(pattern):
            _copy(path, target / path.relative_to(source))
    for path in source.glob("answers/*.jsonl"):
        write_atomic(target / "answers" / f"{path.name}.gz", answers.pack(source, path.stem))
    for path in source.glob("train.jsonl"):
        write_atomic(target / f"{path.name}.gz", _pack_log(path.read_text(encoding="utf-8")))
    assert item.keys is not None
    write_atomic(target / KEY, f"{item.keys.summary}\n")


def _pack_log(log: str) -> bytes:
    """Return a training log packed, its numbers to six digits, which halves it."""
    rows = [json.loads(line) for line in log.splitlines()]
    short = [{key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in row.items()} for row in rows]
    return gzip.compress("".join(f"{json.dumps(row, separators=(',', ':'))}\n" for row in short).encode(), mtime=0)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
