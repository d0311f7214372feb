"""Time and memory of a training at full scale, by arithmetic alone: no torch, no weights, every assumption here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmark.core.errors import UserError, did_you_mean
from benchmark.models.scope import Projector, projector_trains
from benchmark.models.sizes import Architecture, Measured
from benchmark.spec import CellSpec
from benchmark.training.train_settings import TWO_PASSES
from methods.adapter_sizes import elements
from methods.registry import METHODS, configured

GIB = 2**30
TEXT_TOKENS = 64            # system prompt, question and answer of a typical item, beside the image
ANSWER_TOKENS = 4           # tokens that generation decodes; captions take about 13
UTILISATION = 0.25, 0.45    # share of the peak that training reaches, until a cell has been measured
PREFILL = 0.30, 0.55        # share of the peak that batched generation reaches before the first token
MEASURED = 0.85, 1.15       # range around the time of a finished cell
OVERHEAD = 1.8e9            # bytes of CUDA context, NCCL and fragmentation (1.5 to 2 GB on a 24 GB card)
LIVE_PARAMETERS = 1e9       # of ZeRO-3: stage3_max_live_parameters, in elements
# Bytes that a method keeps per shard element: w* in the checkpoint's 16 bits, and its own float32 arrays. What it holds
# during a step counts too: half_ft the tensors that it freezes (about half), mofo all weights before the step.
METHOD_BYTES = {
    "full_ft": 0, "half_ft": 2, "half_ft_step": 2, "half_ft_elements": 3, "spider_magnitude": 2,
    "l2_reg": 2, "l2_reg_mean": 2, "l2_reg_scaled": 2, "l2_reg_two_step": 2,
    "grafting": 2, "grafting_mean": 2, "grafting_scaled": 2, "grafting_two_step": 2,
    "gps": 3, "spu": 3, "model_dowser": 3, "gmt": 0, "mofo": 8, "largest_weights": 2,
}
METHOD_OTHER = 6  # SPIDER and its variants; also assumed for a user's own method


@dataclass(frozen=True)
class Gpu:
    """A graphics card by its data sheet: memory (GiB), dense bf16 peak (TFLOP/s), memory bandwidth (GB/s)."""

    name: str
    memory: float
    peak: float
    bandwidth: float


GPUS = {
    gpu.name: gpu for gpu in (
        Gpu("3090", 24, 71, 936), Gpu("4090", 24, 165, 1008), Gpu("a10", 24, 125, 600), Gpu("5090", 32, 210, 1792),
        Gpu("a100-40", 40, 312, 1555), Gpu("a6000", 48, 155, 768), Gpu("l40s", 48, 362, 864),
        Gpu("a100", 80, 312, 2039), Gpu("h100", 80, 989, 3350), Gpu("h200", 141e9 / GIB, 989, 4800),
    )
}


def parse_gpus(text: str) -> tuple[Gpu, int]:
    """Return the card and the number of cards that text such as '4090x8', 'a100' or 'h100x1' names.

    Raises:
        UserError: an unknown card, or a number below 1.
    """
    found = re.fullmatch(r"(.+?)(?:x(\d+))?", text.lower().strip())
    name, count = (found[1], int(found[2] or 1)) if found else (text, 0)
    if sized := re.fullmatch(r"(.+?)-(\d+)(?:gb)?", name):  # the memory tells cards apart: a100-80gb, a100-40gb
        small = f"{sized[1]}-{sized[2]}"
        plain = GPUS.get(sized[1])
        name = small if small in GPUS else sized[1] if plain and abs(plain.memory - int(sized[2])) < 12 else name
    if name not in GPUS or count < 1:
        raise UserError(f"gpu={text}: expected a card and a number, e.g. 4090x8.{did_you_mean(name, GPUS)}")
    return GPUS[name], count


@dataclass(frozen=True)
class Setting:
    """What decides the memory and time of a training.

    Args:
        sizes: the model's.
        engine: single, zero1, zero2, zero3 or fsdp2.
        processes: number of GPUs, one process each.
        micro_batch: samples per forward pass and GPU.
        batch: samples per optimizer step.
        checkpointing: whether blocks run again in the backward pass.
        scope: train.scope.
        last_layers: train.last_layers.
        tokens: length of the longest typical sequence, image included.
        method: its id.
        bucket: number of elements that DeepSpeed reduces at a time.
        projector: train.projector.
        adapter: number of elements that an adapter trains in the blocks; None for a method without one.
        second_pass: whether the loss needs a second forward pass.
    """

    sizes: Architecture | Measured
    engine: str
    processes: int
    micro_batch: int
    batch: int
    checkpointing: bool
    scope: str
    last_layers: int
    tokens: int
    method: str = "spider"
    bucket: int = 500_000_000
    projector: Projector = "full"
    adapter: int | None = None
    second_pass: bool = False

    @property
    def tuned(self) -> int:
        """Number of weights that the scope tunes, by themselves or through an adapter."""
        return self.sizes.trainable(self.scope, self.last_layers, self.projector)

    @property
    def trained(self) -> int:
        """Number of trained parameters: with an adapter, its own and the projector's."""
        if self.adapter is None:
            return self.tuned
        return self.tuned - sum(self.sizes.trained_per_block(self.scope, self.last_layers)) + self.adapter

    @property
    def projector_trains(self) -> bool:
        """Whether the projector trains."""
        return projector_trains(self.scope, self.projector)


