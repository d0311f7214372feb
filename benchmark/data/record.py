"""The record, the common form of an item of any dataset, and functions that read and check its image."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmark.core.errors import UserError
from benchmark.core.files import canonical_json, sha256_file

# The formats that the datasets use. Some other formats make PIL start external programs.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
MOST_PIXELS = 2**26  # of a decoded image: a file of a few kilobytes can decode to more than fits in memory
LONGEST_SIDE = 2**14
LONGEST_RATIO = 200   # preprocessing pads a strip to a square or stretches its short edge
SUFFIXES = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FIX = "Restore the file (fetch or draw the dataset again); items are never skipped."


@dataclass(frozen=True)
class Record:
    """One question, or one image to describe, with everything that training and scoring need.

    Attributes:
        item_id: unique within a dataset's split.
        dataset: id of the dataset's spec.
        split: train, validation or test.
        image: image file, or None for a text-only item.
        prompt: the user's text as the model reads it, without an image tag.
        target: the answer to train on; None if there is none.
        references: the annotators' ten answers, the captions, or the single gold answer.
        options: the answers to choose from, or None for an open question.
        group: the image or scene that items share (the bootstrap resamples groups).
        meta: question, question_type and the official ids; JSON values only.
    """

    item_id: str
    dataset: str
    split: str
    image: Path | None
    prompt: str
    target: str | None
    references: tuple[str, ...]
    options: tuple[str, ...] | None
    group: str
    meta: dict[str, Any] = field(default_factory=dict)


def _where(record: Record) -> str:
    """Return 'item <id> of <dataset>/<split>'."""
    return f"item {record.item_id} of {record.dataset}/{record.split}"


def find_image(path: Path) -> Path | None:
    """Return the file of an image: the official name, or the same stem with another suffix in upper or lower case.

    Other suffixes are needed because OCR-VQA calls every cover .jpg although some were downloaded as .gif.
    """
    if path.is_file():
        return path
    endings = (form for suffix in SUFFIXES for form in (suffix, suffix.upper(), f".{suffix[1:].capitalize()}"))
    return next((other for ending in endings if (other := path.with_suffix(ending)).is_file()), None)


def _read(path: Path, transparency: str = "drop") -> Image.Image:
    """Return an image file decoded as RGB. Raises whatever PIL or the file system raises."""
    found = find_image(path)
    if found is None:
        raise FileNotFoundError("the file does not exist")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
        image: Image.Image = Image.open(found, formats=FORMATS)
    with image, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PIL recommends RGBA for a transparent palette
        short, long = sorted(image.size)
        if short * long > MOST_PIXELS or long > LONGEST_SIDE or long > LONGEST_RATIO * short:
            raise ValueError(
                f"{image.width} x {image.height} pixels; at most {MOST_PIXELS >> 20} million, {LONGEST_SIDE} a side "
                f"and {LONGEST_RATIO} to 1 are read"
            )
        image.load()
        if image.mode == "F":
            raise ValueError("its pixels are floating point numbers of unknown range")
        if transparency == "white" and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        # No further conversion by default, for 16-bit greys and EXIF too: the original pipelines call only this.
        return image.convert("RGB")


def open_image(record: Record, transparency: str = "drop") -> Image.Image:
    """Open the image of a record as RGB.

    Args:
        record: a record whose `image` is not None.
        transparency: "drop" ignores the alpha channel, as PIL's convert("RGB") and the original pipelines do; "white"
            puts the image on a white background.

    Returns:
        PIL image, mode RGB.

    Raises:
        UserError: the file is missing, truncated or not an image; the message names item and file.
    """
    if record.image is None:
        raise ValueError(f"item {record.item_id} of {record.dataset} has no image")
    try:
        return _read(record.image, transparency)
    except Exception as error:  # for broken files PIL raises OSError, SyntaxError, ValueError and others
        raise UserError(
            f"Cannot read the image {record.image} ({_where(record)}): {error}. {FIX}"
        ) from error


def check_images(records: Iterable[Record], told: Callable[[int, int], None] | None = None) -> int:
    """Decode the image of every record once.

    Args:
        records: any records; those without an image are skipped.
        told: called after each image with (images decoded, total images).

    Returns:
        Number of distinct image files read.

    Raises:
        UserError: some images cannot be read; the message counts them and names the first five.
    """
    seen: dict[Path, Record] = {}
    faults: list[str] = []
    for record in records:
        if record.image is not None:
            seen.setdefault(record.image, record)
    for done, (path, record) in enumerate(seen.items(), 1):
        try:
            _read(path)
        except Exception as error:  # as in open_image
            faults.append(f"  {path} ({_where(record)}): {error}")
        if told is not None:
            told(done, len(seen))
    if faults:
        more = [f"  ... and {len(faults) - 5} more"] if len(faults) > 5 else []
        raise UserError("\n".join([
            f"{len(faults)} of {len(seen)} images cannot be read:", *faults[:5], *more,
            FIX,
        ]))
    return len(seen)


def digest(records: Sequence[Record]) -> str:
    """Return a SHA-256 that depends on every field and every image byte, but not on the location of the files.

    Args:
        records: in the order of use.

    Returns:
        Hex digest.

    Raises:
        UserError: an image is missing or unreadable.
    """
    hashes: dict[Path, str] = {}
    total = hashlib.sha256()
    for record in records:
        content = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "image"}
        content["image"] = None if record.image is None else _image_digest(record.image, record, hashes)
        total.update(canonical_json(content).encode() + b"\n")
    return total.hexdigest()


def _image_digest(image: Path, record: Record, known: dict[Path, str]) -> str:
    """Return the SHA-256 of a record's image file. Each file is read once."""
    if image not in known:
        try:
            known[image] = sha256_file(find_image(image) or image)
        except OSError as error:
            raise UserError(
                f"Cannot read the image {image} ({_where(record)}): {error.strerror}. {FIX}"
            ) from error
    return known[image]
