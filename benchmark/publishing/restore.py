"""Published cells back in a results folder, so that a run on another machine goes on from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmark.config.request import Request
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.core.progress import progress
from benchmark.planning import plan as planning
from benchmark.running import runner
from benchmark.spec import CellSpec, at_root, digits_of
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cell_tables import FILES, KEY, LOG, SETS
from benchmark.store.cells import Store, published_key, read_cell
from benchmark.store.keys import Keys
from benchmark.store.scores import write_items


@dataclass(frozen=True)
class Restored:
    """Names of published cells: written, finished here before, and made by other code, data or settings."""

    written: list[str]
    there: list[str]
    stale: list[str]


def restore(asked: Request) -> Restored:
    """Write the published cells of a profile into its results folder, without weights, which are not published.

    A cell counts as finished if today's code, data and base model would give it the key that it was published with.
    A later post-hoc cell that needs its weights runs it again, whole.

    Args:
        asked: names the profile and the results folder.

    Raises:
        UserError: nothing is published, a checkpoint or data are missing, or the results folder cannot be written.
    """
    profile, store = asked.profile, Store(asked.results)
    if profile.reference is None or not (reference := Store(at_root(profile.reference))).is_published:
        raise UserError(f"Profile {profile.id} has no published results here. Start without them.")
    store.check_writable()
    folders = {digits_of(folder.name): folder for folder in reference.all_cells()}
    stale: list[str] = []
    published = asked.of(_readable(list(folders.values()), stale))
    runner.prepare(published, progress(1))
    planning.check_inputs(published.cells)
    found = Restored([], [], stale)
    for item in planning.make(published, store):
        folder = folders.get(digits_of(item.id))
        if folder is None:
            continue  # a post-hoc cell's Full FT run that was not published
        if item.done:
            found.there.append(item.id)
        elif item.keys is None or item.keys.summary != published_key(folder):
            found.stale.append(item.id)
        else:
            with store.lock(item.cell):
                _write(item.cell, item.keys, folder, store)
            found.written.append(item.id)
    return found


def _readable(folders: list[Path], stale: list[str]) -> Iterator[CellSpec]:
    """Yield the cells that today's program can describe; append the names of the others to `stale`."""
    for folder in folders:
        try:
            yield read_cell(folder)
        except UserError:
            stale.append(folder.name)


def _write(cell: CellSpec, keys: Keys, published: Path, store: Store) -> None:
    """Write one cell's files, then its record; the caller holds its lock."""
    store.begin(cell)
    folder = store.folder(cell)
    for name in (LOG, *FILES):
        if name != KEY and (published / name).is_file():
            write_atomic(folder / name, (published / name).read_text())
    for dataset in (one.id for one in cell.datasets):
        rows = ({"item_id": item, "text": text} for item, text in read_answers(published, dataset).items())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(folder / "answers" / f"{dataset}{SETS['answers']}", text)
        write_items(folder / "items" / f"{dataset}{SETS['items']}", read_items(published, dataset))
    seconds = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["seconds"]
    store.finish_elsewhere(cell, keys, seconds)
