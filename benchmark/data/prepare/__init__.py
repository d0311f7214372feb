"""Prepare the paper's training and evaluation sets, from the user's files or from hub tables, checked and counted.

Each split comes from the first source that has it: official files, the group's JSON files, hub tables. The output is
the official annotation files, reduced to the fields in use, and the images: links to the user's files, or the undecoded
bytes of a table. One set of readers therefore serves every source. Images of a table are written to files once because
training reads them in random order, and parquet would have to read a whole row group for each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmark import data
from benchmark.core.errors import UserError, counted, did_you_mean
from benchmark.core.files import digest_of, lock, user_path, write_atomic
from benchmark.core.progress import long_work
from benchmark.data.prepare import forms, group, hub
from benchmark.data.prepare.catalogue import official_splits, sources
from benchmark.data.prepare.images import place_images
from benchmark.data.prepare.manifest import MANIFEST, MARKER, compare_ids, read_manifest, summary
from benchmark.data.prepare.records import LISTED, check_image_counts, load_checked, sample_books
from benchmark.data.prepare.rows import Options, Say, check_rows, find_rows

LOCK = ".lock"


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
    before = read_manifest(folder)
    splits = wanted_splits(spec, (*options.splits, *(before or {}).get("splits", {})))
    # Keep the earlier options: a later prepare without them must not silently choose other items.
    kept = folder / LISTED if before is not None and before["written"] and (folder / LISTED).is_file() else None
    ids = _listed(options.ids.get(name, kept))
    options = replace(options, group_first=options.group_first or bool((before or {}).get("group_first")))
    choice = digest_of([
        {split: official_splits(name, spec, split) for split in splits},
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
            return ["prepared already", *summary(before)]
    index, found, origin = find_rows(name, spec, splits, options, root, online, say)
    check_rows(name, spec, found, origin)
    notes: list[str] = []
    if name == "ocrvqa":
        found, records, notes = sample_books(spec, found, splits, ids, root, index)
    else:
        records = load_checked(name, spec, found, splits, ids, root)
    check_image_counts(spec, records)
    compare_ids(name, root, choice, records)
    for split in splits:
        if split == "test":
            notes += group.verify(name, records[split], index)
    write_atomic(folder / MARKER, "an unfinished `data prepare`: the same command goes on\n")
    with contextlib.suppress(FileNotFoundError):
        (folder / MANIFEST).unlink()
    forms.write(name, folder, found)
    if ids:
        write_atomic(folder / LISTED, "".join(f"{item}\n" for item in ids))
    place_images(name, records, found, index, spec, root, say)
    return _finish(name, spec, root, records, choice, origin, True, notes, say, options.group_first)


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
        return [*summary(content), "the folder is read-only: nothing is noted in it"]
    compare_ids(name, root, choice, records, keep=True)
    write_atomic(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    (folder / MARKER).unlink(missing_ok=True)
    return [*summary(content), *notes]
