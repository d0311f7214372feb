"""How many positions the images of a dataset take in a model whose processor decides that by their size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.core.errors import UserError
from benchmark.models import places
from benchmark.spec import at_root

if TYPE_CHECKING:
    from benchmark.spec import DatasetSpec, ModelSpec

SAMPLE = 200  # images whose sizes are read


@dataclass(frozen=True)
class ImageTokens:
    """Positions per image: the mean, which decides the time, and the largest number, which decides the memory."""

    mean: int
    largest: int
    images: int


def of_data(model: ModelSpec, dataset: DatasetSpec, data_root: str, split: str) -> ImageTokens | None:
    """Return the positions of a dataset's images.

    Args:
        model: of family auto.
        dataset: its first SAMPLE images in the seeded order of subsets are looked at.
        data_root: data folder.
        split: the split.

    Returns:
        The positions; None without the checkpoint's processor, without the data, or without images in them.
    """
    from benchmark import data

    path = places.checkpoint(model).path
    if model.family != "auto" or not path.is_dir() or not (at_root(data_root) / data.reader_of(dataset)).is_dir():
        return None
    from PIL import Image

    from benchmark.data.record import find_image
    from benchmark.models.auto import load_inputs

    try:
        records = data.subset(data.load(dataset, at_root(data_root), split), SAMPLE)
        inputs = load_inputs(path, model)
        sizes = []
        for record in records:
            if record.image is not None and (file := find_image(record.image)):
                with Image.open(file) as image:
                    sizes.append(image.size)
        known = {size: inputs.image_tokens(size) for size in set(sizes)}
    except (UserError, OSError):  # the run reports it
        return None
    counts = [known[size] for size in sizes]
    return ImageTokens(round(sum(counts) / len(counts)), max(counts), len(counts)) if counts else None
