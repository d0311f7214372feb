"""The Hugging Face Trainer of a cell: our loss, data order, method hooks, log and saved state."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.core.signals import stopped
from benchmark.models import LoadedModel
from benchmark.models.batch import READ_SECONDS, Items
from benchmark.spec import TunedCell, cell_id
from benchmark.training import fsdp, trackers
from benchmark.training.adapters import Adapter
from benchmark.training.attach import Attachment, attach
from benchmark.training.checkpoint import StateFolder, apply_delta
from benchmark.training.engine import any_process, deepspeed_config, from_all, in_turn, meet, place
from benchmark.training.losses import temperature
from benchmark.training.objective import Objective, batch_loss, sample_losses, training_batch
from benchmark.training.order import Order, Share, TrainingSet
from methods.base import Method

# Files of a saved state, in addition to those of the optimizer and the method.
WEIGHTS = "weights.safetensors"
PLACE = "place"
PARTS = "fsdp{}.pt"  # of each process, with engine=fsdp2
DIAGNOSTICS_EVERY = 10  # steps; the method's diagnostics read all tuned weights
Progress = Callable[[int, int, dict[str, Any]], None]


class TrainingFailed(RuntimeError):
    """The loss or the gradient is not finite. This cell has failed; other cells may continue."""


@dataclass
class Run:
    """What the trainer needs in addition to its arguments.

    Args:
        cell: the cell, with train settings.
        loaded: the model.
        method: hooks around the optimizer step.
        trained: name -> trained tensor.
        pretrained: name -> its base value.
        order: the sampler.
        state: folder of the saved states.
        log: train.jsonl.
        on_progress: callback after each step.
        signals: received signals, on which the training saves its state and stops.
        attachment: the method, hooked to the optimizer.
        adapter: the method's adapter in the model, if it has one.
        objective: what is minimised.
    """

    cell: TunedCell
    loaded: LoadedModel
    method: Method
    trained: dict[str, Parameter]
    pretrained: dict[str, Tensor]
    order: Order
    state: StateFolder
    log: Path
    on_progress: Progress | None
    signals: list[int] = field(default_factory=list)
    attachment: Attachment = None  # type: ignore[assignment]  # start_method sets it before the first step
    adapter: Adapter | None = None
    objective: Objective = None  # type: ignore[assignment]  # _train sets it


class CellTrainer(Trainer):
    """A Trainer with the cell's loss, parameter groups, data order, log and saved state."""

    def __init__(self, run: Run, items: Items) -> None:
        settings, device = run.cell.train, run.cell.device
        self.sharded, zero = run.cell.engine != "single", run.cell.engine.startswith("zero")
        self.rank, self.processes = place() if self.sharded else (0, 1)
        self.place = f"engine={run.cell.engine} on {self.processes} process(es)"
        accumulation = settings.batch_size // (settings.micro_batch_size * self.processes)
        self.run = run
        self.items = items
        self.settings = settings
        self.batch_ids: list[str] = []
        self.rows: TextIO = None  # type: ignore[assignment]  # run_cell opens it in process 0, which alone writes
        self.waited = 0.0  # seconds of waiting for data
        self.began = time.monotonic()
        self.first_step = 0
        self.found: Path | None = None  # the saved state that the training continues from
        config = deepspeed_config(
            run.cell.zero_optimization,
            micro_batch_size=settings.micro_batch_size,
            accumulation=accumulation,
            max_grad_norm=settings.max_grad_norm,
            dtype=run.cell.dtype,
        ) if zero else None
        arguments = TrainingArguments(
            output_dir=str(run.state.path),
            per_device_train_batch_size=settings.micro_batch_size,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=settings.epochs,
            lr_scheduler_type=settings.scheduler,
            warmup_steps=math.ceil(settings.warmup_ratio * settings.epochs * run.order.steps),
            max_grad_norm=settings.max_grad_norm,
            seed=run.cell.seed,
            use_cpu=device == "cpu" and not zero,  # it would disable DeepSpeed
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=run.cell.report_to if self.rank == 0 else trackers.NONE,
            run_name=cell_id(run.cell),
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=_workers(items),
            dataloader_pin_memory=device == "cuda",
            deepspeed=config and config | {"bf16": {"enabled": False}},
        )
        trackers.start(run.cell.report_to, run.log.parent)
        # Otherwise the Trainer would split each batch among all visible GPUs (DataParallel).
        arguments._n_gpu = min(arguments.n_gpu, 1)
        blank = items.blank if self.sharded else None
        super().__init__(
            model=run.loaded.model,
            args=arguments,
            train_dataset=TrainingSet(items),
            data_collator=lambda pairs: training_batch(run.loaded, pairs, blank, share=self.shares_start),
            # If it is set, the Trainer takes the loss as already scaled for accumulation.
            compute_loss_func=self.compute_loss,
            callbacks=[CellCallback(self)],
        )
        self.remove_callback(PrinterCallback)
        if self.accelerator.mixed_precision != "no":  # we cast by autocast only; see benchmark.core.variables
            raise RuntimeError(f"accelerate would compute in {self.accelerator.mixed_precision}, the cell does not.")
        if config is not None:
            # Only now: a Trainer that knows of bf16 would round the loss weights, and would need a GPU.
            arguments.hf_deepspeed_config.config["bf16"] = config["bf16"]

    def run_cell(self) -> None:
        """Train to the end, from the saved state if there is one.

        Raises:
            UserError: another engine or number of processes saved the state.
            TrainingFailed: the loss or the gradient is no longer finite.
            Preempted: after SIGTERM or SIGUSR1, with the state saved.
            KeyboardInterrupt: after ctrl-C, with the state saved.
        """
        # One process reads all files to check them, and deletes states that cannot be used.
        self.found = found = in_turn(lambda: self.run.state.latest(check=self.rank == 0))
        saved = self.place if found is None else (found / PLACE).read_text()
        if saved != self.place:
            raise UserError(
                f"The training state in {found} was saved with {saved}, this run has {self.place}. It is cut like "
                f"the weights: continue with {_same(saved)}, or delete the folder to start again."
            )
        try:
            if self.rank == 0:
                self.rows = _open_log(self.run.log, found)
            self.train(resume_from_checkpoint=None if found is None else str(found))
        finally:
            if self.run.attachment is not None:
                self.run.attachment.remove()
            if self.rows is not None:
                self.rows.close()
                trackers.finish(self.run.cell.report_to)
        if self.state.global_step < self.state.max_steps:
            raise stopped(
                self.run.signals,
                f"Stopped after step {self.state.global_step} of {self.state.max_steps}. The state is saved in "
                f"{self.run.state.path}; the same command continues.",
            )

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]  # our TrainingSet; the Trainer declares every kind it takes
            batch_size=self.args.per_device_train_batch_size,
            sampler=Share(self.run.order, self.settings.micro_batch_size, self.rank, self.processes)
            if self.sharded else self.run.order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            timeout=READ_SECONDS if self.args.dataloader_num_workers else 0,
        )
        # prepare() would cut the loader of a sharded run into shares a second time.
        return loader if self.sharded else self.accelerator.prepare(loader)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            prefix = self.run.loaded.projector_prefix
            blocks = [p for name, p in self.run.trained.items() if not name.startswith(prefix)]
            projector = [p for name, p in self.run.trained.items() if name.startswith(prefix)]
            groups = [
                {"params": blocks, "lr": self.settings.learning_rate},
                {"params": projector, "lr": self.settings.projector_learning_rate},
            ]
            groups = [group for group in groups if group["params"]]
            fused = True if self.run.cell.device == "cuda" else None
            self.optimizer = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay, fused=fused)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.batch_ids += inputs.pop("item_ids")
        loss, outputs = batch_loss(model, inputs, self.autocast, self.run.objective)
        if not torch.isfinite(loss):
            self._fail("loss", loss.item(), self.state.global_step + 1)
        loss = loss * self.processes  # DeepSpeed and FSDP2 take the mean over the processes
        return (loss, outputs) if return_outputs else loss

    @property
    def shares_start(self) -> bool:
        """Whether the tokens that all items begin with run only once per micro-batch."""
        return not self.settings.gradient_checkpointing

    @property
    def autocast(self) -> bool:
        """Whether products are computed in bfloat16. Not TrainingArguments.bf16: accelerate keeps the precision of a
        process's first trainer."""
        return self.run.cell.dtype == "bfloat16"

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        began = time.monotonic()
        samples = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.waited += time.monotonic() - began
        if self.settings.loss == "talr" and samples[0]:
            self.run.objective.tau = self._temperature(samples[0])
        return samples

    def _temperature(self, batches: list[dict[str, Any]]) -> float:
        """Return the temperature of an optimizer step: a pass over its whole batch, whatever its micro-batches are."""
        means = []
        for batch in batches:
            inputs = self._prepare_inputs({key: value for key, value in batch.items() if key != "item_ids"})
            means += sample_losses(self.model_wrapped, inputs, self.autocast)
        return temperature([mean for part in from_all(means) for mean in part])

    def write_speed(self, path: Path) -> None:
        """Write the speed of this process since it started or resumed; plans use it."""
        steps, seconds = self.state.global_step - self.first_step, time.monotonic() - self.began
        if steps <= 0:
            return  # the run that saved the state had done all steps
        device = self.args.device
        peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
        content = {
            "engine": self.run.cell.engine, "processes": self.processes, "steps": steps, "seconds": round(seconds, 3),
            "samples": min(steps * self.settings.batch_size, len(self.run.order) * self.settings.epochs),
            "share_waiting_for_data": round(self.waited / seconds, 4), "peak_memory_gb": peak,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        }
        write_atomic(path, json.dumps(content, indent=1) + "\n")

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # otherwise the Trainer counts all parameters at each step, for a number that is never used

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return
        step, last = self.state.global_step, self.state.max_steps
        row = {"step": step, **{key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm")}}
        if not math.isfinite(row["grad_norm"]):
            self._fail("gradient norm", row["grad_norm"], step)
        self.batch_ids.clear()
        if step == 1 and self.items.cut:
            row["items_cut"] = len(self.items.cut)
        if step % DIAGNOSTICS_EVERY == 0 or step in (1, last):
            numbers = self.run.attachment.diagnostics()
            row |= self.run.adapter.row(numbers) if self.run.adapter else numbers
        if self.rank > 0:
            return
        try:
            self.rows.write(json.dumps(row) + "\n")
            self.rows.flush()
        except OSError as error:
            raise UserError(f"Cannot write {self.run.log}: {error.strerror}. Free some space.") from None
        numbers = {key: value for key, value in row.items() if key != "step"}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, numbers)
        if self.run.on_progress is not None:
            self.run.on_progress(step, last, row)

    def _fail(self, what: str, value: float, step: int) -> None:
        saved = sorted(self.run.state.path.glob("step-*"))
        good = f"The last good state is that of step {int(saved[-1].name[5:])}, in {saved[-1]}" if saved else (
            "No state was saved before"
        )
        raise TrainingFailed(
            f"The {what} is {value} at step {step}, in the batch of items {', '.join(self.batch_ids)}. {good}. "
            "Lower train.learning_rate, or look at these items."
        )

    def check_weights(self) -> None:
        """Refuse weights that overflowed in this step. Every process must call it.

        Raises:
            TrainingFailed: a weight is not finite on some process.
        """
        shards = self.run.attachment.shards
        bad = not all(bool(torch.isfinite(shard.weight).all()) for shard in shards)
        if any_process(bad, device=self.args.device)[0]:
            self._fail("largest weight", math.inf, self.state.global_step)

    def check_method(self) -> None:
        """Refuse a method whose state cannot be resumed, before anything is written. Every process must call it.

        Raises:
            UserError: on some process the method holds state that would not be saved.
        """
        fault = self.run.attachment.unsaved()
        if any_process(fault is not None, device=self.args.device)[0]:
            raise UserError(fault or "Another process's method cannot be saved; its output says why.")

    def weights(self) -> dict[str, Tensor]:
        """Return the whole float32 weights. Every process must call it."""
        if not self.sharded:
            return {name: parameter.detach() for name, parameter in self.run.trained.items()}
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(parameter).cpu() for name, parameter in self.run.trained.items()}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with contextlib.ExitStack() as stack:
            if self.rank == 0:
                stack.enter_context(self.run.state.save(self.state.global_step))
            meet()
            folder = self.run.state.unfinished
            torch.save(self.run.attachment.state_dict(), folder / f"method{self.rank}.pt")
            if self.sharded:
                self.save_parts(folder)
                if self.rank == 0:
                    torch.save(
                        self.lr_scheduler.state_dict(),  # type: ignore[union-attr]  # set when training begins
                        folder / SCHEDULER_NAME,
                    )
            else:
                save_file({name: weight.contiguous() for name, weight in self.weights().items()}, folder / WEIGHTS)
                self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            if self.rank == 0:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
                (folder / PLACE).write_text(self.place)
                shutil.copyfile(self.run.log, folder / self.run.log.name)
            meet()
        meet()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # __init__ gave the Trainer its model.
        apply_delta(self.model, load_file(Path(resume_from_checkpoint) / WEIGHTS))  # type: ignore[arg-type]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        path = None if self.sharded else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, path)
        if self.sharded and resume_from_checkpoint is not None:
            self.load_parts(Path(resume_from_checkpoint))
            self.lr_scheduler.load_state_dict(  # type: ignore[union-attr]  # super() has made it
                torch.load(Path(resume_from_checkpoint) / SCHEDULER_NAME)
            )
        return prepared

    def save_parts(self, folder: Path) -> None:
        """Save the weights and the optimizer's state of this process; the frozen weights are left out."""
        self.model_wrapped.save_checkpoint(  # type: ignore[operator]  # DeepSpeed's engine
            folder, exclude_frozen_parameters=True
        )

    def load_parts(self, folder: Path) -> None:
        """Load what `save_parts` saved."""
        self.model_wrapped.load_checkpoint(  # type: ignore[operator]  # DeepSpeed's engine
            folder, load_module_strict=False
        )

    def close(self) -> None:
        """Free what the engine holds."""
        self.model_wrapped.destroy()  # type: ignore[operator]  # DeepSpeed's engine

    def start_method(self) -> None:
        """Hook the method to the optimizer and restore its saved state."""
        run = self.run
        unseen = run.adapter.unseen if run.adapter else ()
        run.attachment = attach(self.optimizer, run.trained, run.pretrained, run.method, unseen)
        if self.found is not None:
            state = torch.load(self.found / f"method{self.rank}.pt", weights_only=True)
            run.attachment.load_state_dict(state)


