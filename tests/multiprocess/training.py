"""One short training of a small LLaVA under any engine: what the processes of the parity test run."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmark.checkpoint import snapshot
from benchmark.data.record import Record
from benchmark.engine import deepspeed_config, skip_compiling
from benchmark.models import LoadedModel, trainable_names
from benchmark.models.batch import Items
from benchmark.models.prompt import IGNORE
from benchmark.shards import Attachment, attach
from benchmark.train import Order, batch_loss, training_batch
from methods.base import Method
from tests.benchmark.models import tiny

STEPS = 3
BATCH = 12
ACCUMULATION = 2
LEARNING_RATE = 1e-3
# No size is a multiple of 2 or 3 but for the attention matrices: neither joined nor single tensors can be cut evenly.
SIZES = {
    "hidden_size": 35, "intermediate_size": 37, "num_attention_heads": 5, "head_dim": 8, "num_hidden_layers": 3,
}
ANSWERS = ["red", "a blue dog", "B", "a red cat red cat blue dog", "blue", "a single word", "dog dog dog", "A"]
# DeepSpeed's section zero_optimization of each engine. Small limits, so that ZeRO-3 has several sub-groups and keeps
# its small tensors (norms and biases) on every process.
ZERO: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3, "sub_group_size": 3000, "stage3_param_persistence_threshold": 50},
}


def write(folder: Path) -> Path:
    """Write the model and the images."""
    tiny.write("llava", folder / "model", **SIZES)
    for i in range(STEPS * BATCH):
        Image.effect_noise((30 + i, 24), 80).convert("RGB").save(folder / f"{i}.png")
    return folder


@dataclass
class Data:
    """The base model and its training items; every third item has no image."""

    loaded: LoadedModel
    items: Items
    order: list[tuple[int, float]]

    @classmethod
    def read(cls, folder: Path) -> Data:
        """Read what `write` wrote."""
        torch.set_num_threads(1)
        loaded = tiny.load("llava", folder / "model")
        records = [
            Record(
                f"item{i}", "toy", "train", None if i % 3 == 2 else folder / f"{i}.png", f"what is {i} ?",
                ANSWERS[i % len(ANSWERS)], (), None, str(i), {},
            )
            for i in range(STEPS * BATCH)
        ]
        items = Items(loaded, records, supervised=True)
        tokens = [sum(label != IGNORE for label in labels) for _, labels in items.encoded]
        return cls(loaded, items, list(Order(0, tokens, BATCH, 2)))

    def micro_batch(self, step: int, number: int, count: int) -> dict[str, Any]:
        """Return micro-batch `number` of the `count` of a step."""
        size = BATCH // count
        start = step * BATCH + number * size
        pairs = [(self.items[index], weight) for index, weight in self.order[start : start + size]]
        batch = training_batch(self.loaded, pairs, torch.zeros(self.loaded.feature_shape) if count > 2 else None)
        del batch["item_ids"]
        return batch


@dataclass
class Run:
    """A training; `weights` are whole float32 tensors, `calls` the tensors of every hook call by step."""

    named: dict[str, nn.Parameter]
    pretrained: dict[str, Tensor]
    attachment: Attachment
    engine: Any = None
    calls: list[list[list[str]]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def masters(self) -> dict[str, Tensor]:
        """Return the whole float32 weights, as DeepSpeed itself puts them together; every process calls it."""
        if self.engine is None:
            return {name: parameter.detach().clone() for name, parameter in self.named.items()}
        return {name: safe_get_full_fp32_param(parameter).cpu() for name, parameter in self.named.items()}

    def low_precision(self) -> dict[str, Tensor]:
        """Return the whole weights that the next forward pass of this process uses."""
        with deepspeed.zero.GatheredParameters(list(self.named.values())):
            return {name: parameter.detach().clone() for name, parameter in self.named.items()}


AfterStep = Callable[[Run, int], None]


def train(
    data: Data,
    engine: str,
    method: Method,
    dtype: str = "float32",
    after_step: AfterStep | None = None,
    steps: int = STEPS,
    **config: Any,
) -> Run:
    """Train the last two layers and the projector in two parameter groups, with clipping and accumulation.

    Args:
        data: the same in every process.
        engine: "plain" (one process), "ddp", or a key of ZERO.
        method: not started.
        dtype: "bfloat16" for bfloat16 weights with float32 masters (ZeRO only).
        after_step: called after every step.
        steps: optimizer steps.
        config: replaces sections of DeepSpeed's configuration.

    Returns:
        The run, with its weights.
    """
    world = torch.distributed.get_world_size() if engine != "plain" else 1
    rank = torch.distributed.get_rank() if engine != "plain" else 0
    loaded = dataclasses.replace(data.loaded, model=copy.deepcopy(data.loaded.model))
    model = loaded.model.requires_grad_(False).train()
    names = trainable_names(loaded, "last_layers", 2)
    if dtype == "bfloat16":
        model.bfloat16()  # before w* is taken: the base checkpoint's numbers are bfloat16 ones
    pretrained = snapshot(model, names)
    named = {name: parameter.requires_grad_() for name, parameter in model.named_parameters() if name in pretrained}
    projector = [parameter for name, parameter in named.items() if name.startswith(loaded.projector_prefix)]
    blocks = [parameter for name, parameter in named.items() if not name.startswith(loaded.projector_prefix)]
    groups = [{"params": blocks, "lr": LEARNING_RATE}, {"params": projector, "lr": LEARNING_RATE / 2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    max_norm = 0.5
    deep = None
    if engine in ZERO:
        skip_compiling()
        settings = deepspeed_config(
            ZERO[engine], micro_batch_size=BATCH // (ACCUMULATION * world), accumulation=ACCUMULATION,
            max_grad_norm=max_norm, dtype=dtype,
        )
        deep, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings | config)
    wrapped = deep or (DistributedDataParallel(model) if engine == "ddp" else model)
    run = Run(named, pretrained, attach(deep.optimizer if deep else optimizer, named, pretrained, method), deep)
    if engine == "zero3":
        poison_padding(deep.optimizer)
    note_calls(run, method)
    for step in range(steps):
        run.calls.append([])
        for i in range(ACCUMULATION):
            batch = data.micro_batch(step, i * world + rank, ACCUMULATION * world)
            if "pixel_values" in batch and dtype == "bfloat16":
                batch["pixel_values"] = batch["pixel_values"].bfloat16()
            loss, _ = batch_loss(wrapped, batch, autocast=False)
            if deep:
                deep.backward(loss * (ACCUMULATION * world))  # DeepSpeed takes the mean over both
                deep.step()
            elif engine == "ddp":
                with wrapped.no_sync() if i < ACCUMULATION - 1 else torch.enable_grad():
                    (loss * world).backward()
            else:
                loss.backward()
        if not deep:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        if after_step:
            after_step(run, step)
    run.weights = run.masters()
    run.attachment.remove()
    if deep:
        deep.destroy()
    return run


def poison_padding(optimizer: Any) -> None:
    """Fill what ZeRO-3 left uninitialised behind the end of tensors with NaN, so that no test depends on luck."""
    rank = torch.distributed.get_rank()
    for group, buffer in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        start = 0
        for parameter in group:
            size = parameter.partition_numel()
            used = max(0, min(size, parameter.ds_numel - rank * size))
            buffer.data[start + used : start + size] = float("nan")
            start += size


def note_calls(run: Run, method: Method) -> None:
    """Make the run note the tensors of every hook call."""
    before_step = method.before_step

    def note(shards: Any) -> None:
        run.calls[-1].append([shard.name for shard in shards])
        before_step(shards)

    method.before_step = note
