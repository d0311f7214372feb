"""Prepare the paper's training and evaluation sets, from the user's files or from hub tables, checked and counted.

Each split comes from the first source that has it: official files, the group's JSON files, hub tables. The output is
the official annotation files, reduced to the fields in use, and the images: links to the user's files, or the undecoded
bytes of a table. One set of readers therefore serves every source. Images of a table are written to files once because
training reads them in random order, and parquet would have to read a whole row group for each.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmark import data
from benchmark.core.errors import UserError, counted, did_you_mean
from benchmark.core.files import digest_of, lock, user_path, write_atomic
from benchmark.core.progress import long_work
from benchmark.core.project import shipped
from benchmark.data.layout import official_names
from benchmark.data.prepare import forms, group, hub, official
from benchmark.data.prepare.files import Index, Place, unpack
from benchmark.data.prepare.forms import Row

Say = Callable[[str], None]

SOURCES = shipped("conf") / "sources.yaml"
MANIFEST, MARKER, UNPACKED, KNOWN, LISTED = "prepared.json", ".preparing", ".unpacked", "ids.json", "ids_test.txt"
LOCK = ".lock"
TABLES = ".tables"  # cache of `datasets` if its default cache is not writable
BY_IMAGE = ("okvqa", "textvqa", "gqa")  # several questions share an image, so its file is named by the image's id
PROGRESS_SECONDS = 10.0
GROUP = "the group's files"


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


@cache
def sources() -> dict[str, Any]:
    """Return conf/sources.yaml."""
    return yaml.safe_load(SOURCES.read_text(encoding="utf-8"))


def main(argv: Sequence[str], specs: Mapping[str, data.DatasetLike], root: Path) -> int:
    """Parse the options of `data prepare`, prepare the datasets and print a summary.

    Args:
        argv: names of datasets (default: all datasets of the profile) and options.
        specs: the profile's datasets by id.
        root: data folder.

    Returns:
        Exit code 0.

    Raises:
        UserError: a dataset could not be prepared; the message lists every reason.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmark data prepare", exit_on_error=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--from", dest="places", action="append", default=[], metavar="[DATASET=]DIR")
    parser.add_argument("--no-hub", action="store_true")
    parser.add_argument("--group-first", action="store_true")
    parser.add_argument("--splits", default="", metavar="validation")
    parser.add_argument("--ids", action="append", default=[], metavar="DATASET=FILE")
    try:
        given, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(f"data prepare: {error}.") from None
    if unknown:
        raise UserError(
            f"data prepare: unknown option {unknown[0]!r}. Valid: --from, --no-hub, --group-first, --splits, --ids."
        )
    known = list(dict.fromkeys(data.reader_of(spec) for spec in specs.values()))
    names = [name for item in given.names for name in item.split(",")] or known
    places, ids = [], {}
    own: dict[str, tuple[Path, ...]] = {}
    for text in given.places:
        name, equals, rest = text.partition("=")
        if equals and name in known:
            own[name] = (*own.get(name, ()), user_path(rest))
        else:
            places.append(user_path(text))
    for text in given.ids:
        name, _, rest = text.partition("=")
        ids[name] = user_path(rest)
    for name in (*names, *ids):
        if name not in known:
            raise UserError(f"Unknown dataset {name!r}.{did_you_mean(name, known)}")
    splits = tuple(filter(None, given.splits.split(",")))
    for name in splits:
        if name not in data.SPLITS:
            raise UserError(f"Unknown split {name!r}.{did_you_mean(name, data.SPLITS)}")
    options = Options(tuple(places), own, not given.no_hub, splits, ids, given.group_first)
    by_reader = {data.reader_of(spec): spec for spec in reversed(list(specs.values()))}
    prepare({name: by_reader[name] for name in names}, root, options, lambda text: print(text, flush=True))
    return 0


