"""A method in someone else's trainer: one callback for transformers' Trainer and whatever inherits from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.training.attach_model import Base, ModelAttachment, join, training_method

STATE = "spiderbench_method_{rank}.pt"


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

    def __init__(self, method: str, pretrained: Base = None, seed: int = 0, **params: Any) -> None:
        self.name = method
        self.method = training_method(method, params, seed)
        self.pretrained = pretrained
        self.attachment: ModelAttachment | None = None
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
        resumed = state.global_step > 0
        if resumed and self.pretrained is None:
            raise UserError(
                f"The training resumes at step {state.global_step}: the model's weights are no longer w*. Name the "
                f"base: MethodCallback({self.name!r}, pretrained=FOLDER)."
            )
        self.attachment = join(self.name, self.method, optimizer, model, self.pretrained)
        if resumed:
            self._restore(_checkpoint(args, state), state)

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

    def _restore(self, folder: Path, state: TrainerState) -> None:
        assert self.attachment is not None
        path = folder / STATE.format(rank=_rank())
        if not path.is_file() or not _of_this_run(folder, state):
            raise UserError(
                f"{folder} has no state of {self.name} for process {_rank()} of the run that is resumed. Resume from a "
                "checkpoint in output_dir that was saved with this callback and this number of processes, or train "
                "from the start."
            )
        self.attachment.load_state_dict(torch.load(path, weights_only=True))


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _of_this_run(folder: Path, state: TrainerState) -> bool:
    """Whether the trainer resumes from this folder: from one elsewhere, or of another run, it has another log."""
    from transformers.trainer import TRAINER_STATE_NAME  # not above: a trainer that runs has imported it

    try:
        saved = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except OSError:  # only the first process of the first machine writes it
        return True
    return saved.get("log_history") == state.log_history


def _rank() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
