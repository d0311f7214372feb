"""Copy finished results to the published reference: scores, answers, provenance, tables, figures; no weights."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmark import outputs
from benchmark import plan as planning
from benchmark.compose import Request
from benchmark.errors import UserError
from benchmark.files import canonical_json, unfinished_folder, write_atomic, write_sums
from benchmark.spec import at_root
from benchmark.store import Store

CELL_FILES = (
    "cell.yaml", "scores.json", "provenance.json", "items/*.jsonl.gz", "weights.json", "footprint.json",
)  # fmt: skip
FOLDERS = ("rates", "audit", "sweeps", "pid", "figures")
LIMIT_MEGABYTES = 15.0


def publish(requests: Sequence[Request], partial_too: bool = False) -> Path:
    """Write the reference folder of a profile anew from finished cells; tables and plots are made from just these.

    The old folder is replaced as a whole, except for its text files (*.md), which people write. Answers are packed
    with item id and text only.

    Args:
        requests: tables of one profile and results folder; a request without a table adds only its cells.
        partial_too: leave unfinished cells out, each named in the notes of its table, instead of refusing.

    Returns:
        The reference folder.

    Raises:
        UserError: the profile has no reference, cells are missing, or the copy would be too large.
    """
    profile, store = requests[0].profile, Store(requests[0].results)
    store.check_schema()
    if profile.reference is None:
        raise UserError(f"Profile {profile.id} has no reference folder. Set `reference` in its file in conf.")
    plans = [planning.make(request, store) for request in requests]
    cells = {item.id: item for plan in plans for item in plan}
    unfinished = [item.id for item in cells.values() if not item.done]
    finished = [item for item in cells.values() if item.done]
    if unfinished and not (partial_too and finished):
        raise UserError(
            f"{len(unfinished)} of {len(cells)} cells are not finished (first: {unfinished[0]}). "
            "Run them, then publish again."
        )
    target = at_root(profile.reference)
    try:
        with unfinished_folder(target.with_name(f".{target.name}.partial")) as partial:
            for item in finished:
                source = store.folder(item.cell)
                for pattern in CELL_FILES:
                    for path in source.glob(pattern):
                        _copy(path, partial / "cells" / item.id / path.relative_to(source))
                for path in source.glob("answers/*.jsonl"):
                    _pack(path, partial / "cells" / item.id / "answers" / f"{path.name}.gz")
                for path in source.glob("train.jsonl"):
                    packed = gzip.compress(path.read_bytes(), mtime=0)
                    write_atomic(partial / "cells" / item.id / f"{path.name}.gz", packed)
            for path in (path for folder in FOLDERS for path in (store.root / folder).glob("*")):
                _copy(path, partial / path.relative_to(store.root))
            for request, plan in zip(requests, plans, strict=True):
                if request.table is not None and any(item.done for item in plan):
                    outputs.write(request, outputs.build_table(request, plan, store), partial)
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
    return target


def _pack(source: Path, target: Path) -> None:
    """Write a cell's answers without what only a resumed generation needs; equal answers give equal bytes."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    text = "".join(f"{canonical_json({key: row[key] for key in ('item_id', 'text')})}\n" for row in rows)
    write_atomic(target, gzip.compress(text.encode(), mtime=0))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
