"""The folder of one drawn dataset: written as a whole or not at all, and stamped with what it was drawn from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark.core.errors import UserError
from benchmark.core.files import unfinished_folder, write_atomic
from benchmark.pocket.world.content import Picture

SPLITS = ("train", "validation", "test")
FIRST_NUMBER = {"train": 100_000, "validation": 200_000, "test": 300_000}
"""Number of the first image of each split."""

Counts = Mapping[str, int]
"""Split -> number of items."""


def draw_dataset(name: str, folder: Path, counts: Counts, write: Callable[[Path, str, Counts], None]) -> None:
    """Draw a dataset that is missing or was drawn otherwise; an interruption leaves nothing half-written.

    Args:
        name: of the dataset.
        folder: its folder; drawn.json in it says what it was drawn from.
        counts: items per split.
        write: called with an empty folder, the name and the counts.

    Raises:
        UserError: the folder cannot be written, or holds files of the user.
    """
    if is_drawn(folder, counts):
        return
    if folder.exists() and not (folder / "drawn.json").exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds files that this program did not write. Move them away or choose another data_root."
        )
    drawn, old = (folder.with_name(f".{name}.{os.getpid()}{end}") for end in ("", ".old"))
    try:
        with unfinished_folder(drawn), unfinished_folder(old):
            drawn.mkdir()
            write(drawn, name, counts)
            write_atomic(drawn / "drawn.json", json.dumps(_stamp(counts), indent=1))
            if folder.exists():
                folder.rename(old)  # renamed before it is deleted: a kill never leaves half of it under its name
            drawn.rename(folder)
    except OSError as error:
        raise UserError(
            f"Cannot write {folder}: {error.strerror}. Choose a writable data_root with 100 MB free."
        ) from error


def is_drawn(folder: Path, counts: Counts) -> bool:
    """Return whether a dataset's folder is complete, has so many items, and was drawn by this code."""
    try:
        return json.loads((folder / "drawn.json").read_text(encoding="utf-8")) == _stamp(counts)
    except (OSError, ValueError):
        return False


def _stamp(counts: Counts) -> dict[str, Any]:
    return {"version": code_version(), "counts": dict(counts)}


@functools.cache
def code_version() -> str:
    """Return a digest of the drawing code and of the packages that decide the pixels."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    total.update("".join(version(p) for p in ("pillow", "matplotlib", "fonticon-fontawesome6")).encode())
    return total.hexdigest()[:16]


class Folder:
    """Collects a dataset's pictures and content keys while its writer runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys: dict[str, dict[str, str]] = {split: {} for split in SPLITS}

    def picture(self, path: str, picture: Picture, rng: random.Random) -> None:
        """Draw and save a picture below the folder."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        image: Image.Image = picture.draw(rng)
        if path.endswith(".jpg"):
            image.save(target, quality=95, subsampling=0)
        else:
            image.save(target, compress_level=1)

    def json(self, path: str, value: Any) -> None:
        """Write a JSON file below the folder."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(value))

    def close(self) -> None:
        """Write the content keys that the audit compares."""
        self.json("scene_keys.json", self.keys)
