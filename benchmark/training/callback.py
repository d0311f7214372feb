"""A method in someone else's trainer: one callback for transformers' Trainer and whatever inherits from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, distributed, nn
from torch.nn import Parameter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.training.attach import Attachment, attach
from benchmark.training.fragments import DTENSOR, class_path
from methods.registry import build, entry

STATE = "spiderbench_method_{rank}.pt"
# Beginnings of optimizer classes that do not step float32 weights in one call -> what they do.
REFUSED = {
    "bitsandbytes.": "keeps its moments in 8 bits or pages them",
    "torchao.": "keeps its moments in few bits",
    "galore_torch.": "steps a projection of the gradient",
    "apollo_torch.": "steps a projection of the gradient",
    "lomo_optim.": "updates weights during the backward pass",
    "transformers.trainer_pt_utils.LayerWiseDummyOptimizer": "updates weights during the backward pass",
}
# Methods that rank weights by the size of their base values.
BY_SIZE = ("methods.spider:Spider", "methods.select:Select")


class MethodCallback(TrainerCallback):
    """Train with one of our methods in transformers' Trainer, TRL's SFTTrainer, or another trainer that inherits.

    It hooks the method to the innermost optimizer when training begins, saves the method's state with every checkpoint
    of the trainer, restores it on resume, and adds the method's numbers to the log.

    Args:
        method: id of a training method, or "module:Class" of your own.
        pretrained: w*, the weights before fine-tuning: a folder with safetensors, or name -> tensor. None: what the
            model holds when training begins, which a resumed training must not use.
        seed: of the method's draws.
        params: parameters of the method, in place of those in conf/method.

    Raises:
        UserError: unknown method or parameter, or a method that does not act during training.
    """

    def __init__(
        self, method: str, pretrained: str | Path | Mapping[str, Tensor] | None = None, seed: int = 0, **params: Any
    ) -> None:
        if (kind := entry(method).kind) != "training":
            raise UserError(f"{method} does not act on the steps of a training. " + {
                "none": "It trains nothing.",
                "posthoc": "Train without it, then merge the two checkpoints: docs/merging.md.",
                "adapter": "It trains added tensors: use the peft library itself, or python -m benchmark run.",
            }[kind])
        self.name = method
        self.method = build(method, params, seed)
        self.pretrained = pretrained
        self.attachment: Attachment | None = None
        self._numbers: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the method; on resume, restore its state.

        Raises:
            UserError: the callback was used before, nothing trains, the optimizer cannot carry a method, w* is missing
                or does not fit, or a resumed training has no saved state.
        """
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if self.attachment is not None:
            raise UserError(f"This MethodCallback({self.name!r}) has trained before. Make a new one for each training.")
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise UserError("No parameter of the model requires a gradient, so there is nothing to train.")
        if meta := [name for name, p in trained.items() if p.device.type == "meta"]:
            raise UserError(f"{meta[0]} is on the meta device: its values are offloaded. Load the model onto a device.")
        _check_optimizer(optimizer)
        if any(".lora_" in name for name in trained) and entry(self.name).cls in BY_SIZE:
            raise UserError(
                f"{self.name} ranks weights by the size of their base values, but LoRA's B begins with zeros. Use "
                "l2_reg or grafting with LoRA, or train the weights themselves."
            )
        resumed = state.global_step > 0
        if resumed and self.pretrained is None:
            raise UserError(
                f"The training resumes at step {state.global_step}: the model's weights are no longer w*. Name the "
                f"base: MethodCallback({self.name!r}, pretrained=FOLDER)."
            )
        self.attachment = attach(optimizer, trained, self._base(model, trained), self.method)
        if resumed:
            self._restore(_checkpoint(args, state))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the method's numbers where the trainer is about to log. Every process must take part."""
        if control.should_log and self.attachment is not None:
            self._numbers = self.attachment.diagnostics()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the method's numbers to the row that the trainer logs."""
        if logs is not None and "loss" in logs and self._numbers:
            # Keys with a slash are of single tensors and blocks: too many for a log that people read.
            numbers = {f"{self.name}/{key}": value for key, value in self._numbers.items() if "/" not in key}
            logs |= numbers
            state.log_history[-1] |= numbers

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the method's state of this process beside the trainer's checkpoint."""
        folder = _checkpoint(args, state)
        if self.attachment is not None and folder.is_dir():
            partial = folder / f".{STATE.format(rank=_rank())}"
            torch.save(self.attachment.state_dict(), partial)
            partial.rename(folder / STATE.format(rank=_rank()))
            if _rank() == 0:
                write_atomic(folder / "spiderbench_method.json", json.dumps({
                    "method": self.name, "params": vars(self.method.params) if self.method.params else {},
                    "seed": self.method.seed,
                }, indent=1, default=str) + "\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the method off the optimizer."""
        if self.attachment is not None:
            self.attachment.remove()

    def _base(self, model: nn.Module, trained: Mapping[str, Parameter]) -> Mapping[str, Tensor]:
        """Return w* of the trained tensors, in their full shapes."""
        if self.pretrained is None:
            return {name: _whole(parameter) for name, parameter in trained.items()}
        if isinstance(self.pretrained, Mapping):
            return self.pretrained
        return read_weights(Path(self.pretrained), trained)

    def _restore(self, folder: Path) -> None:
        assert self.attachment is not None
        path = folder / STATE.format(rank=_rank())
        if not path.is_file():
            raise UserError(
                f"{folder} has no state of {self.name} for process {_rank()}. Resume from a checkpoint that was saved "
                "with this callback and this number of processes, or train from the start."
            )
        self.attachment.load_state_dict(torch.load(path, weights_only=True))


def read_weights(folder: Path, names: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read some tensors of a checkpoint folder with safetensors.

    Args:
        folder: with model.safetensors, or an index and its parts.
        names: of the tensors; those that the folder lacks are left out.

    Raises:
        UserError: the folder has no safetensors, or they are damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"pretrained={folder} has no .safetensors file. Give the folder of the base checkpoint.")
    weights: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                weights |= {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118
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


def _whole(parameter: Parameter) -> Tensor:
    """Return a copy of a parameter in its full shape, also where an engine shards it."""
    if class_path(parameter) in DTENSOR:
        return parameter.detach().full_tensor().clone()  # type: ignore[attr-defined]  # of DTensor
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter):
            return parameter.detach().clone()
    return parameter.detach().clone()


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _rank() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
