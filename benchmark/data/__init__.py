"""Eight datasets behind one function: `load` turns the official files of any of them into records."""

from __future__ import annotations

import hashlib
import importlib
import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmark.core.errors import UserError, did_you_mean
from benchmark.data.layout import FIX, Absent
from benchmark.data.record import Record, check_images, digest, find_image, open_image
from benchmark.data.rows import JsonRow, json_rows
from eval.needs import lacking

__all__ = [
    "DATASETS", "SPLITS", "DatasetLike", "JsonRow", "Record", "check_images", "digest", "find_image", "ids_digest",
    "json_rows", "load", "open_image", "own_target", "reader_of", "subset",
]

DATASETS = {
    "okvqa": "benchmark.data.readers.okvqa",
    "textvqa": "benchmark.data.readers.textvqa",
    "ocrvqa": "benchmark.data.readers.ocrvqa",
    "gqa": "benchmark.data.readers.gqa",
    "flickr30k": "benchmark.data.readers.flickr30k",
    "coco": "benchmark.data.readers.coco",
    "iconqa": "benchmark.data.readers.iconqa",
    "scienceqa": "benchmark.data.readers.scienceqa",
}
SPLITS = ("train", "validation", "test")


class DatasetLike(Protocol):
    """The part of a dataset's spec that the readers use; benchmark.spec.DatasetSpec provides it."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def splits(self) -> Mapping[str, Any]: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def reader_of(spec: DatasetLike) -> str:
    """Return the name of the dataset's folder below the data root. For our datasets it is also the id of the reader.

    A protocol variant, such as TextVQA without OCR tokens, has a separate id and names its reader in `options.reader`.
    A user's own dataset names its module there, and its folder is called by its id.
    """
    reader = str(spec.options.get("reader", spec.id))
    return reader if reader in DATASETS else spec.id


def reader_module(spec: DatasetLike) -> str:
    """Return the module that reads a dataset: one of ours, or the user's."""
    reader = str(spec.options.get("reader", spec.id))
    return DATASETS.get(reader, reader)


def own_target(module: str) -> dict[str, Any]:
    """Return the spec of a user's own target from its module.

    Args:
        module: name of a module with `DATASET`, a dict of DatasetSpec fields (id, name, metric, prompt,
            max_new_tokens; the other fields have defaults), and `load(root, split, spec)`, which returns records.

    Returns:
        All fields of a DatasetSpec.

    Raises:
        UserError: the module cannot be imported, or lacks `DATASET` or `load`.
    """
    found = _import(module)
    if not isinstance(getattr(found, "DATASET", None), dict) or not callable(getattr(found, "load", None)):
        raise UserError(
            f"The module {module!r} needs DATASET, a dict, and load(root, split, spec). See examples/my_target.py."
        )
    given = dict(found.DATASET)
    if given.get("id") in DATASETS or not str(given.get("id", "")).isidentifier():
        raise UserError(f"DATASET of {module!r} needs an id of its own, such as my_target, got {given.get('id')!r}.")
    defaults = {"name": given["id"], "role": "target", "splits": {}, "counts": {}, "options": {}, "stop": []}
    return {**defaults, **given, "options": {**(given.get("options") or {}), "reader": module}}