def setting_of(cell: CellSpec, sizes: Architecture | Measured, processes: int) -> Setting:
    """Return the setting of a cell on `processes` GPUs."""
    assert cell.train is not None
    return Setting(
        sizes, cell.engine, processes if cell.engine != "single" else 1, cell.train.micro_batch_size,
        cell.train.batch_size, cell.train.gradient_checkpointing, cell.train.scope, cell.train.last_layers,
        sizes.image_tokens + TEXT_TOKENS, cell.method.id,
        int(cell.zero_optimization.get("reduce_bucket_size", 500_000_000)), cell.train.projector,
        adapter_of(cell, sizes), cell.train.loss in TWO_PASSES,
    )


def adapter_of(cell: CellSpec, sizes: Architecture | Measured) -> int | None:
    """Return the number of elements that a cell's adapter trains; None for a method without one, or a user's own."""
    method = METHODS.get(cell.method.id)
    if cell.train is None or method is None or method.kind != "adapter":
        return None
    params = {**configured(cell.method.id), **cell.method.params}
    blocks = sizes.trained_shapes(cell.train.scope, cell.train.last_layers)
    return elements(method.cls, params, blocks, sizes.hidden)


# ---------------------------------------------------------------------------------------------------------------
# Memory


def memory(setting: Setting) -> dict[str, float]:
    """Return the parts of the peak memory of one GPU, in bytes.

    Weights are bfloat16 with float32 master weights (DeepSpeed), or float32 where they train (engine=single, and the
    rows of engine=fsdp2).

    Args:
        setting: the training's.

    Returns:
        Part -> bytes; their sum is the peak.
    """
    sizes, trained, n = setting.sizes, setting.trained, setting.processes
    zero3, single = setting.engine == "zero3", setting.engine == "single"
    whole = 2.0 * sizes.total
    parts = {"weights": whole / n + min(2 * LIVE_PARAMETERS, whole) if zero3 else whole}
    if setting.engine == "fsdp2":
        parts = _by_rows(setting)
    elif single:
        parts["weights"] += 4.0 * trained  # float32 instead of bfloat16, and autocast's bfloat16 copies
        parts["optimizer"] = 8.0 * trained
        parts["gradients"] = 4.0 * trained
    else:
        parts["optimizer"] = 12.0 * trained / n
        # ZeRO-1 keeps all gradients in bfloat16 and their float32 sums; ZeRO-2 and 3 keep float32 sums of their part.
        parts["gradients"] = (6.0 * trained if setting.engine == "zero1" else 4.0 * trained / n)
        parts["gradients"] += 6.0 * min(setting.bucket, trained)  # a bucket in bfloat16, and its float32 sum
    parts["activations"] = activations(setting, setting.checkpointing)
    parts["logits"] = 12.0 * setting.micro_batch * 2 * ANSWER_TOKENS * sizes.vocab  # bf16, float32 and gradient
    tuned = setting.tuned
    parts["base values"] = 4.0 * tuned if single else 2.0 * tuned  # one copy in the training, one in the worker
    kept = METHOD_BYTES.get(setting.method, METHOD_OTHER) if setting.adapter is None else 0
    parts["method state"] = float(kept) * trained / n
    parts["CUDA, NCCL"] = OVERHEAD
    if setting.engine == "fsdp2":  # a GPU holds the whole model until it is cut
        parts["loading"] = max(0.0, whole + 2.0 * trained + OVERHEAD - sum(parts.values()))
    return parts


