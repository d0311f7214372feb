"""The four targets, in the official layouts of their counterparts, as hard as in the paper (docs/calibration.md)."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmark.core.hosts import usable_cores
from benchmark.data.readers.captions import sampled
from benchmark.pocket.world.content import Picture, candidates, distinct
from benchmark.pocket.world.folder import FIRST_NUMBER, SPLITS, Counts, Folder
from benchmark.pocket.world.targets import Distance, captions, letter

ROWS = 10_000  # the paper's training rows; fewer are the first of these
DISTANCE = Distance(near_words=0.45, new_questions=0.5)  # by the rule of docs/calibration.md
CAPTIONS = "12345"  # an image has five
BLOCK = 250  # rows that a process draws at a time
OFFICIAL = {"train": "train", "validation": "val", "test": "test"}
"""Split -> its name in the official files."""

Entry = dict[str, Any]
Row = tuple[int, Entry, str]  # number, entry in the index, content key


def write(root: Path, name: str, counts: Counts) -> None:
    """Write a target into an empty folder.

    Args:
        root: the folder.
        name: target.
        counts: items per split; training rows at most `ROWS`.
    """
    out = Folder(root)
    numbers = row_numbers(name, counts["train"])
    blocks = [(root, name, start, numbers[start : start + BLOCK]) for start in range(0, len(numbers), BLOCK)]
    rows = sorted((row for block in _in_parallel(_rows, blocks) for row in block), key=lambda row: row[0])
    entries = {"train": [entry for _, entry, _ in rows]}
    out.keys["train"] = {str(number): key for number, _, key in rows}
    for split in ("validation", "test"):
        entries[split] = _evaluated(out, name, split, counts[split])
    _index(out, name, entries)
    out.close()


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

    return sorted(range(FIRST_NUMBER["train"], FIRST_NUMBER["train"] + ROWS), key=rank)[:rows]


def _rows(root: Path, name: str, start: int, numbers: Sequence[int]) -> list[Row]:
    """Draw some training rows. Each has a generator of its own, so it does not matter which others are drawn.

    Contents may repeat, in new pixels: without repeats, the kinds of question that have few contents would be rare.
    """
    out, rows = Folder(root), []
    for position, number in enumerate(numbers, start):
        picture, item, rng = next(candidates(name, "train", DISTANCE, f"{name}/train/{position}"))
        entry = _item(out, name, "train", number, picture, item, rng)
        rows.append((number, entry, item.key()))
    return rows


def _in_parallel(work: Callable[..., list[Row]], calls: Sequence[tuple[Any, ...]]) -> Iterator[list[Row]]:
    """Yield what a function returns for each tuple of arguments, computed on all cores."""
    processes = min(usable_cores(), len(calls) // 4)  # below a thousand rows, a process costs more than it saves
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


def _evaluated(out: Folder, name: str, split: str, count: int) -> list[Entry]:
    """Write the first items of a split, all different, and return their entries in the target's index."""
    entries = []
    for number, (picture, item, rng, key) in enumerate(
        islice(distinct(name, split, DISTANCE), count), FIRST_NUMBER[split]
    ):
        entries.append(_item(out, name, split, number, picture, item, rng))
        out.keys[split][str(number)] = key
    return entries


def _item(
    out: Folder, name: str, split: str, number: int, picture: Picture | None, item: Any, rng: random.Random
) -> Entry:
    """Write the files of one item and return its entry in the target's index.

    Args:
        out: the target's folder.
        name: target.
        split: train, validation or test.
        number: of the item, unique in the target.
        picture: what it shows, or None.
        item: a Choice, or for captions the picture.
        rng: of the item.
    """
    official = OFFICIAL[split]
    if name in ("flickr30k", "coco"):
        rows = [{"tokens": text.rstrip(".").split(), "raw": text, "imgid": number}
                for text in captions(rng, item, name, DISTANCE)]
        entry: Entry = {"imgid": number, "sentences": rows, "split": official}
        if name == "coco":
            folder = "train2014" if split == "train" else "val2014"
            entry |= {"filepath": folder, "cocoid": number, "filename": f"COCO_{folder}_{number:012d}.jpg"}
        else:
            folder = "flickr30k-images"
            entry |= {"filename": f"{number}.jpg"}
        out.picture(f"{folder}/{entry['filename']}", item, rng)
        return entry
    if name == "iconqa":
        entry = {
            "question": item.question, "choices": list(item.options), "answer": item.answer,
            "ques_type": "choose_txt", "grade": "prek", "label": item.kind,
        }
        folder = f"iconqa_data/iconqa/{official}/choose_txt/{number}"
        assert picture is not None
        out.picture(f"{folder}/image.png", picture, rng)
        out.json(f"{folder}/data.json", entry)
        return {**entry, "split": official, "number": number}
    if picture is not None:
        out.picture(f"images/{official}/{number}/image.png", picture, rng)
    return {
        "question": item.question, "choices": list(item.options), "answer": item.answer, "hint": item.hint,
        "image": "image.png" if picture is not None else None, "task": "closed choice", "grade": "grade2",
        "subject": "natural science", "topic": item.kind, "category": item.kind, "skill": item.kind,
        "lecture": "", "solution": f"The answer is {letter(item.answer)}.", "split": official, "number": number,
    }


def _index(out: Folder, name: str, entries: Mapping[str, Sequence[Entry]]) -> None:
    """Write the files of a target that list all its items: the entries of each split, in order."""
    every = [entry for split in SPLITS for entry in entries[split]]
    if name in ("flickr30k", "coco"):
        sentences = [row for entry in every for row in entry["sentences"]]
        for number, row in enumerate(sentences):
            row["sentid"] = number
        for entry in every:
            entry["sentids"] = [row["sentid"] for row in entry["sentences"]]
        out.json(f"dataset_{name}.json", {"images": every, "dataset": name})
        return
    numbers = {split: [str(entry["number"]) for entry in entries[split]] for split in SPLITS}
    problems = {str(entry["number"]): {key: entry[key] for key in entry if key != "number"} for entry in every}
    folder, kind = ("iconqa_data/", "choose_txt_") if name == "iconqa" else ("", "")
    out.json(f"{folder}problems.json", problems)
    out.json(f"{folder}pid_splits.json", {f"{kind}{OFFICIAL[split]}": numbers[split] for split in SPLITS})