def prepare(specs: Mapping[str, data.DatasetLike], root: Path, options: Options, say: Say) -> None:
    """Prepare datasets one after another. If one fails, the others are still prepared.

    Args:
        specs: reader -> spec of the datasets to prepare.
        root: data folder; receives a folder per dataset, and ids.json with the digests of all item ids ever prepared.
        options: where to look.
        say: called with each line of progress.

    Raises:
        UserError: some datasets could not be prepared; the message lists every reason.
    """
    @cache
    def online() -> bool:
        if options.hub and not hub.reachable():
            say(
                "The hub cannot be reached: nothing is downloaded, only tables below --from and in the hub client's "
                "cache are read (--no-hub leaves out this check)"
            )
            return False
        return options.hub

    faults = {}
    with _alone(root, say):
        for name, spec in specs.items():
            about = sources()[name]
            say(f"{name}: licence {about['licence']}; terms {about['terms']}")
            try:
                for line in _prepare(name, spec, root, options, online, say):
                    say(f"  {line}")
            except UserError as error:
                faults[name] = str(error)
                say("  NOT PREPARED, see below")
    if faults:
        lines = "\n".join(f"  {name}: {text}" for name, text in faults.items())
        verb = "is" if len(faults) == 1 else "are"
        others = "" if len(faults) == len(specs) else " (the others are)"
        raise UserError(
            f"{len(faults)} of {counted(len(specs), 'dataset')} {verb} not prepared{others}; the same command goes "
            f"on:\n{lines}"
        )


@contextlib.contextmanager
def _alone(root: Path, say: Say) -> Iterator[None]:
    """Lock a data folder: two commands would write the same files and overwrite each other's ids.json."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a read-only folder is checked, or refused per dataset
            root.mkdir(parents=True, exist_ok=True)
            if os.access(root, os.W_OK):
                file = stack.enter_context(open(root / LOCK, "a"))
                lock(file, waiting=lambda: say(f"Another command prepares {root}: waiting for it"))
        yield


def wanted_splits(spec: data.DatasetLike, more: Sequence[str] = ()) -> list[str]:
    """Return the splits that the tables need (test; for targets also train) and those in `more`, by our names."""
    needed = {"test", *more} | ({"train"} if getattr(spec, "role", "target") == "target" else set())
    return [split for split in data.SPLITS if split in needed]


def _prepare(
    name: str, spec: data.DatasetLike, root: Path, options: Options, online: Callable[[], bool], say: Say
) -> list[str]:
    """Prepare one dataset; return the lines of its summary. `online` is called only when a download may be needed."""
    folder = root / name
    before = _manifest(folder)
    splits = wanted_splits(spec, (*options.splits, *(before or {}).get("splits", {})))
    # Keep the earlier options: a later prepare without them must not silently choose other items.
    kept = folder / LISTED if before is not None and before["written"] and (folder / LISTED).is_file() else None
    ids = _listed(options.ids.get(name, kept))
    options = replace(options, group_first=options.group_first or bool((before or {}).get("group_first")))
    choice = digest_of([
        {split: official_names(spec, split, _module(name).SPLITS) for split in splits},
        spec.counts, spec.options, ids, *(["group first"] if options.group_first else []),
    ])
    users_own = before is None and folder.is_dir() and not (folder / MARKER).exists() and any(folder.iterdir())
    if users_own or (before is not None and not before["written"]):
        say("  the folder holds files of yours: they are checked and left as they are")
        records = {split: data.load(spec, root, split) for split in splits}
        return _finish(name, spec, root, records, choice, {split: "your files" for split in splits}, False, [], say)
    if before is not None and before["choice"] == choice:
        records = {split: data.load(spec, root, split) for split in splits}
        if all(record.image is None or data.find_image(record.image) for split in splits for record in records[split]):
            return ["prepared already", *_summary(before)]
    index, found, origin, notes = _rows(name, spec, splits, options, root, online, say)
    _check_rows(name, spec, found, origin)
    if name == "ocrvqa":
        found, records, gone = _sample_books(spec, found, splits, ids, root, index)
        notes += gone
    else:
        records = _load_checked(name, spec, found, splits, ids, root)
    _check_image_counts(spec, records)
    _compare_ids(name, root, choice, records)
    for split in splits:
        if split == "test":
            notes += group.verify(name, records[split], index)
    write_atomic(folder / MARKER, "an unfinished `data prepare`: the same command goes on\n")
    with contextlib.suppress(FileNotFoundError):
        (folder / MANIFEST).unlink()
    forms.write(name, folder, found)
    if ids:
        write_atomic(folder / LISTED, "".join(f"{item}\n" for item in ids))
    _place_images(name, records, found, index, spec, root, say)
    return _finish(name, spec, root, records, choice, origin, True, notes, say, options.group_first)


def _module(name: str) -> Any:
    return importlib.import_module(data.DATASETS[name])


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest that an earlier prepare wrote for a dataset, or None."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return content if {"choice", "splits", "written"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _listed(path: Path | None) -> list[str]:
    """Return the ids in a file, one per line. The group's JSON lines are refused: they have no item ids."""
    if path is None:
        return []
    from benchmark.data.check import read_text

    ids = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not ids or ids[0].startswith(("{", "[")):
        raise UserError(
            f"{path} is not a list of item ids, one per line. The group's jsonl goes below --from, with --group-first "
            "if official files are there too."
        )
    return ids


