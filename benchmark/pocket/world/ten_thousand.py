"""The suite at the paper's number of training rows, its targets as hard as in the paper (docs/calibration.md)."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmark.core.hosts import usable_cores
from benchmark.data.readers.captions import sampled
from benchmark.pocket.world import draw as drawing
from benchmark.pocket.world.draw import (
    BASE,
    Entry,
    Folder,
    Progress,
    candidates,
    target_index,
    target_item,
    target_split,
)
from benchmark.pocket.world.splits import TARGETS, UPSTREAM
from benchmark.pocket.world.targets import Distance

ROWS = 10_000
COUNTS = {
    **{name: drawing.COUNTS[name] for name in UPSTREAM},
    **{name: {"train": ROWS, "validation": 200, "test": 500} for name in TARGETS},
}
DISTANCE = Distance(near_words=0.45, new_questions=0.5)  # by the rule of docs/calibration.md
CAPTIONS = "12345"  # an image has five
BLOCK = 250  # rows that a process draws at a time

Row = tuple[int, Entry, str]  # number, entry in the index, content key


def complete(root: Path) -> bool:
    """Return whether every dataset below a folder was drawn by this code: then nothing has to be written."""
    return all(drawing.is_drawn(Path(root) / name, stamp) for name, stamp in _stamps().items())


def draw(root: Path, on_progress: Progress | None = None) -> None:
    """Write every dataset that is missing or was drawn by another version of this code.

    Args:
        root: folder that gets one sub-folder per dataset.
        on_progress: called with (datasets done, datasets in all, name).

    Raises:
        UserError: the folder cannot be written, or the icon font is missing.
    """
    stamps = _stamps()
    for index, (name, stamp) in enumerate(stamps.items()):
        if on_progress:
            on_progress(index, len(stamps), name)
        write: Callable[[Path, str], None] = _target if name in TARGETS else drawing.WRITERS[name]
        drawing.draw_dataset(name, Path(root) / name, stamp, write)
    if on_progress:
        on_progress(len(stamps), len(stamps), "done")


def _stamps() -> dict[str, drawing.Stamp]:
    """Return dataset -> what it is drawn from; the source sets do not depend on this module."""
    version, own = drawing.code_version(), hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    return {
        name: {"version": version + (own if name in TARGETS else ""), "counts": COUNTS[name]}
        for name in UPSTREAM + TARGETS
    }


def row_numbers(name: str, rows: int = ROWS) -> list[int]:
    """Return the number of each training row of a target.

    `benchmark.data.subset` orders the items of a split by a hash of their ids, and `train.limit=n` keeps the first n.
    Rows get their numbers in this order: the first n rows drawn are those that the limit keeps of all.

    Args:
        name: target.
        rows: how many rows are wanted.
    """
    def rank(number: int) -> str:
        item = f"{number}_{sampled(CAPTIONS, str(number), 1, 0)[0]}" if name in ("flickr30k", "coco") else str(number)
        return hashlib.sha256(f"0\0{name}\0{item}".encode()).hexdigest()

    return sorted(range(BASE["train"], BASE["train"] + ROWS), key=rank)[:rows]


def _target(root: Path, name: str) -> None:
    out = Folder(root)
    numbers = row_numbers(name, COUNTS[name]["train"])
    blocks = [(root, name, start, numbers[start : start + BLOCK]) for start in range(0, len(numbers), BLOCK)]
    rows = sorted((row for block in _in_parallel(_rows, blocks) for row in block), key=lambda row: row[0])
    entries = {"train": [entry for _, entry, _ in rows]}
    out.keys["train"] = {str(number): key for number, _, key in rows}
    for split in ("validation", "test"):
        entries[split] = target_split(out, name, split, COUNTS[name][split], DISTANCE)
    target_index(out, name, entries)
    out.close()


def _in_parallel(work: Callable[..., list[Row]], calls: Sequence[tuple[Any, ...]]) -> Iterator[list[Row]]:
    """Yield what a function returns for each tuple of arguments, computed on all cores."""
    processes = min(usable_cores(), len(calls))
    if processes < 2:
        yield from itertools.starmap(work, calls)
        return
    # Spawned: a fork would copy locks that threads of this process hold.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (os.getpid(),))
    # A process inherits the mask: ctrl-C while it starts, before `_begin`, would end it with a traceback.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            rows = pool.map(work, *zip(*calls, strict=True))  # starts the processes
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield from rows
    finally:
        pool.shutdown(cancel_futures=True)  # after ctrl-C, do not wait for rows that nobody wants


def _begin(parent: int) -> None:
    """Leave ctrl-C to the program that started this process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _rows(root: Path, name: str, start: int, numbers: Sequence[int]) -> list[Row]:
    """Draw some training rows. Each has a generator of its own, so it does not matter which others are drawn.

    Contents may repeat, in new pixels: without repeats, the kinds of question that have few contents would be rare.
    """
    out, rows = Folder(root), []
    for position, number in enumerate(numbers, start):
        picture, item, rng = next(candidates(name, "train", DISTANCE, f"{name}/train/{position}"))
        entry = target_item(out, name, "train", number, picture, item, rng, DISTANCE)
        rows.append((number, entry, item.key()))
    return rows
