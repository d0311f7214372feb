"""From rows to the records in use; counts and ids are checked before anything is written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.data.prepare import forms
from benchmark.data.prepare.files import Index
from benchmark.data.prepare.forms import Row

LISTED = "ids_test.txt"


def load_checked(
    name: str, spec: data.DatasetLike, found: Mapping[str, list[Row]], splits: Sequence[str], ids: Sequence[str],
    root: Path,
) -> dict[str, list[data.Record]]:
    """Return the records to be used, by split. They are read from a temporary folder, and name images below `root`.

    Raises:
        UserError: counts or ids are wrong, a row cannot be read, or the data folder is not writable.
    """
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


def check_image_counts(spec: data.DatasetLike, records: Mapping[str, Sequence[data.Record]]) -> None:
    """Check `counts.<split>_images`: the right number of questions can still be the wrong questions.

    Raises:
        UserError: the counts differ; the message names the split and both counts.
    """
    for split, rows in records.items():
        expected = (spec.counts or {}).get(f"{split}_images")
        images = len({record.image for record in rows} - {None})
        if expected is not None and images != expected:
            raise UserError(
                f"{split} has {len(rows):,} items on {images:,} images, the official split has {expected:,} images. "
                f"Fetch it again, or set dataset.{spec.id}.counts.{split}_images."
            )


def sample_books(
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
            records = load_checked("ocrvqa", spec, found, splits, ids, root)
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
