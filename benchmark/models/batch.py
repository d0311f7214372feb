"""From records to tensors: encoded items, their pixels, and the padded batch that both families take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmark.data.record import Record, check_images, open_image
from benchmark.errors import UserError
from benchmark.models import LoadedModel
from benchmark.models.prompt import IGNORE, encode
from benchmark.models.vision import ImageProcessor

CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Item:
    """One encoded conversation.

    Args:
        item_id: of the record.
        input_ids: image positions already expanded.
        labels: as long as input_ids, -100 where nothing is supervised.
        pixels: uint8 (3, H, W), or None without image.
    """

    item_id: str
    input_ids: list[int]
    labels: list[int]
    pixels: Tensor | None


class PixelCache:
    """Prepared images as uint8, kept up to a number of bytes for all cells that one process works on."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.images: dict[tuple[Path, int, int, ImageProcessor], Tensor] = {}

    def get(self, record: Record, processor: ImageProcessor) -> Tensor:
        """Return the prepared image of a record, uint8 (3, H, W).

        Raises:
            UserError: the image is missing or corrupt.
        """
        try:
            state = record.image.stat()
            key = (record.image, state.st_mtime_ns, state.st_size, processor)
        except OSError:  # an image may carry another suffix than the record says: open_image looks
            key = None
        if key in self.images:
            return self.images[key]
        pixels = processor.to_uint8(open_image(record))
        # A full cache keeps what it has: an epoch reads in cyclic order, where dropping the oldest never hits.
        if key is not None and self.used + pixels.nbytes <= self.limit:
            self.used += pixels.nbytes
            self.images[key] = pixels
        return pixels


PIXELS = PixelCache(CACHE_BYTES)


class Items:
    """Records as encoded items: text at once, pixels when an item is asked for.

    Args:
        loaded: tokenizer, image processor and lengths.
        records: in the order of the indices.
        supervised: append the record's target and label it.

    Raises:
        UserError: a text does not fit, a target is missing, images are missing or corrupt (all counted).
    """

    def __init__(self, loaded: LoadedModel, records: Sequence[Record], supervised: bool) -> None:
        self.loaded = loaded
        self.records = records
        self.encoded: list[tuple[list[int], list[int]]] = []
        for record in records:
            if supervised and record.target is None:
                raise UserError(f"Item {record.item_id} of {record.dataset} has no target to train on.")
            try:
                pair = encode(
                    loaded.tokenizer,
                    record.prompt,
                    record.target if supervised else None,
                    record.image is not None,
                    loaded.image_token_id,
                    loaded.image_seq_length,
                    loaded.max_length,
                )
            except UserError as error:
                raise UserError(f"Item {record.item_id} of {record.dataset}: {error}") from None
            self.encoded.append(pair)
        self._preload()

    def _preload(self) -> None:
        processor = self.loaded.image_processor
        size = 3 * processor.height * processor.width
        with_image = [record for record in self.records if record.image is not None]
        self.in_memory = len(with_image) * size <= PIXELS.limit - PIXELS.used
        if self.in_memory:
            try:
                for record in with_image:
                    PIXELS.get(record, processor)
            except UserError:
                check_images(with_image)
                raise

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Item:
        record = self.records[index]
        ids, labels = self.encoded[index]
        pixels = None if record.image is None else PIXELS.get(record, self.loaded.image_processor)
        return Item(record.item_id, ids, labels, pixels)


def collate(loaded: LoadedModel, items: Sequence[Item], padding_side: str) -> dict[str, Tensor]:
    """Pad items to one length and normalise their images.

    Args:
        loaded: gives the pad id and the image normalisation.
        items: at least one.
        padding_side: "right" for training, "left" for generation.

    Returns:
        input_ids, attention_mask, position_ids, labels of (batch, length), int64; with an image also
        pixel_values (images, 3, H, W), float32, one per item with an image, in item order. Positions count
        from 0 at the first real token.
    """
    length = max(len(item.input_ids) for item in items)
    input_ids = torch.full((len(items), length), loaded.pad_token_id)
    labels = torch.full((len(items), length), IGNORE)
    attention_mask = torch.zeros(len(items), length, dtype=torch.long)
    for row, item in enumerate(items):
        size = len(item.input_ids)
        span = slice(0, size) if padding_side == "right" else slice(length - size, length)
        input_ids[row, span] = torch.tensor(item.input_ids)
        labels[row, span] = torch.tensor(item.labels)
        attention_mask[row, span] = 1
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "labels": labels,
    }
    pixels = [item.pixels for item in items if item.pixels is not None]
    if pixels:
        batch["pixel_values"] = loaded.image_processor.normalise(torch.stack(pixels))
    return batch
