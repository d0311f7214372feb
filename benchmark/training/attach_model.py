"""A training method by its id, on a model: find the trained tensors and w*, refuse what cannot work, then attach."""

from __future__ import annotations

import hashlib
import re
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import Parameter

from benchmark.core.errors import UserError, counted
from benchmark.core.files import user_path
from benchmark.models.checkpoint_files import safetensors_files
from benchmark.training.attach import Attachment, attach
from benchmark.training.fragments import DTENSOR, Layout, class_path, find_layout
from methods.base import Method
from methods.blocks import split_layer
from methods.half_ft import BLOCKS, HalfFT
from methods.registry import build, entry
from methods.select import Select
from methods.spider import Spider

Base = str | Path | Mapping[str, Tensor] | None
# Beginnings of optimizer classes that do not step float32 weights in one call -> what they do.
REFUSED = {
    "bitsandbytes.": "keeps its moments in 8 bits or pages them",
    "torchao.": "keeps its moments in few bits",
    "galore_torch.": "steps a projection of the gradient",
    "apollo_torch.": "steps a projection of the gradient",
    "lomo_optim.": "updates weights during the backward pass",
    "transformers.trainer_pt_utils.LayerWiseDummyOptimizer": "updates weights during the backward pass",
}
FSDP1 = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"
# Parts of names that wrappers add: DDP, torch.compile, activation checkpointing.
WRAPPERS = re.compile(r"^module\.|\b(_orig_mod|_checkpoint_wrapped_module)\.")
# PEFT's files leave out the adapter's name.
ADAPTER = re.compile(r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.[^.]+")
SAMPLE = 1024  # values of each tensor by which w* is recognised
_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class ModelAttachment(Attachment):
    """A method hooked to the optimizer of a model; its saved state knows the base weights that it belongs to."""

    def __init__(self, inner: Attachment, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(inner.shards, inner.method, inner._hooks, inner._place)
        self._optimizer = optimizer
        self._base = _fingerprint(inner)

    def state_dict(self) -> dict[str, Any]:
        """Return this process's state of the method, the part of the weights that it belongs to, and a digest of w*.

        Raises:
            UserError: the method holds state that would not be saved.
        """
        return super().state_dict() | {"base": self._base}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned in the same process of an equal run.

        Raises:
            UserError: w* differs from that of the saved run, or see `Attachment.load_state_dict`.
        """
        saved_here = state["place"] == self._place  # else the parts differ, and so do their digests
        if saved_here and state.get("base", self._base) != self._base:
            raise UserError(
                "The saved state belongs to other base weights: w* here differs from w* of the run that saved it. A "
                "resumed model no longer holds w*, so name the base: pretrained=FOLDER, or a state dict of it."
            )
        super().load_state_dict(state)

    def remove(self) -> None:
        """Remove the hooks; another method may then be attached to the optimizer."""
        super().remove()
        _attached.discard(self._optimizer)


def attach_model(
    method: str, optimizer: Any, model: nn.Module, /, *, pretrained: Base = None, seed: int = 0, **params: Any
) -> ModelAttachment:
    """Hook a training method around every step of an optimizer: one call in a training loop of your own.

    Call it when the optimizer is made, after DDP, `fully_shard` or `accelerator.prepare`. Every parameter that requires
    a gradient takes part.

    Args:
        method: id of a training method (`list_methods`), or "module:Class" of your own.
        optimizer: a torch optimizer, DeepSpeed's optimizer of ZeRO stage 1, 2 or 3, or accelerate's wrapper of one.
        model: the model that the optimizer trains, also inside DDP, torch.compile or PEFT.
        pretrained: w*, the weights before fine-tuning: a folder with safetensors, or name -> tensor in its full shape.
            None: what the model holds now, which must then be the base.
        seed: of the method's draws.
        params: parameters of the method, in place of those in conf/method.

    Returns:
        The attachment: `diagnostics()` for a log, `state_dict()` and `load_state_dict()` for an exact resume, and
        `remove()`.

    Raises:
        UserError: unknown method or parameter, a method that does not act during training, a model or optimizer that
            cannot carry it, or w* that is missing or does not fit. Nothing is hooked then.
    """
    return join(method, training_method(method, params, seed), optimizer, model, pretrained)


def training_method(name: str, params: dict[str, Any], seed: int) -> Method:
    """Return a new method object that acts on the steps of a training.

    Raises:
        UserError: unknown method or parameter, or a method of another kind.
    """
    if (kind := entry(name).kind) != "training":
        raise UserError(f"{name} does not act on the steps of a training. " + {
            "none": "It trains nothing.",
            "posthoc": "Train without it, then merge the two checkpoints: docs/merging.md.",
            "adapter": "It trains added tensors: use the peft library itself, or python -m benchmark run.",
        }[kind])
    if entry(name).sees_generic:
        raise UserError(
            f"{name} measures importances on data of its own before the first step, which this trainer does not "
            "do. Use l2_reg, or python -m benchmark run."
        )
    return build(name, params, seed)


def join(name: str, method: Method, optimizer: Any, model: nn.Module, pretrained: Base) -> ModelAttachment:
    """Attach a method that has not been started to a model's optimizer; see `attach_model`.

    Args:
        name: the method's id, for messages.
        method: from `training_method`.
        optimizer: see `attach_model`.
        model: see `attach_model`.
        pretrained: see `attach_model`.
    """
    trained = _trained(model)
    _check_optimizer(optimizer)
    layout = find_layout(optimizer)
    if layout.optimizer in _attached:
        raise UserError("A method is attached to this optimizer already. One optimizer carries one method.")
    _check_tensors(trained, layout)
    _check_kind(name, method, model, trained)
    if pretrained is None and _has_stepped(layout):
        raise UserError(
            "The optimizer has stepped before, so the model's weights are no longer w*. Name the base: "
            "pretrained=FOLDER, or a state dict of it."
        )
    attachment = attach(optimizer, trained, _base(pretrained, model, trained), method)
    _attached.add(layout.optimizer)
    return ModelAttachment(attachment, layout.optimizer)


def _trained(model: nn.Module) -> dict[str, Parameter]:
    """Return the model's trained tensors by their names without those of wrappers.

    Raises:
        UserError: there are none, or they are not on a device.
    """
    if any(class_path(module) == FSDP1 for module in model.modules()):
        raise UserError("FSDP1 joins several tensors into one. Use FSDP2: fully_shard, or accelerate's fsdp_version 2.")
    trained = {WRAPPERS.sub("", name): p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise UserError("No parameter of the model requires a gradient, so there is nothing to train.")
    if meta := [name for name, p in trained.items() if p.device.type == "meta"]:
        raise UserError(f"{meta[0]} is on the meta device: its values are offloaded. Load the model onto a device.")
    return trained


def _check_tensors(trained: Mapping[str, Parameter], layout: Layout) -> None:
    """Refuse an optimizer that holds other tensors than the model trains, and tensors that a method cannot use."""
    held = {id(fragment.parameter) for fragment in layout.fragments}
    left_out = [tensor for tensor, parameter in trained.items() if id(parameter) not in held]
    if len(left_out) == len(trained):
        raise UserError(
            "The optimizer holds no trained tensor of the model. Make it from model.parameters(), after fully_shard or "
            "another change of the model."
        )
    if frozen := {id(part.parameter) for part in layout.fragments if not part.parameter.requires_grad}:
        raise UserError(
            f"The optimizer holds {counted(len(frozen), 'frozen tensor')}. Make it from those that train: "
            "[p for p in model.parameters() if p.requires_grad]."
        )
    if left_out:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise UserError(
            f"{left_out[0]}{more} requires a gradient but is not in the optimizer. Add it, or freeze it: "
            "requires_grad_(False)."
        )
    half = [tensor for tensor, p in trained.items() if p.dtype in (torch.bfloat16, torch.float16)]
    if half and layout.engine in ("plain torch", "FSDP2"):
        raise UserError(
            f"{counted(len(half), 'tensor')}, such as {half[0]}, would train in {trained[half[0]].dtype}, where "
            "rounding swallows most updates: train float32 weights, with bf16 autocast for speed (bf16=True in "
            "transformers)."
        )


def _check_kind(name: str, method: Method, model: nn.Module, trained: Mapping[str, Parameter]) -> None:
    """Refuse a method that makes no sense for these tensors: adapters, or a model without decoder layers."""
    adapted = hasattr(model, "peft_config") or any(".lora_" in tensor for tensor in trained)
    by_size = isinstance(method, Spider) or (isinstance(method, Select) and method.params.by == "magnitude")
    if adapted and by_size:
        raise UserError(
            f"{name} ranks weights by the size of their base values, but LoRA's B begins with zeros. Use l2_reg or "
            "grafting with LoRA, or train the weights themselves."
        )
    if isinstance(method, HalfFT) and not any((split_layer(tensor) or ("", ""))[1] in BLOCKS for tensor in trained):
        raise UserError(
            f"{name} draws whole matrices of decoder layers, such as layers.0.self_attn.q_proj.weight, and none trains "
            "here. Use half_ft_elements, which draws elements of any tensor."
        )


def _has_stepped(layout: Layout) -> bool:
    """Return whether an optimizer holds moments of earlier steps. ZeRO makes them, of zeros, at its start."""
    return layout.engine in ("plain torch", "FSDP2") and any(
        float(state.get("step", 1)) > 0 for state in layout.optimizer.state.values() if state
    )


def _base(pretrained: Base, model: nn.Module, trained: Mapping[str, Parameter]) -> Mapping[str, Tensor]:
    """Return w* of the trained tensors, in their full shapes."""
    if pretrained is None:
        return {name: whole(parameter) for name, parameter in trained.items()}
    if isinstance(pretrained, Mapping):
        given = {WRAPPERS.sub("", name): value for name, value in pretrained.items()}
    else:
        given = read_weights(user_path(pretrained), trained)
        if any(name not in given for name in trained):
            given = _loaded(model, user_path(pretrained)) or given
    if missing := [name for name in trained if name not in given]:
        where = "the state dict" if isinstance(pretrained, Mapping) else pretrained
        raise UserError(
            f"pretrained={where} lacks {counted(len(missing), 'trained tensor')}, such as {missing[0]}. Give the base "
            "checkpoint of this model."
        )
    return given


def _loaded(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint whose files have older names: transformers renames them when it loads them."""
    model = getattr(model, "module", model)
    load = getattr(type(model), "from_pretrained", None)
    if load is None or hasattr(model, "peft_config") or not (folder / "config.json").is_file():
        return {}
    return dict(load(folder, dtype="auto", local_files_only=True).named_parameters())


def read_weights(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Read some tensors of a checkpoint or adapter folder with safetensors.

    Args:
        folder: with model.safetensors, or an index and its parts; or with adapter_model.safetensors.
        names: in the model; those that the folder lacks are left out.

    Raises:
        UserError: the folder has no safetensors, or they are damaged.
    """
    adapter = folder / "adapter_model.safetensors"
    try:
        files = [adapter] if adapter.is_file() else safetensors_files(folder)
    except UserError as error:
        raise UserError(f"pretrained={folder}: {error} Give the folder of the base checkpoint.") from None
    in_file = {ADAPTER.sub(r"\1", name): name for name in names} | {name: name for name in names}
    weights: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                weights |= {in_file[name]: file.get_tensor(name) for name in file.keys() if name in in_file}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"Cannot read {path}: {error}. Fetch the checkpoint again.") from None
    return weights


def _check_optimizer(optimizer: Any) -> None:
    """Refuse by name what would not step float32 weights in one call of `step`."""
    inner = optimizer
    while inner is not None:
        path = class_path(inner)
        for beginning, what in REFUSED.items():
            if path.startswith(beginning):
                raise UserError(f"The optimizer {path} {what}; a method needs its whole step. Use optim='adamw_torch'.")
        if hasattr(getattr(inner, "step", None), "_torchdynamo_orig_callable"):
            raise UserError(f"The step of {path} is compiled, which leaves out hooks. Do not compile optimizer.step.")
        inner = getattr(inner, "optimizer", None)


def whole(parameter: Parameter) -> Tensor:
    """Return a copy of a parameter in its full shape, also where an engine shards it. Every process must call it."""
    if class_path(parameter) in DTENSOR:
        return parameter.detach().full_tensor().clone()  # type: ignore[attr-defined]  # of DTensor
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter):
            return parameter.detach().clone()
    return parameter.detach().clone()


def _fingerprint(attachment: Attachment) -> str:
    """Return a digest of evenly spaced values of w* in this process's parts."""
    digest = hashlib.sha256()
    for shard in attachment.shards:
        values = shard.source[:: max(1, shard.source.numel() // SAMPLE)].float().cpu()
        digest.update(shard.name.encode() + values.numpy().tobytes())
    return digest.hexdigest()
