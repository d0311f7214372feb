"""COCO captions: five or more per photograph (Chen et al. 2015), Karpathy's splits; train includes restval.

Files below coco/: dataset_coco.json, <filepath>/<filename>.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.data import check
from benchmark.data.layout import official_names
from benchmark.data.readers.captions import karpathy
from benchmark.data.record import Record

if TYPE_CHECKING:
    from benchmark.data import DatasetLike

SPLITS = {"train": ["train", "restval"], "validation": "val", "test": "test"}


def load(root: Path, split: str, spec: DatasetLike) -> list[Record]:
    """Read a split.

    Args:
        root: data folder.
        split: train, validation or test.
        spec: the prompt has no fields.

    Returns:
        Records, see `benchmark.data.readers.captions.karpathy`.

    Raises:
        UserError: the file or a key is missing.
    """
    folder = root / "coco"
    path = folder / "dataset_coco.json"

    def image_of(entry: dict) -> Path:
        place, name = (check.text(entry, key, path, "an image") for key in ("filepath", "filename"))
        return folder / place / name

    return karpathy(path, official_names(spec, split, SPLITS), "cocoid", image_of, split, spec)