# ---------------------------------------------------------------------------------------------------------------
# Rows


def _rows(
    name: str, spec: data.DatasetLike, splits: Sequence[str], options: Options, root: Path, online: Callable[[], bool],
    say: Say,
) -> tuple[Index, dict[str, list[Row]], dict[str, str], list[str]]:
    """Return the index of the user's files, rows per official split, the source of each of our splits, and notes."""
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
    officials = {split: official_names(spec, split, _module(name).SPLITS) for split in splits}
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
    return index, found, origin, []


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


def _sample_books(
    spec: data.DatasetLike, found: dict[str, list[Row]], splits: Sequence[str], ids: Sequence[str], root: Path,
    index: Index,
) -> tuple[dict[str, list[Row]], dict[str, list[data.Record]], list[str]]:
    """Sample OCR-VQA's questions from books whose cover exists and can be decoded; return rows, records, notes.

    Only the covers of sampled questions are decoded. The sample is a prefix of a fixed order of questions. Leaving out
    a bad cover and sampling again therefore gives the prefix of the good ones.

    Raises:
        UserError: too few questions are left; the message says what was left out.
    """
    folder = root / "ocrvqa"
    found, notes = _drop_books(found, index, folder)
    tried: set[str] = set()
    bad: list[str] = []
    while True:
        told = [*notes, *([
            f"{len(bad)} books have a cover that cannot be decoded (first: {', '.join(bad[:3])}); their questions are "
            "not sampled either"
        ] if bad else [])]
        try:
            records = _load_checked("ocrvqa", spec, found, splits, ids, root)
        except UserError as error:
            raise UserError(" ".join([str(error), *(f"{note[0].upper()}{note[1:]}." for note in told)])) from None
        drawn = {record.group: record for rows in records.values() for record in rows if record.group not in tried}
        broken = {book for book, record in drawn.items() if not _decodes(record, index)}
        if not broken:
            return found, records, told
        tried |= drawn.keys()
        bad = sorted([*bad, *broken])
        found = {part: [row for row in rows if row.id not in broken] for part, rows in found.items()}


def _decodes(record: data.Record, index: Index) -> bool:
    """Return whether the cover of a record can be read. Covers inside a table are checked after they are written."""
    assert record.image is not None
    path = index.image(record.image) or data.find_image(record.image)
    if path is None:
        return True
    try:
        data.open_image(replace(record, image=path))
    except UserError:
        return False
    return True


def _drop_books(
    found: Mapping[str, list[Row]], index: Index, folder: Path
) -> tuple[dict[str, list[Row]], list[str]]:
    """Remove books without a cover before questions are sampled: many of Amazon's links are dead."""
    kept, notes = {}, []
    for part, rows in found.items():
        there = [row for row in rows if row.stored or _cover(row, index, folder)]
        kept[part] = there
        if len(there) < len(rows):
            gone = [row.id for row in rows if row not in there] if len(rows) < 5000 else sorted(
                {row.id for row in rows} - {row.id for row in there}
            )
            notes.append(
                f"split {part}: {len(gone)} of {len(rows)} books have no cover (first: {', '.join(gone[:3])}); their "
                "questions are not sampled, so the item ids may differ from another copy's"
            )
    return kept, notes


