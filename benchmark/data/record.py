"""The one form of an example, whatever dataset it comes from, and what can be asked of its image."""

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

# What the datasets come in; PIL also knows formats that start other programs.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
MOST_PIXELS = 2**26  # of a decoded image; a file of some kilobytes can hold more than the memory
LONGEST_SIDE = 2**14
LONGEST_RATIO = 200   # a strip is padded to a square, or its short edge stretched
SUFFIXES = (".jpg", ".png", ".gif", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FIX = "Restore the file (fetch or draw the dataset again); items are never skipped."


@dataclass(frozen=True)
class Record:
    """One question (or one image to describe) with everything that training and scoring need.

    Attributes:
        item_id: unique within a dataset's split.
        dataset: id of the dataset's spec.
        split: train, validation or test.
        image: image file, or None for a text-only item.
        prompt: the user's text as the model reads it, without an image tag.
        target: the answer to train on.
        references: ten annotators' answers, or the captions, or the one gold answer.
        options: the answers to choose from, where there are some.
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
    """Return the file that holds an image: the official name, or the same stem with another suffix, in any case.

    OCR-VQA calls every cover .jpg although some were downloaded as .gif, hence the second look.
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
        warnings.simplefilter("ignore", UserWarning)  # PIL would have a transparent palette as RGBA
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
        # Nothing else by default: the original pipelines call this and no more, also for 16-bit greys and EXIF.
        return image.convert("RGB")


def open_image(record: Record, transparency: str = "drop") -> Image.Image:
    """Open the image of a record as RGB.

    Args:
        record: a record whose `image` is not None.
        transparency: "drop" shows the colours under it, as PIL's convert("RGB") and so the original pipelines do;
            "white" puts the image on white.

    Returns:
        PIL image, mode RGB.

    Raises:
        UserError: the file is missing, truncated or no image; the message names item and file.
    """
    if record.image is None:
        raise ValueError(f"item {record.item_id} of {record.dataset} has no image")
    try:
        return _read(record.image, transparency)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and more for broken files
        raise UserError(
            f"Cannot read the image {record.image} ({_where(record)}): {error}. {FIX}"
        ) from error


def check_images(records: Iterable[Record], told: Callable[[int, int], None] | None = None) -> int:
    """Decode the image of every record once.

    Args:
        records: any records; those without an image are passed over.
        told: called after each image with (images decoded, images in all).

    Returns:
        Number of distinct image files read.

    Raises:
        UserError: some cannot be read; the message counts all and names the first five.
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
    """Return the SHA-256 that changes with any field or any image byte, and not with where the files lie.

    Args:
        records: in the order in which they are used.

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
    """Return the SHA-256 of a record's image file, read once per file."""
    if image not in known:
        try:
            known[image] = sha256_file(find_image(image) or image)
        except OSError as error:
            raise UserError(
                f"Cannot read the image {image} ({_where(record)}): {error.strerror}. {FIX}"
            ) from error
    return known[image]
