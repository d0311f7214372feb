"""The images of the records in use, put at their official paths."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.data.prepare.catalogue import official_splits, sources
from benchmark.data.prepare.files import Index
from benchmark.data.prepare.forms import Row
from benchmark.data.prepare.rows import Say

BY_IMAGE = ("okvqa", "textvqa", "gqa")  # several questions share an image, so its file is named by the image's id
PROGRESS_SECONDS = 10.0


def place_images(
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
        parts = official_splits(name, spec, split)
        held = next((stored[part, key] for part in parts if (part, key) in stored), None)
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