class FsdpTrainer(CellTrainer):
    """A CellTrainer with engine=fsdp2: the Trainer sees a model that is its own, and gradients that are reduced."""

    def __init__(self, run: Run, items: Items) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # without it accelerate sets another
        super().__init__(run, items)

    @property
    def shares_start(self) -> bool:
        return False  # FSDP2 gathers a block again for its outputs' gradients, not for those of its keys and values

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        run = self.run
        run.trained = fsdp.shard(run.loaded, list(run.trained), run.cell.dtype)
        if run.objective.base is not None:
            run.objective.base = fsdp.BaseRows(run.trained, run.pretrained)
        vars(self.model)["_is_accelerate_prepared"] = True  # otherwise accelerate would wrap it in DDP
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: this comes before the model is cut."""

    def _clip_grad_norm(self, model: Any) -> Tensor:
        return fsdp.clip(self.run.trained.values(), self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Tensor | None = None) -> Tensor:
        return fsdp.clip(self.run.trained.values(), math.inf) if grad_norm is None else grad_norm

    def weights(self) -> dict[str, Tensor]:
        return fsdp.gathered(self.run.trained)

    def save_parts(self, folder: Path) -> None:
        torch.save(fsdp.state_of(self.run.trained, self.optimizer), folder / PARTS.format(self.rank))

    def load_parts(self, folder: Path) -> None:
        state = torch.load(folder / PARTS.format(self.rank), weights_only=True)
        fsdp.restore(self.run.trained, self.optimizer, state)

    def close(self) -> None:
        """Do nothing: the model holds all."""


class CellCallback(TrainerCallback):
    """Our actions in the Trainer's loop."""

    def __init__(self, trainer: CellTrainer) -> None:
        self.trainer = trainer
        self.saved = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.start_method()
        self.trainer.began, self.trainer.first_step = time.monotonic(), state.global_step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        order = self.trainer.run.order
        order.epoch = state.global_step // order.steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self.trainer.run
        if state.global_step == state.max_steps:
            self.trainer.check_weights()  # no later loss would reveal them
            return
        steps = run.cell.checkpoint_steps
        every = steps is not None and state.global_step % steps == 0
        late = time.monotonic() - self.saved > 60 * run.cell.checkpoint_minutes
        # Clocks and signals differ between processes, but all processes must do the same.
        save, stop = any_process(every or late, bool(run.signals), device=args.device)
        if save or stop:
            self.trainer.check_weights()
            self.trainer.check_method()
            control.should_save = True
            self.saved = time.monotonic()
        control.should_training_stop = stop


def _workers(items: Items) -> int:
    """Return how many processes read ahead for each training process of this machine."""
    return items.workers and max(1, min(8, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _same(saved: str) -> str:
    """Return the settings that give the engine and the processes of a saved state, e.g. engine=zero2 and GPUS=8."""
    engine, _, rest = saved.partition(" on ")
    return engine if engine == "engine=single" else f"{engine} and GPUS={rest.split()[0]} (gpus={rest.split()[0]})"


def _open_log(path: Path, saved: Path | None) -> TextIO:
    """Restore the rows of a saved state (none without one), and open the file for further rows."""
    write_atomic(path, b"" if saved is None else (saved / path.name).read_bytes())
    return open(path, "a")