def _cover(row: Row, index: Index, folder: Path) -> Path | None:
    path = folder / "images" / f"{row.id}.jpg"
    return index.image(path) or data.find_image(path)


def _check_rows(
    name: str, spec: data.DatasetLike, found: Mapping[str, list[Row]], origin: Mapping[str, str]
) -> None:
    """Refuse a split whose row count differs from the official one: a sample of it would hold other items.

    The group's files are exempt because they are samples of splits.

    Raises:
        UserError: the counts differ; the message names the split, its source and both counts.
    """
    for split, source in origin.items():
        expected = (spec.counts or {}).get(f"{split}_rows")
        parts = official_names(spec, split, _module(name).SPLITS)
        rows = sum(len(found[part]) for part in parts)
        if expected is not None and source != GROUP and rows != expected:
            raise UserError(
                f"{split} ({'+'.join(parts)}) has {rows:,} rows in {source}, the official split has {expected:,}: a "
                f"sample of it would be other items. Fetch it again, or set dataset.{spec.id}.counts.{split}_rows."
            )


def _check_image_counts(spec: data.DatasetLike, records: Mapping[str, Sequence[data.Record]]) -> None:
    """Check `counts.<split>_images`: the right number of questions can still be the wrong questions."""
    for split, rows in records.items():
        expected = (spec.counts or {}).get(f"{split}_images")
        images = len({record.image for record in rows} - {None})
        if expected is not None and images != expected:
            raise UserError(
                f"{split} has {len(rows):,} items on {images:,} images, the official split has {expected:,} images. "
                f"Fetch it again, or set dataset.{spec.id}.counts.{split}_images."
            )


def _load_checked(
    name: str, spec: data.DatasetLike, found: Mapping[str, list[Row]], splits: Sequence[str], ids: Sequence[str],
    root: Path,
) -> dict[str, list[data.Record]]:
    """Return the records to be used. Counts and ids are checked before anything is written."""
    _made(root)
    with tempfile.TemporaryDirectory(dir=root, prefix=".checking-") as temporary:
        forms.write(name, Path(temporary) / name, found)
        if ids:
            write_atomic(Path(temporary) / name / LISTED, "".join(f"{item}\n" for item in ids))
        try:
            records = {split: data.load(spec, temporary, split) for split in splits}
        except UserError as error:  # the message must name the user's folder
            raise UserError(str(error).replace(temporary, str(root))) from None
        return {split: [_moved(record, Path(temporary), root) for record in rows] for split, rows in records.items()}


