"""From records to tensors: encoded items and the padded batch that both families take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmark.models import LoadedModel
from benchmark.models.prompt import IGNORE


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