def _by_rows(setting: Setting) -> dict[str, float]:
    """Return weights, optimizer and gradients of engine=fsdp2, in bytes.

    A GPU holds its rows of the blocks and of the trained tensors, whole what is frozen outside of the blocks, one block
    gathered, and the next one on its way, which takes a buffer beside it. Gradients of one block are whole until they
    are summed in float32.
    """
    sizes, trained, n = setting.sizes, setting.trained, setting.processes
    blocks = sizes.layers * sizes.block
    per_block = setting.sizes.trained_per_block(setting.scope, setting.last_layers)
    projector = sizes.projector if setting.projector_trains else 0
    tuned = sum(per_block) if setting.adapter is None else 0  # weights of the blocks that train themselves
    rows = (2.0 * (blocks - tuned) + 4.0 * trained) / n
    kept = 2.0 * (sizes.total - blocks - projector)
    largest = max(per_block) if setting.adapter is None else setting.adapter / max(1, sum(map(bool, per_block)))
    return {
        "weights": rows + kept + 2.0 * projector + 3 * 2.0 * sizes.block,
        "optimizer": 8.0 * trained / n,
        "gradients": 4.0 * trained / n + 6.0 * max(largest, projector),
    }


def activations(setting: Setting, checkpointing: bool) -> float:
    """Return the bytes that a forward pass keeps for the backward pass.

    A token keeps 6 intermediate + 16 hidden bytes in a block: gate, up and their product in bfloat16; query, key,
    value, output and their rotated forms in bfloat16; both norms' float32 inputs. With checkpointing a block keeps
    only its input, and one block at a time has the rest.
    """
    sizes, tokens = setting.sizes, setting.micro_batch * setting.tokens
    block = (6.0 * sizes.intermediate + 16.0 * sizes.hidden) * tokens
    tower = setting.micro_batch * sizes.tower.patches * sizes.tower.hidden * 2.0 * (sizes.tower.layers + 12)
    if checkpointing:
        return 2.0 * sizes.hidden * tokens * sizes.layers + block + tower
    return block * crossed(setting) + tower


def crossed(setting: Setting) -> int:
    """Return how many blocks the gradient crosses: all if the projector trains, else those from the first trained."""
    if setting.projector_trains:
        return setting.sizes.layers
    per_block = setting.sizes.trained_per_block(setting.scope, setting.last_layers)
    return setting.sizes.layers - next(number for number, count in enumerate(per_block) if count)


def fits(setting: Setting, gpu: Gpu) -> bool:
    """Return whether the peak memory fits the card."""
    return sum(memory(setting).values()) <= gpu.memory * GIB


def remedy(setting: Setting, gpu: Gpu) -> str | None:
    """Return the smallest change of overrides with which a training fits, or None if there is none."""
    micro = sorted({m for m in (setting.micro_batch, 2, 1) if m <= setting.micro_batch}, reverse=True)
    tries: list[tuple[str, Setting]] = []
    engines = [setting.engine] + [e for e in ("zero2", "zero3") if e > setting.engine]
    for engine in engines:
        for count in (setting.processes, 2, 4, 8, 16):
            for checkpointing in (setting.checkpointing, True):
                for size in micro:
                    alone = engine == "single" and count > 1
                    if alone or count < setting.processes or setting.batch % (size * count):
                        continue
                    new = replace(
                        setting, engine=engine, processes=count, checkpointing=checkpointing, micro_batch=size,
                    )
                    words = [f"engine={engine}"] if engine != setting.engine else []
                    words += ["train.gradient_checkpointing=true"] if checkpointing != setting.checkpointing else []
                    words += [f"train.micro_batch_size={size}"] if size != setting.micro_batch else []
                    words += [f"{count} of these GPUs"] if count != setting.processes else []
                    tries.append((" and ".join(words), new))
    # Fewest changes first; more hardware only if nothing else helps.
    tries.sort(key=lambda item: (item[1].processes, item[0].count("="), item[1].engine))
    return next((words for words, new in tries if words and fits(new, gpu)), None)