def _made(root: Path) -> None:
    """Create the data folder; raise UserError if it is not writable."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise UserError(f"Cannot write to {root}: {error.strerror}. Give a writable data_root=dir.") from error


def _moved(record: data.Record, old: Path, new: Path) -> data.Record:
    return record if record.image is None else replace(record, image=new / record.image.relative_to(old))


# ---------------------------------------------------------------------------------------------------------------
# Images


def _place_images(
    name: str, records: Mapping[str, Sequence[data.Record]], found: Mapping[str, list[Row]], index: Index,
    spec: data.DatasetLike, root: Path, say: Say,
) -> None:
    """Put the image of every record at its official path. Existing files are kept.

    Raises:
        UserError: images are missing; the message counts them and names the first.
    """
    stored: dict[tuple[str, str], list[Row]] = {}
    for part, rows in found.items():
        for row in rows:
            if row.stored is not None:
                stored.setdefault((part, str(row.image) if name in BY_IMAGE else row.id), []).append(row)
    wanted: dict[Path, tuple[str, str]] = {}
    for split, used in records.items():
        for record in used:
            if record.image is not None:
                wanted.setdefault(record.image, (split, str(record.meta["image_id"])))
    missing, began = [], time.monotonic()
    for number, (path, (split, key)) in enumerate(wanted.items()):
        if time.monotonic() - began > PROGRESS_SECONDS:
            began = time.monotonic()
            say(f"  {number} of {len(wanted)} images")
        if data.find_image(path):
            continue
        held = next(
            (stored[part, key] for part in official_names(spec, split, _module(name).SPLITS) if (part, key) in stored),
            None,
        )
        if held:
            _write_stored(name, path, held)
        elif (source := index.image(path)) is not None:
            _link(path.with_suffix(source.suffix.lower()), source)
        else:
            missing.append(path)
    if missing:
        about, first = sources()[name], missing[0].relative_to(root / name)  # the name image.png alone is ambiguous
        raise UserError(
            f"{len(missing)} of {len(wanted)} images are missing, the first is {first}. Put them below the "
            f"folder that --from names ({about['get']}), or name a folder of this dataset alone: --from {name}=DIR."
        )


def _write_stored(name: str, path: Path, rows: Sequence[Row]) -> None:
    """Write an image of a table, which several rows may share."""
    (first, source), *others = [(row.id, row.stored) for row in rows if row.stored is not None]
    try:
        content = source.read()
        for item, other in others:
            if other != source and other.read() != content:
                raise UserError(
                    f"{name}: items {first} and {item} should share the image {path}, but the table has "
                    "two different ones. Use the official files."
                )
    except OSError as error:
        raise UserError(f"{name}: item {first} has no image in its table ({error}).") from None
    write_atomic(path, content)


def _link(path: Path, source: Path) -> None:
    """Link to a user's file. A broken link from an earlier prepare is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        os.symlink(source.resolve(), path)
    except OSError as error:
        raise UserError(f"Cannot make the link {path}: {error.strerror}. Give a writable data_root=dir.") from None


# ---------------------------------------------------------------------------------------------------------------
# The end


def _finish(
    name: str, spec: data.DatasetLike, root: Path, records: Mapping[str, list[data.Record]], choice: str,
    origin: Mapping[str, str], written: bool, notes: Sequence[str], say: Say, group_first: bool = False,
) -> list[str]:
    """Decode every image, compare the ids with those of earlier prepares and write the manifest."""
    every = [record for rows in records.values() for record in rows]
    say(f"  decoding {len({record.image for record in every} - {None})} images")
    with long_work(name) as told:
        data.check_images(every, lambda done, total: told("images", done, total))
    content = {
        "choice": choice, "written": written, "group_first": group_first, "notes": list(notes),
        "splits": {
            split: {
                "source": origin[split], "items": len(rows), "ids": data.ids_digest(rows),
                "images": len({record.image for record in rows} - {None}),
            }
            for split, rows in records.items()
        },
    }
    folder = root / name
    if not written and not os.access(folder, os.W_OK):  # the user's data are only checked: no manifest to write
        return [*_summary(content), "the folder is read-only: nothing is noted in it"]
    _compare_ids(name, root, choice, records, keep=True)
    write_atomic(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    (folder / MARKER).unlink(missing_ok=True)
    return [*_summary(content), *notes]


def _summary(content: Mapping[str, Any]) -> list[str]:
    return [
        f"{split}: {part['items']} items, {part['images']} images, from {part['source']}, ids sha256 {part['ids'][:16]}"
        for split, part in content["splits"].items()
    ]


def _compare_ids(
    name: str, root: Path, choice: str, records: Mapping[str, list[data.Record]], keep: bool = False
) -> None:
    """Refuse items that differ from those that the first prepare chose with the same settings.

    Args:
        name: the dataset.
        root: data folder with ids.json.
        choice: digest of the settings.
        records: by split.
        keep: also record the ids of a first prepare.

    Raises:
        UserError: the ids differ.
    """
    path = root / KNOWN
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    for split, rows in records.items():
        place, ids = f"{name}/{split}/{choice[:12]}", data.ids_digest(rows)
        first = known.setdefault(place, {"items": len(rows), "ids": ids})
        if first["ids"] != ids:
            raise UserError(
                f"{split} has other items than at the first prepare with these settings: ids sha256 {ids[:16]}, then "
                f"{first['ids'][:16]}. Another source names or holds other items, so numbers could not be compared. "
                f"Use the first source, or delete the line {place} of {path}."
            )
    if keep:
        write_atomic(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
