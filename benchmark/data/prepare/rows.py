"""The rows of each split, from the first source that has them: official files, the group's files, hub tables."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.data.prepare import group, hub, official
from benchmark.data.prepare.catalogue import official_splits, sources
from benchmark.data.prepare.files import Index, Place, unpack
from benchmark.data.prepare.forms import Row

Say = Callable[[str], None]

GROUP = "the group's files"
UNPACKED = ".unpacked"
TABLES = ".tables"  # cache of `datasets` if its default cache is not writable


@dataclass(frozen=True)
class Options:
    """The user's request to `data prepare`.

    Attributes:
        places: folders to search for any dataset.
        own: dataset -> folders that hold only that dataset.
        hub: whether hub tables may be downloaded.
        splits: splits to prepare in addition to those that the tables need.
        ids: dataset -> file with the item ids to use in the test split, one per line.
        group_first: prefer the group's files to official files and tables. The group's 2,000 questions of OCR-VQA and
            10,000 rows of IconQA are samples that no seed of ours reproduces.
    """

    places: tuple[Path, ...] = ()
    own: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    hub: bool = True
    splits: tuple[str, ...] = ()
    ids: Mapping[str, Path] = field(default_factory=dict)
    group_first: bool = False


def find_rows(
    name: str, spec: data.DatasetLike, splits: Sequence[str], options: Options, root: Path, online: Callable[[], bool],
    say: Say,
) -> tuple[Index, dict[str, list[Row]], dict[str, str]]:
    """Find the rows of every split.

    Args:
        name: the dataset.
        spec: its configuration.
        splits: ours, e.g. "test".
        options: where to look.
        root: data folder; archives are unpacked below it.
        online: whether the hub can be reached; called only when a download may be needed.
        say: called with each line of progress.

    Returns:
        The index of the user's files; rows per official split; the source of each of our splits.

    Raises:
        UserError: no source has a split, or a file cannot be read.
    """
    about = sources()[name]
    places = [Place(path) for path in options.places] + [Place(path, own=True) for path in options.own.get(name, ())]
    index = Index(places, about["images"])
    archives = [path for path in index.archives if _belongs(path, about, places)]
    for path in archives:
        say(f"  unpacking {path} (once)")
        inside = unpack(path, root / UNPACKED)
        # The content of gqa/images.zip belongs to GQA although no path inside says so.
        places.append(Place(inside, own=_hinted(path, about["images"], places)))
    if archives:
        index = Index(places, about["images"])
    officials = {split: official_splits(name, spec, split) for split in splits}
    found: dict[str, list[Row]] = {}
    origin: dict[str, str] = {}
    tries: list[str] = []

    def take(rows: Mapping[str, list[Row]] | None, source: str) -> None:
        for part, content in (rows or {}).items():
            found.setdefault(part, content)
        for split in splits:
            if split not in origin and all(part in found for part in officials[split]):
                origin[split] = source

    def left() -> dict[str, list[str]]:
        return {split: officials[split] for split in splits if split not in origin}

    by_hand = [("official files", official.load), (GROUP, group.load)]
    for source, load in reversed(by_hand) if options.group_first else by_hand:
        for parts in ([part for names in left().values() for part in names], *left().values()):
            if left() and parts and not all(part in found for part in parts):
                take(load(name, parts, index), source)
    for split, parts in left().items():
        # A hub table holds one official split. For COCO, train alone means train without restval.
        if len(parts) > 1:
            tries.append(f"{split}: the hub has no table for {'+'.join(parts)}")
            continue
        if online():
            say(f"  {split}: from the hub")
        try:
            take(hub.load(name, {split: parts[0]}, about.get("hub") or {}, places, online(), root / TABLES), "hub")
        except hub.Unavailable as error:
            tries.append(f"{split}: {error}")
    if left():
        raise UserError(
            f"no source has {' and '.join(left())} ({'; '.join(tries)}). Fetch {about['get']} and name the folder: "
            f"--from {name}=DIR."
        )
    return index, found, origin


def _belongs(archive: Path, about: Mapping[str, Any], places: Sequence[Place]) -> bool:
    """Return whether an archive's name or folder suggests that it holds this dataset."""
    name = archive.name.lower()
    return _hinted(archive, about["images"], places) or any(
        fnmatch.fnmatch(name, text.lower()) for text in about["archives"]
    )


def _hinted(path: Path, pattern: str, places: Sequence[Place]) -> bool:
    """Return whether a path below one of the folders suggests that it belongs to the dataset."""
    for place in places:
        if path.is_relative_to(place.path):
            inside = f"{place.path.name}/{path.relative_to(place.path).as_posix()}"
            if place.own or re.search(pattern, inside, re.IGNORECASE):
                return True
    return False


def check_rows(
    name: str, spec: data.DatasetLike, found: Mapping[str, list[Row]], origin: Mapping[str, str]
) -> None:
    """Refuse a split whose row count differs from the official one: a sample of it would hold other items.

    The group's files are exempt because they are samples of splits.

    Raises:
        UserError: the counts differ; the message names the split, its source and both counts.
    """
    for split, source in origin.items():
        expected = (spec.counts or {}).get(f"{split}_rows")
        parts = official_splits(name, spec, split)
        rows = sum(len(found[part]) for part in parts)
        if expected is not None and source != GROUP and rows != expected:
            raise UserError(
                f"{split} ({'+'.join(parts)}) has {rows:,} rows in {source}, the official split has {expected:,}: a "
                f"sample of it would be other items. Fetch it again, or set dataset.{spec.id}.counts.{split}_rows."
            )
