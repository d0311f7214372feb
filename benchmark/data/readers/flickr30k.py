"""Flickr30k: five captions per photograph (Young et al. 2014), Karpathy's splits.

Files below flickr30k/: dataset_flickr30k.json, flickr30k-images/<filename>.
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

SPLITS = {"train": "train", "validation": "val", "test": "test"}


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
    folder = root / "flickr30k"
    path = folder / "dataset_flickr30k.json"

    def image_of(entry: dict) -> Path:
        return folder / "flickr30k-images" / check.text(entry, "filename", path, "an image")

    return karpathy(path, official_names(spec, split, SPLITS), "imgid", image_of, split, spec)
