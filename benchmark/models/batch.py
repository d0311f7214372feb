"""From records to tensors: encoded items, their images, and the padded batch that every family takes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from benchmark.core.errors import UserError
from benchmark.core.progress import read_image
from benchmark.data.record import Record, check_images, find_image, open_image
from benchmark.models import LoadedModel
from benchmark.models.prompt import IGNORE

FEATURE_BYTES = 2**30
READ_SECONDS = 30  # longest wait for a batch from the processes that read ahead; torch would wait for ever
TOWER_BATCH = 32


@dataclass(frozen=True)
class Item:
    """One encoded conversation.

    Args:
        item_id: the record's id.
        input_ids: token ids, with image positions expanded.
        labels: as long as input_ids, -100 where nothing is supervised.
        image: pixels, uint8 (3, H, W), or the frozen tower's features of them, (patches, channels), or what the
            family's own inputs make of them; None without image.
    """

    item_id: str
    input_ids: list[int]
    labels: list[int]
    image: Any


class Items:
    """Records as encoded items. Images are tower features if all of them fit into memory, otherwise pixels.

    The tower is frozen in every cell, so its features serve all epochs, and all cells that a process runs. They are
    computed in batches that depend only on the records, so that a cell gets the same bits wherever it runs.

    Args:
        loaded: the model; it keeps the features.
        records: the records, in the order of the indices.
        supervised: append each record's target and label it. `cut` lists the items whose target was cut at its end.

    Raises:
        UserError: texts do not fit, targets are missing, or images are missing or corrupt; the message counts them.
    """

    def __init__(self, loaded: LoadedModel, records: Sequence[Record], supervised: bool) -> None:
        self.loaded = loaded
        self.records = records
        self.encoded = self._encode_all(supervised)
        # The end of a long training sample is cut, so the sample lacks the end token.
        self.cut = [
            record.item_id for record, (ids, _) in zip(records, self.encoded, strict=True)
            if supervised and ids[-1] != loaded.eos_token_id
        ]
        self.rows: dict[Path, int] = {}
        for record in records:
            if record.image is not None:
                self.rows.setdefault(record.image, len(self.rows))
        self.features = self._features()

    @property
    def in_memory(self) -> bool:
        """Whether items come from memory, without reading files."""
        return self.features is not None

    @property
    def workers(self) -> int:
        """Number of processes to read items ahead: 0 if items are in memory, otherwise up to 8 of this job's cores."""
        return 0 if self.in_memory else min(8, len(os.sched_getaffinity(0)))

    @property
    def blank(self) -> Tensor | Item:
        """A dummy image in the form of the other images, or an item with one, if the family makes its own inputs."""
        if self.loaded.inputs is not None:
            return self.loaded.inputs.blank
        if self.features is not None:
            return torch.zeros(self.loaded.feature_shape, dtype=self.features.dtype)
        processor = self.loaded.image_processor
        return torch.zeros(3, processor.height, processor.width, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Item:
        record = self.records[index]
        if record.image is None:
            image = None
        elif self.features is None:
            image = self._open(record)
        else:
            image = self.features[self.rows[record.image]]
        return Item(record.item_id, *self.encoded[index], image)

    def _encode_all(self, supervised: bool) -> list[tuple[list[int], list[int]]]:
        """Return the ids and labels of every record; raise with the number of records that cannot be encoded."""
        encoded, faults = [], []
        for record in self.records:
            try:
                encoded.append(self._encode(record, supervised))
            except UserError as error:
                faults.append(str(error))
        if len(faults) > 1:
            raise UserError(f"{len(faults)} of {len(self.records)} items cannot be used. The first: {faults[0]}")
        if faults:
            raise UserError(faults[0])
        return encoded

    def _encode(self, record: Record, supervised: bool) -> tuple[list[int], list[int]]:
        if supervised and record.target is None:
            raise UserError(f"Item {record.item_id} of {record.dataset} has no target to train on.")
        try:
            return encode(self.loaded, record, supervised)
        except UserError as error:
            raise UserError(f"Item {record.item_id} of {record.dataset}: {error}") from None

    def _features(self) -> Any:
        loaded, model = self.loaded, self.loaded.model
        if loaded.inputs is not None:
            return loaded.inputs.keep(self.records)
        shape = (len(self.rows), *loaded.feature_shape)
        used = sum(features.nbytes for features in loaded.features.values())
        files = [find_image(path) or path for path in self.rows]
        key = (loaded.image_processor, *(_state(path) for path in files))
        if math.prod(shape) * model.dtype.itemsize > FEATURE_BYTES - used and key not in loaded.features:
            if key not in loaded.checked:
                # Read all files once now, so that hours of training do not end at a broken file.
                check_images(self.records, read_image)
                loaded.checked.add(key)
            return None
        if key not in loaded.features:
            by_path = {record.image: record for record in self.records}
            features = torch.empty(shape, dtype=model.dtype)
            for start in range(0, len(files), TOWER_BATCH):
                pixels = self._pixels([by_path[path] for path in list(self.rows)[start : start + TOWER_BATCH]])
                with torch.no_grad():
                    features[start : start + len(pixels)] = loaded.tower(pixels.to(model.device, model.dtype))
                read_image(start + len(pixels), len(files))
            loaded.features[key] = features
        return loaded.features[key]

    def _open(self, record: Record) -> Any:
        if self.loaded.inputs is not None:
            return self.loaded.inputs.images(record)
        processor = self.loaded.image_processor
        return processor.to_uint8(open_image(record, processor.transparency))

    def _pixels(self, records: Sequence[Record]) -> Tensor:
        processor = self.loaded.image_processor
        try:
            return processor.normalise(torch.stack([self._open(record) for record in records]))
        except UserError:
            check_images(self.records)
            raise


def encode(loaded: LoadedModel, record: Record, supervised: bool) -> tuple[list[int], list[int]]:
    """Return (input_ids, labels) of a record, with its target if `supervised`.

    Raises:
        UserError: it is too long, or its target is empty.
    """
    if loaded.inputs is not None:
        return loaded.inputs.encode(record, supervised)
    return loaded.encode(
        loaded.tokenizer,
        record.prompt,
        record.target if supervised else None,
        record.image is not None,
        loaded.image_token_id,
        loaded.image_seq_length,
        loaded.max_length,
    )


def _state(path: Path) -> tuple[Path, int, int]:
    """Return path, time and size of a file, which change with its content. Opening a missing file reports it."""
    try:
        return path, path.stat().st_mtime_ns, path.stat().st_size
    except OSError:
        return path, 0, 0


def collate(loaded: LoadedModel, items: Sequence[Item], padding_side: str) -> dict[str, Tensor]:
    """Pad items to one length and normalise their pixels.

    Args:
        loaded: has the pad id and the image normalisation.
        items: at least one.
        padding_side: "right" for training, "left" for generation.

    Returns:
        input_ids, attention_mask, position_ids and labels, each (batch, length), int64. If items have images also
        pixel_values, one per item with an image, in item order: pixels (images, 3, H, W), float32, or tower features
        (images, patches, channels). Positions count from 0 at the first token that is not padding. A family with its
        own inputs returns what its model takes.
    """
    if loaded.inputs is not None:
        return loaded.inputs.collate(items, padding_side)
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
    images = [item.image for item in items if item.image is not None]
    if images:
        stacked = torch.stack(images)
        is_pixels = stacked.dtype == torch.uint8
        batch["pixel_values"] = loaded.image_processor.normalise(stacked) if is_pixels else stacked
    return batch


def split_start(loaded: LoadedModel, items: Sequence[Item]) -> tuple[list[int], list[Item]]:
    """Cut off the tokens that all items begin with, before the first image and before tokens that predict an answer.

    Args:
        loaded: has the image id.
        items: encoded conversations, each with the begin token.

    Returns:
        (the shared tokens, the items without them). Running the model on both parts equals running it on the whole. A
        family with its own inputs shares none: its positions may have several axes, or look ahead.
    """
    if loaded.inputs is not None:
        return [], list(items)
    # The position before the first supervised token must stay in the rest, because its logits are needed.
    kept = min(next((i for i, x in enumerate(item.labels) if x != IGNORE), len(item.labels)) - 1 for item in items)
    shared = 0
    for column in zip(*(item.input_ids[:kept] for item in items), strict=True):
        if len(set(column)) > 1 or column[0] == loaded.image_token_id:
            break
        shared += 1
    rest = [replace(item, input_ids=item.input_ids[shared:], labels=item.labels[shared:]) for item in items]
    return items[0].input_ids[:shared], rest


def split_image(loaded: LoadedModel, items: Sequence[Item]) -> tuple[list[int], list[Item]]:
    """Cut off the tokens that questions on one image begin with, the image included.

    Args:
        loaded: has the image id.
        items: encoded without target, all with the same image.

    Returns:
        (the shared tokens, the items without them and without image).
    """
    kept = min(len(item.input_ids) for item in items) - 1  # generation begins after at least one token
    columns = zip(*(item.input_ids[:kept] for item in items), strict=True)
    shared = next((place for place, column in enumerate(columns) if len(set(column)) > 1), kept)
    rest = [
        replace(item, input_ids=item.input_ids[shared:], labels=item.labels[shared:], image=None) for item in items
    ]
    return items[0].input_ids[:shared], rest


def start_cache(model: PreTrainedModel, start: Tensor, copies: int, pixel_values: Tensor | None = None) -> Cache:
    """Run the shared tokens once and return their keys and values for a batch; gradients flow through them.

    Args:
        model: the model.
        start: (1, shared) token ids.
        copies: number of items in the batch.
        pixel_values: the image among the shared tokens, if there is one.
    """
    image = {} if pixel_values is None else {"pixel_values": pixel_values}
    cache = model(input_ids=start, use_cache=True, logits_to_keep=1, **image).past_key_values
    cache.batch_repeat_interleave(copies)
    return cache