def _import(module: str) -> Any:
    """Import one of our readers or one of the user's."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a user's file can fail in any way while it is imported
        if module in DATASETS.values():
            raise
        raise UserError(
            f"Cannot import {module!r}: {type(error).__name__}: {error}. Correct the module, give its "
            "file, e.g. ./my_target.py, or put its folder on PYTHONPATH."
        ) from error


def subset(records: Sequence[Record], limit: int | None, seed: int = 0) -> list[Record]:
    """Keep a prefix of a seeded permutation, in the original order.

    Items are ordered by the hash of seed, dataset and item id. Subsets of one seed therefore nest, and the order does
    not depend on the random generator of any library.

    Args:
        records: all records of one split.
        limit: number to keep; None, or more than there are, keeps all.
        seed: seed of the permutation.

    Returns:
        The kept records.

    Raises:
        UserError: the limit is below 1.
    """
    if limit is None or limit >= len(records):
        return list(records)
    if limit < 1:
        raise UserError(f"limit={limit}: at least one item is needed. Leave the limit out to take all.")

    def rank(index: int) -> tuple[str, int]:
        record = records[index]
        key = f"{seed}\0{record.dataset}\0{record.item_id}"
        return hashlib.sha256(key.encode()).hexdigest(), index

    return [records[index] for index in sorted(sorted(range(len(records)), key=rank)[:limit])]


def load(
    dataset_spec: DatasetLike, root: Path | str, split: str, limit: int | None = None, seed: int = 0
) -> list[Record]:
    """Read one split of a dataset from its official files below `root`/<dataset id>.

    `options.sample = {split: n}` (with `options.sample_seed`, default 0) makes a fixed subset part of the protocol,
    such as the 2,000 questions of OCR-VQA. A file ids_<split>.txt in the dataset's folder, one item id per line,
    replaces that sample. `counts` is checked after sampling. `limit` is applied last and is not part of the protocol.

    Args:
        dataset_spec: a benchmark.spec.DatasetSpec.
        root: data folder.
        split: train, validation or test.
        limit: number of items to keep, see `subset`.
        seed: seed of the limit.

    Returns:
        Records in file order.

    Raises:
        UserError: unknown dataset or split, missing or broken files, or a count that differs from the spec's.
    """
    reader = str(dataset_spec.options.get("reader", dataset_spec.id))
    if reader not in DATASETS and "reader" not in dataset_spec.options:
        raise UserError(f"Unknown dataset {reader!r}.{did_you_mean(reader, DATASETS)}")
    folder = Path(root) / reader_of(dataset_spec)
    if split not in SPLITS:
        raise UserError(f"Unknown split {split!r} of {dataset_spec.id}.{did_you_mean(split, SPLITS)}")
    try:
        records = _import(reader_module(dataset_spec)).load(Path(root), split, dataset_spec)
    except UserError:
        raise
    except FileNotFoundError as error:  # raised by a user's own reader
        raise Absent(f"{error.filename} does not exist. {FIX}") from error
    except Exception as error:
        if reader not in DATASETS:
            raise UserError(_own_fault(error, reader, folder, split)) from error
        if not isinstance(error, AttributeError | LookupError | TypeError | ValueError):
            raise
        # The readers report missing keys themselves; this handles keys whose values are of the wrong kind.
        raise UserError(
            f"The files in {folder} are not in the official layout of {reader} "
            f"({type(error).__name__}: {error}). {FIX}"
        ) from error
    if reader not in DATASETS:
        records = _own_records(records, reader, split)
    listed = folder / f"ids_{split}.txt"
    if listed.is_file():
        records = _listed(records, listed)
    else:
        sample = (dataset_spec.options.get("sample") or {}).get(split)
        records = subset(records, sample, dataset_spec.options.get("sample_seed", 0))
    if reader in DATASETS:
        _check_places(records, Path(root))
    _check(records, dataset_spec, folder, split)
    return subset(records, limit, seed)


def ids_digest(records: Sequence[Record]) -> str:
    """Return the SHA-256 of the sorted item ids, one per line. Equal digests mean equal items."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(r.item_id for r in records)).encode()).hexdigest()


def _listed(records: list[Record], path: Path) -> list[Record]:
    """Keep the records whose ids a file lists, in the order of the dataset's file.

    Raises:
        UserError: the file lists an id that the data do not have, or lists an id twice.
    """
    ids = path.read_text(encoding="utf-8").split()
    wanted = set(ids)
    absent = sorted(wanted - {record.item_id for record in records})
    if absent or len(wanted) != len(ids):
        problem = f"{len(absent)} ids that the data lack, such as {absent[0]}" if absent else "an id twice"
        raise UserError(f"{path} lists {problem}. Correct the list, or delete it to sample by the seed.")
    return [record for record in records if record.item_id in wanted]


def _check_places(records: Sequence[Record], root: Path) -> None:
    """Raise UserError if an id or a file name leads out of the data folder. Symbolic links of the user are allowed."""
    inside = os.path.join(os.path.abspath(root), "")
    for record in records:
        if record.image is not None and not os.path.abspath(record.image).startswith(inside):
            raise UserError(
                f"Item {record.item_id} of {record.dataset}/{record.split} names the image {record.image}, outside of "
                f"{root}. An id or a file name in the data is a path; correct it, or fetch the dataset again."
            )


