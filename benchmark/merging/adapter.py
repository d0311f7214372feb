"""LoRA adapters as PEFT writes them, merged into the weights of their base: w = w* + s B A."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.merging.weights import Weights
from benchmark.models.checkpoint_files import check_whole, read_json

CONFIG, FILE, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
PAIR = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<half>[AB])(?:\.weight)?")
# Settings of adapter_config.json that change nothing in the merge, or that are handled here. Any other one that is set
# is refused by name: it may change the arithmetic (use_dora, lora_bias, target_parameters, layer_replication, ...).
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern",
        "init_lora_weights", "base_model_name_or_path")
HARMLESS = (
    "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "lora_dropout", "bias", "modules_to_save", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "eva_config", "runtime_config", "ensure_weight_tying",
)
STARTS = (True, False, "gaussian", "orthogonal", "eva")  # starts that leave the base's weights as they are


@dataclass(frozen=True)
class Update:
    """What an adapter does to one tensor.

    Attributes:
        scale: alpha / r, or alpha / sqrt(r).
        down, up: names of A, (r, in), and B, (out, r), in the adapter's file; None if there is no low-rank change.
        transposed: the weight is stored as (in, out), as an embedding is, or a layer with fan_in_fan_out.
        whole: name of a tensor that replaces the base's first (modules_to_save, biases); None if there is none.
    """

    scale: float = 0.0
    down: str | None = None
    up: str | None = None
    transposed: bool = False
    whole: str | None = None


class Adapter:
    """A LoRA adapter for a base checkpoint.

    Computed in float32 and rounded once, to the base's dtype. PEFT rounds the product to the adapter's dtype before it
    adds it, so a 16-bit merge may differ from its own in the last bit; a float32 merge does not.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        base: the checkpoint to merge into.

    Raises:
        UserError: no LoRA adapter, a kind or a setting that this arithmetic does not cover, or tensors that the base
            does not have in these shapes; all are named in one message.
    """

    def __init__(self, folder: Path, base: Weights) -> None:
        self.folder = folder
        self.config = _config(folder)
        self._file = folder / FILE
        check_whole(self._file)
        with safe_open(self._file, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
        self.updates: dict[str, Update] = {}
        faults = []
        for name, update in _updates(self.config, shapes).items():
            entry = base.entries.get(name)
            shape = _shape(update, shapes)
            if entry is None:
                faults.append(f"{name} is not in it")
            elif shape != entry.shape or not entry.is_float:
                faults.append(f"{name} has {list(shape)}, there {list(entry.shape)} {entry.dtype}")
            else:
                self.updates[name] = update
        if faults:
            made_for = self.config.get("base_model_name_or_path")
            raise UserError(
                f"The adapter {folder} is not one for {base.folder}: {'; '.join(faults)}. "
                f"Give the base it was trained on{f', {made_for}' if made_for else ''}."
            )

    def __call__(self, name: str, weight: Tensor, tuned: Sequence[Tensor] = ()) -> Tensor:
        """Return a tensor's merged value in float32, or the tensor itself if the adapter leaves it alone.

        Args:
            name: its name in the model.
            weight: the base's tensor.
            tuned: not used.
        """
        update = self.updates.get(name)
        if update is None:
            return weight
        with safe_open(self._file, framework="pt") as file:
            result = (file.get_tensor(update.whole) if update.whole else weight).float()
            if update.down and update.up:
                change = file.get_tensor(update.up).float() @ file.get_tensor(update.down).float()
                result = result + (change.T if update.transposed else change) * update.scale
        return result


def _config(folder: Path) -> dict[str, Any]:
    """Return the adapter's configuration.

    Raises:
        UserError: see `Adapter`.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no {CONFIG}: lora merges the folder of a PEFT adapter. Give that folder.")
    if not (folder / FILE).is_file():
        found = f" (found {PICKLED}: pickled files can run code)" if (folder / PICKLED).is_file() else ""
        raise UserError(f"{folder} holds no {FILE}{found}. Save the adapter with save_pretrained, as safetensors.")
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{folder} is a {kind} adapter; only LORA is merged here. Merge it with PEFT's merge_and_unload, if it can."
        )
    start = config.get("init_lora_weights", True)
    odd = [f"init_lora_weights={start}"] if start not in STARTS else []
    odd += [f"{key}={value}" for key, value in config.items() if key not in (*READ, *HARMLESS) and value]
    if odd:
        raise UserError(
            f"{folder} sets {', '.join(odd)}, which changes more than w* + s B A. Merge it with PEFT's "
            "merge_and_unload."
        )
    return config


def _updates(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Update]:
    """Return name of a tensor in the model -> what the adapter does to it.

    Raises:
        UserError: half of a pair is missing, a rank is not the one that the configuration names, or a tensor is no part
            of plain LoRA. All are named in one message.
    """
    pairs: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    faults = []
    for key in shapes:
        name = key.removeprefix(PREFIX)
        if match := PAIR.fullmatch(name):
            pairs.setdefault(match["module"], {})[match["half"]] = key
        elif ".lora_" in name:
            faults.append(f"{key} is no part of plain LoRA")
        else:
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = key
    updates = {name: Update(whole=key) for name, key in whole.items()}
    for module, halves in pairs.items():
        down, up = halves.get("A"), halves.get("B")
        if down is None or up is None:
            faults.append(f"{down or up} lacks its other half")
            continue
        rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
        alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
        if not len(shapes[down]) == len(shapes[up]) == 2 or not shapes[down][0] == shapes[up][1] == rank:
            faults.append(f"{down} {list(shapes[down])} and B {list(shapes[up])} are no matrices of rank {rank}")
        elif not isinstance(alpha, int | float):
            faults.append(f"lora_alpha={alpha!r} of {module} is no number")
        else:
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            turned = ".lora_embedding_" in down or bool(config.get("fan_in_fan_out"))
            name = f"{module}.weight"
            updates[name] = Update(scale, down, up, turned, whole.get(name))
    if faults:
        raise UserError(f"This adapter cannot be merged: {'; '.join(faults)}. Merge it with PEFT's merge_and_unload.")
    return updates


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return a module's value: that of the first pattern that matches the end of its name, as in PEFT."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _shape(update: Update, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Return the shape of the tensor that an update makes."""
    if update.down is None or update.up is None:
        return tuple(shapes[update.whole or ""])
    out, wide = shapes[update.up][0], shapes[update.down][1]
    shape = (wide, out) if update.transposed else (out, wide)
    return shape if update.whole is None or tuple(shapes[update.whole]) == shape else tuple(shapes[update.whole])
