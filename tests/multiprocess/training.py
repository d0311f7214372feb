"""Short trainings of a small LLaVA under any engine: what the processes of these tests run."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from benchmark.data.record import Record
from benchmark.models import LoadedModel, trainable_names
from benchmark.models.batch import Items
from benchmark.models.prompt import IGNORE
from benchmark.training import fsdp
from benchmark.training.attach import attach
from benchmark.training.checkpoint import snapshot
from benchmark.training.engine import deepspeed_config, skip_compiling
from benchmark.training.objective import batch_loss, training_batch
from benchmark.training.order import Order
from methods.base import Method
from tests.benchmark.models import tiny
from tests.methods.toy import sample_gradients

STEPS = 3
BATCH = 12
ACCUMULATION = 2
LEARNING_RATE = 1e-3
MAX_NORM = 0.3  # below the first gradients' norm
# Adam divides gradients by their size plus this. With its usual 1e-8, the rounding of gradients that are nearly 0,
# which no two engines share, would move weights by up to 1 % of the learning rate, and hide faults as large as that;
# even 1e-6 lets it move them by 1.2e-6 on some processors.
EPS = 1e-4
# No size is a multiple of 2 or 3 but for the attention matrices: neither joined nor single tensors can be cut evenly.
SIZES = {
    "hidden_size": 35, "intermediate_size": 37, "num_attention_heads": 5, "head_dim": 8, "num_hidden_layers": 2,
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
        tiny.picture(30 + i, 24).save(folder / f"{i}.png")
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
        loaded.model.model.vision_tower = None  # its features are made, and ZeRO-3 would take time to cut it up
        tokens = [sum(label != IGNORE for label in labels) for _, labels in items.encoded]
        return cls(loaded, items, list(Order(0, tokens, BATCH, 2)))

    def micro_batch(self, step: int, number: int, count: int, dtype: torch.dtype, share: bool) -> dict[str, Any]:
        """Return micro-batch `number` of the `count` of a step; one of a sharded step has an image in any case."""
        size = BATCH // count
        start = step * BATCH + number * size
        pairs = [(self.items[index], weight) for index, weight in self.order[start : start + size]]
        blank = torch.zeros(self.loaded.feature_shape) if count > ACCUMULATION else None
        batch = training_batch(self.loaded, pairs, blank, share)
        del batch["item_ids"]
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(dtype)
        return batch


class Training:
    """Trains the last two layers and the projector in two parameter groups, with clipping and accumulation.

    Args:
        data: the same in every process.
        engine: "plain" (one process), "ddp", "fsdp2", or a key of ZERO.
        method: not started.
        dtype: "bfloat16" for bfloat16 weights with float32 masters; not for "ddp".
        processes: for "plain": cut the batches as for so many processes, which matters in bfloat16.
        eps: of AdamW.
        share: run the tokens that all items begin with once per micro-batch; never with FSDP2. In bfloat16 it rounds
            differently.
        config: replaces sections of DeepSpeed's configuration.

    Attributes:
        calls: the tensors of every hook call, by step.
        norms: of the gradients before they are clipped, by step; not under DeepSpeed.
    """

    def __init__(
        self, data: Data, engine: str, method: Method, dtype: str = "float32", processes: int = 1, eps: float = EPS,
        share: bool = True, **config: Any,
    ) -> None:
        self.data, self.engine, self.method = data, engine, method
        self.dtype = getattr(torch, dtype)
        self.share = share and engine != "fsdp2"
        self.rank, self.world = 0, 1
        if engine != "plain":
            self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
            processes = self.world
        self.count = ACCUMULATION * processes  # micro-batches of a step
        loaded = dataclasses.replace(data.loaded, model=copy.deepcopy(data.loaded.model))
        # In bfloat16 before w* is taken: these are then the base checkpoint's numbers.
        self.model = loaded.model.requires_grad_(False).train().to(self.dtype)
        self.pretrained = snapshot(self.model, trainable_names(loaded, "last_layers", 2))
        self.named = {name: self.model.get_parameter(name).requires_grad_() for name in self.pretrained}
        if engine == "fsdp2":
            self.named = fsdp.shard(loaded, list(self.named), dtype)
        self.stepped = self.named
        if engine == "plain" and dtype != "float32":
            self.stepped = {name: nn.Parameter(parameter.detach().float()) for name, parameter in self.named.items()}
        projector = [p for name, p in self.stepped.items() if name.startswith(loaded.projector_prefix)]
        blocks = [p for name, p in self.stepped.items() if not name.startswith(loaded.projector_prefix)]
        groups = [{"params": blocks, "lr": LEARNING_RATE}, {"params": projector, "lr": LEARNING_RATE / 2}]
        self.optimizer: Any = torch.optim.AdamW(groups, weight_decay=0.01, eps=eps)
        self.wrapped: Any = self.model
        if engine in ZERO:
            skip_compiling()
            # In bfloat16 ZeRO-3's own linear layer rounds its gradients otherwise than torch's.
            section = ZERO[engine] | ({} if dtype == "float32" else {"memory_efficient_linear": False})
            settings = deepspeed_config(
                section, micro_batch_size=BATCH // self.count, accumulation=ACCUMULATION, max_grad_norm=MAX_NORM,
                dtype=dtype,
            )
            self.wrapped, self.optimizer, *_ = deepspeed.initialize(
                model=self.model, optimizer=self.optimizer, config=settings | config
            )
            if engine == "zero3":
                poison_padding(self.optimizer)
        elif engine == "ddp":
            self.wrapped = DistributedDataParallel(self.model)
        if hasattr(method, "measure"):
            method.measure(sample_gradients(self.pretrained))
        self.attachment = attach(self.optimizer, self.stepped, self.pretrained, method)
        self.calls: list[list[list[str]]] = []
        self.norms: list[float] = []
        note_calls(self)

    def step(self, number: int, scale: float = 1.0) -> None:
        """Take one optimizer step on batch `number`, with the loss times `scale`."""
        share = self.count // self.world
        self.calls.append([])
        for i in range(share):
            batch = self.data.micro_batch(
                number, i * self.world + self.rank, self.count, self.dtype, self.share
            )
            loss = scale * batch_loss(self.wrapped, batch, autocast=False)[0]
            if self.engine in ZERO:
                self.wrapped.backward(loss * self.count)  # DeepSpeed takes the mean over micro-batches and processes
                self.wrapped.step()
            elif self.engine == "fsdp2":
                (loss * self.world).backward()
            elif self.engine == "ddp":
                with self.wrapped.no_sync() if i < share - 1 else contextlib.nullcontext():
                    (loss * self.world).backward()
            else:
                loss.backward()
                self._add_gradients()
        if self.engine not in ZERO:
            self.norms.append(float(fsdp.clip(self.stepped.values(), MAX_NORM)))
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.stepped is not self.named:
                for name, parameter in self.named.items():
                    parameter.data.copy_(self.stepped[name].data)

    def _add_gradients(self) -> None:
        """Add the gradients of a bfloat16 micro-batch to those of the float32 masters."""
        if self.stepped is self.named:
            return
        for name, parameter in self.named.items():
            master = self.stepped[name]
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad + gradient
            parameter.grad = None

    def masters(self) -> dict[str, Tensor]:
        """Return the whole float32 weights, as DeepSpeed itself puts them together; every process calls it."""
        if self.engine in ZERO:
            return {name: safe_get_full_fp32_param(parameter) for name, parameter in self.named.items()}
        if self.engine == "fsdp2":
            return {name: parameter.detach().full_tensor() for name, parameter in self.named.items()}
        return {name: parameter.detach().clone() for name, parameter in self.stepped.items()}

    def forward_weights(self) -> dict[str, Tensor]:
        """Return the whole weights that the next forward pass of this process uses; every process calls it."""
        if self.engine == "fsdp2":
            return self._gathered()
        with deepspeed.zero.GatheredParameters(list(self.named.values()), enabled=self.engine == "zero3"):
            return {name: parameter.detach().clone() for name, parameter in self.named.items()}

    def _gathered(self) -> dict[str, Tensor]:
        """Return the weights as FSDP2 itself gathers and rounds them for a pass."""
        parts = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            part.unshard()
        weights = {name: self.model.get_parameter(name).detach().clone() for name in self.named}
        for part in parts:
            part.reshard()
        return weights

    def close(self) -> None:
        """Take the hooks off, so that the next training starts afresh."""
        self.attachment.remove()
        if self.engine in ZERO:
            self.wrapped.destroy()


def poison_padding(optimizer: Any) -> None:
    """Fill what ZeRO-3 leaves uninitialised behind the end of tensors with NaN, so that no test depends on luck."""
    rank = distributed.get_rank()
    for group, buffer in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        start = 0
        for parameter in group:
            size = parameter.partition_numel()
            used = max(0, min(size, parameter.ds_numel - rank * size))
            buffer.data[start + used : start + size] = float("nan")
            start += size


def note_calls(training: Training) -> None:
    """Make a training note the tensors of every hook call."""
    before_step = training.method.before_step

    def note(shards: Any) -> None:
        training.calls[-1].append([shard.name for shard in shards])
        before_step(shards)

    training.method.before_step = note