def _own_fault(error: Exception, reader: str, folder: Path, split: str) -> str:
    """Return what failed in a user's own reader, and the line of the reader where it failed."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    name = getattr(_import(reader), "__file__", None)
    for other in traceback.extract_tb(error.__traceback__):
        frame = other if other.filename == name else frame
    return (
        f"{reader} cannot read {split} in {folder}: {type(error).__name__}: {error} ({frame.filename}, line "
        f"{frame.lineno}). Correct the data or the reader; benchmark.data.json_rows names the file and the line of a "
        "wrong row."
    )


def _own_records(records: Any, reader: str, split: str) -> list[Record]:
    """Return what a user's own reader returned, as a list; raise UserError unless every item is a record."""
    made = list(records) if isinstance(records, Iterable) else [records]
    wrong = next((item for item in made if not isinstance(item, Record)), None)
    if wrong is not None or not isinstance(records, Iterable):
        raise UserError(
            f"load of {reader} returned {type(wrong).__name__} for {split}, expected a list of benchmark.data.Record."
        )
    return made


def _check_kinds(record: Record, spec: DatasetLike, folder: Path, split: str) -> None:
    """Raise UserError if a field has the wrong type: a string in place of a tuple would be read letter by letter."""
    texts = {"item_id": record.item_id, "prompt": record.prompt, "group": record.group}
    tuples = {"references": record.references} | ({} if record.options is None else {"options": record.options})
    wrong = [f"{name}={value!r}, expected text" for name, value in texts.items() if not isinstance(value, str)]
    if not (isinstance(record.target, str) or (record.target is None and split != "train")):
        wrong.append(f"target={record.target!r}, expected text")
    if not (record.image is None or isinstance(record.image, Path)):
        wrong.append(f"image={record.image!r}, expected a pathlib.Path or None")
    if not isinstance(record.meta, Mapping):
        wrong.append(f"meta={record.meta!r}, expected a dict")
    for name, value in tuples.items():
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            wrong.append(f"{name}={value!r}, expected a tuple of strings")
    if wrong:
        raise UserError(
            f"Item {record.item_id} of {spec.id}/{split} in {folder} has {'; '.join(wrong)}. Correct the data or the "
            "reader."
        )


def _check_scorable(record: Record, spec: DatasetLike, folder: Path, split: str) -> None:
    """Raise UserError, before anything is trained, if the dataset's metric could not score an item."""
    metric = getattr(spec, "metric", None)
    reason = lacking(metric, record) if metric is not None and split != "train" else None
    if reason:
        raise UserError(
            f"Item {record.item_id} of {spec.id}/{split} in {folder} cannot be scored: {reason}. Correct the "
            f"annotation file, or choose another metric with dataset.{spec.id}.metric."
        )


def _check_texts(record: Record, spec: DatasetLike) -> None:
    """Raise UserError if a string is not valid Unicode: JSON can hold lone surrogates, which cannot be written."""
    try:
        for text in (record.item_id, record.group, record.prompt, record.target or "", *record.references):
            text.encode()
    except (UnicodeEncodeError, AttributeError) as error:
        raise UserError(
            f"Item {record.item_id} of {spec.id}/{record.split} has text that is not valid Unicode ({error}). {FIX}"
        ) from None


def _check(records: list[Record], spec: DatasetLike, folder: Path, split: str) -> None:
    """Raise UserError if the number of records differs from the spec's, a record is faulty or an item id repeats."""
    expected = (spec.counts or {}).get(split)
    if expected is not None and len(records) != expected:
        raise UserError(
            f"{spec.id}/{split} has {len(records)} items in {folder}, expected {expected}. "
            f"Fetch or draw the dataset again, or correct dataset.{spec.id}.counts.{split} in its config."
        )
    if not records:
        raise Absent(f"{spec.id}/{split} has no items in {folder}. Fetch or draw the dataset again.")
    seen: set[str] = set()
    for record in records:
        _check_kinds(record, spec, folder, split)
        _check_texts(record, spec)
        _check_scorable(record, spec, folder, split)
        if record.item_id in seen:
            raise UserError(
                f"{spec.id}/{split} in {folder} has item {record.item_id} twice. "
                "Fetch or draw the dataset again."
            )
        seen.add(record.item_id)
