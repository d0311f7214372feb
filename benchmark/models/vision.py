"""PIL image to tensor: pad, crop or resize, then normalise (LLaVA and VILA mm_utils)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmark.core.errors import UserError, did_you_mean
from benchmark.models.checkpoint_files import read_json

PREPROCESS = ("crop", "pad", "resize")


@dataclass(frozen=True)
class ImageProcessor:
    """Turns PIL images into pixel tensors; calling it gives float32 (3, H, W).

    Args:
        mode: "pad" (expand to a square with the mean colour, then resize), "crop" (resize the short edge, then crop the
            centre) or "resize" (ignore the aspect ratio).
        height: pixels.
        width: pixels.
        short_edge: length of the short edge before cropping, pixels.
        mean: per channel, on the 0-1 scale.
        std: per channel, on the 0-1 scale.
        resample: PIL filter number (3 is bicubic).
        transparency: how image files are opened; see `benchmark.data.open_image`.
    """

    mode: str
    height: int
    width: int
    short_edge: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = 3
    transparency: str = "drop"

    def __call__(self, image: Image.Image) -> Tensor:
        """Return one image as float32 (3, height, width)."""
        return self.normalise(self.to_uint8(image)[None])[0]

    def to_uint8(self, image: Image.Image) -> Tensor:
        """Return the padded, resized, cropped image as uint8 (3, height, width)."""
        image = image.convert("RGB")
        if self.mode == "pad":
            image = expand2square(image, tuple(int(x * 255) for x in self.mean))
        if self.mode == "resize":
            size = (self.width, self.height)
        else:
            short, long = sorted(image.size)
            stretched = int(self.short_edge * long / short)
            size = (
                (self.short_edge, stretched) if image.width <= image.height else (stretched, self.short_edge)
            )
        if image.size != size:
            image = image.resize(size, resample=self.resample)
        if self.mode != "resize":
            left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
            image = image.crop((left, top, left + self.width, top + self.height))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return (pixels / 255 - mean) / std.

        Args:
            pixels: uint8 (N, 3, height, width).

        Returns:
            float32 of the same shape.
        """
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return pixels.float().div_(255).sub_(mean).div_(std)


def expand2square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Return the image centred on a square canvas; the extra line of an odd margin is on the right or below."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    canvas = Image.new(image.mode, (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def load_image_processor(folder: Path, mode: str, transparency: str = "drop") -> ImageProcessor:
    """Return the image processor that a checkpoint's files describe.

    As in transformers, the image processor in processor_config.json (the only file that version 5 writes) comes before
    preprocessor_config.json. A field that is null counts as not set.

    Args:
        folder: has one of the two files.
        mode: one of PREPROCESS.
        transparency: "drop" or "white", for image files.

    Returns:
        The processor.

    Raises:
        UserError: the mode is unknown, or the file is missing or invalid.
    """
    if mode not in PREPROCESS:
        raise UserError(f"model.preprocess={mode!r} is unknown.{did_you_mean(mode, PREPROCESS)}")
    path, config = _settings(folder)
    try:
        config = {key: value for key, value in config.items() if value is not None}
        lost = [name for name in ("size", "image_mean", "image_std") if name not in config]
        if lost:
            raise ValueError(f"it sets no {', '.join(lost)}")
        size = config["size"]
        height, width = _height_width(config.get("crop_size", size))
        short_edge = size if isinstance(size, int) else min(_height_width(size))
        mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
        resample = int(config.get("resample", 3))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not a valid image preprocessor file ({error}). Fetch it again."
        ) from None
    if mode == "pad" and height != width:
        raise UserError(
            f"{path}: preprocess=pad needs a square size, the file says {height}x{width}. Use resize."
        )
    return ImageProcessor(mode, height, width, short_edge, mean, std, resample, transparency)


def _settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that describes the image processor, and its content."""
    nested, plain = folder / "processor_config.json", folder / "preprocessor_config.json"
    if nested.is_file() and isinstance(found := read_json(nested).get("image_processor"), dict):
        return nested, found
    if not plain.is_file():
        raise UserError(
            f"{plain} is missing, and there is no {nested.name} with an image_processor: the checkpoint is incomplete. "
            "Fetch or write it again."
        )
    return plain, read_json(plain)


def _height_width(size: int | dict) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if size.get("shortest_edge") is not None:
        return size["shortest_edge"], size["shortest_edge"]
    return size["height"], size["width"]