# ---------------------------------------------------------------------------------------------------------------
# Time


def sample_flops(setting: Setting) -> dict[str, float]:
    """Return the floating-point operations of one training sample, by part.

    Let P be the number of weights in matrix products. The forward pass takes 2P per token. The gradients of activations
    take 2P in the blocks that the gradient crosses, and the gradients of trained weights 2P of those weights. Causal
    attention adds 2 layers hidden tokens^2 forward, and twice that backward. Checkpointing runs the blocks forward once
    more, and so does a loss that compares with the base model. The output layer is computed for answer tokens only, and
    the tower runs forward only.
    """
    sizes, tokens = setting.sizes, setting.tokens
    blocks = sizes.layers * sizes.block
    forward = 2.0 * (blocks * tokens + sizes.projector * sizes.image_tokens)
    forward += 2.0 * sizes.layers * sizes.hidden * tokens**2
    backward = forward * crossed(setting) / sizes.layers
    in_blocks = sum(sizes.trained_per_block(setting.scope, setting.last_layers))
    trained = 2.0 * tokens * (in_blocks if setting.adapter is None else setting.adapter)
    trained += 2.0 * sizes.projector * sizes.image_tokens if setting.projector_trains else 0.0
    parts = {"tower": 2.0 * sizes.vision * sizes.tower.patches, "forward": forward, "activation gradients": backward}
    parts |= {"weight gradients": trained, "recomputation": forward if setting.checkpointing else 0.0}
    return parts | ({"second pass": forward} if setting.second_pass else {})


def training_seconds(
    setting: Setting, gpu: Gpu, samples: int, measured: float | None = None
) -> tuple[float, float]:
    """Return the time of a training in seconds, (low, high).

    Args:
        setting: the training's.
        gpu: the card.
        samples: number of samples: epochs times items.
        measured: samples per second and GPU of a finished cell of this model on this card.
    """
    if measured:
        base = samples / (measured * setting.processes)
        return base * MEASURED[0], base * MEASURED[1]
    flops = samples * sum(sample_flops(setting).values()) / (setting.processes * gpu.peak * 1e12)
    return flops / UTILISATION[1], flops / UTILISATION[0]


def answer_seconds(
    sizes: Architecture | Measured, gpu: Gpu, items: int, batch: int, tokens: int
) -> tuple[float, float]:
    """Return the seconds to answer questions on one GPU, (low, high): prefill by arithmetic, decoding by bandwidth.

    Args:
        sizes: the model's.
        gpu: the card.
        items: number of questions.
        batch: questions per batch.
        tokens: length of an answer.
    """
    length = sizes.image_tokens + TEXT_TOKENS
    prefill = 2.0 * sizes.layers * sizes.block * length + 2.0 * sizes.layers * sizes.hidden * length**2
    prefill += 2.0 * sizes.vision * sizes.tower.patches
    decode = tokens * 2.0 * sizes.total / (gpu.bandwidth * 1e9) / batch
    low, high = (prefill / (share * gpu.peak * 1e12) for share in reversed(PREFILL))
    return items * (low + decode), items * (high + 3 * decode)


def measured_rate(speed: Mapping[str, Any], gpu: Gpu) -> float | None:
    """Return samples per second and GPU from a finished cell's speed.json, if the cell ran on this card."""
    words = re.findall(r"[a-z]*\d+[a-z]*", str(speed.get("device", "")).lower())
    if gpu.name.partition("-")[0] not in words or not speed.get("seconds"):
        return None
    return speed["samples"] / speed["seconds"] / max(1, speed["processes"])
