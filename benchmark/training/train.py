"""The only training path: from a cell and a loaded model to the delta of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.core.files import digest_of
from benchmark.core.signals import noting
from benchmark.data.record import Record
from benchmark.models import LoadedModel, tuned_names
from benchmark.models.batch import Items
from benchmark.models.folder import quiet
from benchmark.models.prompt import IGNORE
from benchmark.spec import TunedCell, replayed_per_batch, training_form
from benchmark.training import adapters, importance, replay
from benchmark.training.adapters import Adapter
from benchmark.training.checkpoint import StateFolder, apply_delta, save_delta, snapshot
from benchmark.training.engine import in_turn, join, meet, place, skip_compiling
from benchmark.training.objective import objective_of
from benchmark.training.order import Order
from benchmark.training.train_settings import freed
from benchmark.training.trainable import check_counts, trainable_table
from benchmark.training.trainer import CellTrainer, FsdpTrainer, Progress, Run
from methods.base import Method


def train(
    cell: TunedCell,
    loaded: LoadedModel,
    records: Sequence[Record],
    method: Method,
    out: Path,
    on_progress: Progress | None = None,
) -> None:
    """Fine-tune a model as its cell says; continue from out/checkpoint if an earlier run of the cell saved a state.

    A batch is divided into groups of train.loss_group samples. Its loss is the mean over groups of the mean over the
    tokens of a group, whatever the micro-batches and processes. With engine=single the tuned weights stay in
    loaded.model. With other engines every process of the group calls this function, and `loaded` cannot be used
    afterwards: ZeRO-3 leaves a process only its part of each weight.

    Args:
        cell: the cell, with train settings; checkpoint_steps and checkpoint_minutes set how often the state is saved.
        loaded: the model with the base checkpoint's weights; changed in place.
        records: training records with targets.
        method: hooks around the optimizer step.
        out: the cell's folder. It gets train.jsonl, delta.safetensors and checkpoint/. The caller deletes checkpoint/
            after it has recorded that the training is finished.
        on_progress: callback (step, steps, row of train.jsonl), called after each step.

    Raises:
        UserError: settings, records or images cannot be used; the folder cannot be written.
        TrainingFailed: the loss or the gradient is no longer finite.
        Preempted: after SIGTERM or SIGUSR1, with the training state saved.
        KeyboardInterrupt: after ctrl-C, with the training state saved; a second ctrl-C stops at once.
    """
    settings = cell.train
    if not records:
        raise UserError("There are no training records. Raise train.limit or check the dataset.")
    sharded = cell.engine != "single"
    if fault := freed(settings, cell.zero_optimization if sharded else {}):
        raise UserError(fault)
    if sharded:
        join(cell.device)
        if cell.device == "cpu" and cell.engine != "fsdp2":
            skip_compiling()
    rank, processes = place() if sharded else (0, 1)
    if settings.batch_size % (settings.micro_batch_size * processes):
        raise UserError(
            f"train.micro_batch_size={settings.micro_batch_size} on {processes} process(es) does not divide "
            f"train.batch_size={settings.batch_size}. Choose a divisor."
        )
    names = tuned_names(loaded, settings)
    check_counts(loaded, names, cell)
    replayed = replay.records_of(cell)
    items = Items(loaded, [*records, *replayed], supervised=True)
    if items.cut and rank == 0:
        print(
            f"{len(items.cut)} of {len(items)} items are longer than model.max_length={loaded.max_length} tokens: "
            f"the ends of their answers are cut (first: {items.cut[0]}).", flush=True,
        )
    importance.measure(cell, loaded, method, names)
    adapter = adapters.insert(cell, loaded, method, names, records, sharded)
    try:
        chosen = adapter.trained if adapter else names
        _train(cell, loaded, items, len(replayed), method, out, on_progress, chosen, adapter)
    except BaseException:
        if adapter and not sharded:
            adapter.remove()
        raise


def _train(
    cell: TunedCell, loaded: LoadedModel, items: Items, replayed: int, method: Method, out: Path,
    on_progress: Progress | None, names: Sequence[str], adapter: Adapter | None,
) -> None:
    """Train the named tensors and write the delta. The last `replayed` items are replayed."""
    settings, sharded = cell.train, cell.engine != "single"
    rank, _ = place() if sharded else (0, 1)
    if cell.model.architecture and rank == 0:
        print(trainable_table(loaded, names), flush=True)
    tokens = [sum(label != IGNORE for label in labels) for _, labels in items.encoded]
    state = StateFolder(out / "checkpoint", _fingerprint(cell, loaded, items, adapter))
    in_turn(state.create)

    model = loaded.model.requires_grad_(False)
    pretrained = snapshot(model, names)
    trained = {name: parameter for name, parameter in model.named_parameters() if name in pretrained}
    for parameter in trained.values():
        if not sharded:
            # Master weights are float32. With dtype=bfloat16, autocast casts them for matrix products.
            parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    if settings.gradient_checkpointing:
        _checkpointing(model, "enable", {"use_reentrant": False})
    run = Run(
        cell=cell,
        loaded=loaded,
        method=method,
        trained={name: trained[name] for name in names},
        pretrained=pretrained,
        order=Order(
            cell.seed, tokens, settings.batch_size, settings.loss_group, replayed, replayed_per_batch(settings)
        ),
        state=state,
        log=out / "train.jsonl",
        on_progress=on_progress,
        adapter=adapter,
        objective=objective_of(settings, trained, pretrained, rank, adapter is not None),
    )
    del trained, parameter  # engine=fsdp2 replaces these tensors, and GPUs have no room for both
    with noting() as run.signals:  # until the weights are written: a late signal must not undo a finished training
        with quiet():
            trainer = (FsdpTrainer if cell.engine == "fsdp2" else CellTrainer)(run, items)
            trainer.run_cell()
            tuned = trainer.weights()
        model.requires_grad_(False).eval()
        if settings.gradient_checkpointing:
            _checkpointing(model, "disable")
        if rank == 0:
            trainer.write_speed(out / "speed.json")
            if adapter:
                tuned, pretrained = tuned | adapter.merged(tuned), adapter.base(pretrained)
                names = adapter.weights
            # In the dtype of the base: the last forward pass used it, and it halves the size of float32 masters.
            tuned = {name: tuned[name].to(pretrained[name].dtype) for name in names}
            save_delta(out / "delta.safetensors", tuned, pretrained, names, loaded.digest)
        if sharded:
            trainer.close()
            meet()
            return
        if adapter:
            adapter.remove()
            apply_delta(model, {name: tensor for name, tensor in tuned.items() if name not in adapter.added})
        for name, parameter in run.trained.items():
            if name in pretrained:
                parameter.data = parameter.data.to(pretrained[name].dtype)


def _fingerprint(cell: TunedCell, loaded: LoadedModel, items: Items, adapter: Adapter | None) -> str:
    texts = [(record.item_id, *pair) for record, pair in zip(items.records, items.encoded, strict=True)]
    spec = {
        "train": training_form(cell.train),
        "method": dataclasses.asdict(cell.method),
        "seed": cell.seed,
        "dtype": cell.dtype,
    }
    content = {"spec": spec, "base": loaded.digest, "texts": texts}
    # An adapter is made anew for a resume: a machine that makes another one has to start again.
    return digest_of(content | {"adapter": adapter.digest} if adapter else content)


def _checkpointing(model: Any, what: str, *options: dict[str, Any]) -> None:
    """Switch gradient checkpointing on or off, by its old or its new name in transformers."""
    names = (f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}")
    next(getattr(model, name) for name in names if hasattr(model, name))(*options)
