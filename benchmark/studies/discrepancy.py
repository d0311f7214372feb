"""Parameter importance discrepancy (paper, Fig. 1): the angle between |gradient| and |weight|."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmark.config.request import Request
from benchmark.core.errors import UserError
from benchmark.core.files import digest_of, write_atomic
from benchmark.data import subset
from benchmark.models import LoadedModel, trainable_names, tuned_names
from benchmark.models.batch import Item, Items
from benchmark.models.prompt import IGNORE
from benchmark.running.worker import Worker
from benchmark.spec import DatasetSpec, ModelSpec, TunedCell, shown
from benchmark.store import code_version, keys
from benchmark.training.objective import batch_loss, training_batch

SHARDS = 20
SEED = 0
# Student's t for 19 degrees of freedom, two-sided 95 %.
T_95 = 2.093


def discrepancy(weight: Tensor, gradient: Tensor) -> float:
    """Return PID = cos(|w*|, |g|)^-2 of flat tensors: 1 where both agree, larger as they diverge."""
    weight, gradient = weight.abs().double(), gradient.abs().double()
    norm = weight.norm() * gradient.norm()
    return float((norm / (weight @ gradient)) ** 2) if norm > 0 else float("nan")


def measure(asked: Request, model: ModelSpec, worker: Worker, folder: Path) -> pd.DataFrame:
    """Return PID at w* of the eight sets, whole and per layer. A file caches it until one of its inputs changes.

    Gradients are means over the same number of supervised tokens of training items for each set: the items of a
    seeded permutation are cut into 20 disjoint shards, each with as many tokens as the smallest set allows.

    Args:
        asked: the profile, its datasets and places.
        model: the base model.
        worker: loads model and records.
        folder: folder of the cache.

    Returns:
        One line per set and part ("tuned": what Tables 5 and 6 tune, then "projector" and each layer's number):
        mean over shards, 95 % interval of that mean, tokens per shard.

    Raises:
        UserError: data or checkpoint missing, or a set too small for 20 shards.
    """
    cell: TunedCell = next(  # type: ignore[assignment]  # the condition is that of is_tuned
        cell for cell in asked.cells if cell.train is not None and cell.model.id == model.id
    )
    used = [asked.datasets[name] for name in (*asked.profile.upstream, *asked.profile.targets)]
    digests = keys.Digests(asked.results / "digests.json")
    key = digest_of({
        "base": digests.model(model), "code": code_version.version("pid"), "train": shown(cell.train),
        "dtype": cell.dtype,
        "data": [digests.records(spec, asked.data_root, "train", cell.train.limit) for spec in used],
    })
    path = folder / f"{model.id}.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get("key") != key:
        known = {"key": key, "lines": _lines(cell, used, worker)}
        write_atomic(path, json.dumps(known, indent=1) + "\n")
    return pd.DataFrame(known["lines"])


def _lines(cell: TunedCell, used: Sequence[DatasetSpec], worker: Worker) -> list[dict[str, Any]]:
    loaded = worker._load(cell)
    pools = {}
    for spec in used:
        records = worker.records(replace(cell, datasets=tuple(used)), spec.id, "train", cell.train.limit)
        items = Items(loaded, subset_order(records), supervised=True)
        pools[spec.id] = items
    sizes = {name: [_supervised(pair) for pair in items.encoded] for name, items in pools.items()}
    room = {name: shard_tokens(counts) for name, counts in sizes.items()}
    name = min(room, key=room.__getitem__)
    tokens = room[name]
    if tokens < 1:
        raise UserError(
            f"Fig. 1 needs {SHARDS} shards of training items, and those of {name} have {sum(sizes[name])} supervised "
            "tokens: too few. Leave train.limit out."
        )
    parts = _parts(loaded, cell)
    names = sorted({name for group in parts.values() for name in group})
    parameters = dict(loaded.model.named_parameters())
    weights = {name: parameters[name].detach().flatten().cpu() for name in names}
    lines = []
    for spec in used:
        found: dict[str, list[float]] = {part: [] for part in parts}
        for shard in _shards(pools[spec.id], tokens):
            gradient = _gradient(loaded, shard, names, cell)
            for part, group in parts.items():
                flat = [torch.cat([values[name] for name in group]) for values in (weights, gradient)]
                found[part].append(discrepancy(*flat))
        for part, values in found.items():
            mean, half = float(np.mean(values)), float(T_95 * np.std(values, ddof=1) / len(values) ** 0.5)
            lines.append({
                "model": cell.model.id, "dataset": spec.id, "dataset_name": spec.name, "role": spec.role, "part": part,
                "value": mean, "low": mean - half, "high": mean + half, "shards": len(values), "tokens": tokens,
                "by_shard": " ".join(f"{value:.4f}" for value in values),
            })
    return lines


def shard_tokens(counts: Sequence[int]) -> int:
    """Return how many supervised tokens each shard can have in any order of the items.

    Args:
        counts: supervised tokens of each item of a set.
    """
    # A shard may leave part of its last item unused: at worst all but one token.
    return sum(counts) // SHARDS - max(0, max(counts, default=0) - 1)


def subset_order(records: Sequence[Any]) -> list[Any]:
    """Return the records in the order of the seeded permutation whose prefixes `benchmark.data.subset` keeps."""
    import hashlib

    def rank(record: Any) -> str:
        return hashlib.sha256(f"{SEED}\0{record.dataset}\0{record.item_id}".encode()).hexdigest()

    return sorted(subset(records, None), key=rank)


def _supervised(pair: tuple[list[int], list[int]]) -> int:
    return sum(label != IGNORE for label in pair[1])


def _parts(loaded: LoadedModel, cell: TunedCell) -> dict[str, list[str]]:
    """Return the parts of the model by name, each with its parameters."""
    everything = trainable_names(loaded, "all", 1)
    parts = {"tuned": tuned_names(loaded, cell.train)}
    prefixes = {"projector": loaded.projector_prefix}
    prefixes |= {str(index): prefix for index, prefix in enumerate(loaded.block_prefixes)}
    for part, prefix in prefixes.items():
        parts[part] = [name for name in everything if name.startswith(prefix)]
    return parts


def _shards(items: Items, tokens: int) -> Iterator[list[Item]]:
    """Yield disjoint lists of items with an exact number of supervised tokens; the rest of the last item is masked."""
    place = 0
    for _ in range(SHARDS):
        shard, left = [], tokens
        while left > 0:
            item = items[place]
            place += 1
            labels, kept = list(item.labels), 0
            for index, label in enumerate(labels):
                if label != IGNORE:
                    kept += 1
                    labels[index] = label if kept <= left else IGNORE
            left -= min(kept, left)
            shard.append(replace(item, labels=labels))
        yield shard


def _gradient(loaded: LoadedModel, shard: Sequence[Item], names: Sequence[str], cell: TunedCell) -> dict[str, Tensor]:
    """Return the gradient of the mean token loss at w*, flat, on the CPU."""
    model, size = loaded.model, cell.train.micro_batch_size
    total = sum(sum(label != IGNORE for label in item.labels) for item in shard)
    parameters = dict(model.named_parameters())
    model.requires_grad_(False)
    try:
        for name in names:
            parameters[name].requires_grad_(True)
        for start in range(0, len(shard), size):
            batch = training_batch(loaded, [(item, 1 / total) for item in shard[start : start + size]])
            batch.pop("item_ids")
            loss, _ = batch_loss(
                model, {name: tensor.to(model.device) for name, tensor in batch.items()},
                autocast=cell.dtype == "bfloat16",
            )
            loss.backward()
        return {
            name: (  # type: ignore[union-attr]  # mypy does not see that both are one gradient, here not None
                torch.zeros_like(parameters[name]) if parameters[name].grad is None else parameters[name].grad
            ).detach().flatten().float().cpu()
            for name in names
        }
    finally:
        for name in names:
            parameters[name].grad = None
        model.requires_grad_(False)
