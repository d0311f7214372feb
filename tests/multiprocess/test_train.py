"""The trainer under ZeRO and FSDP2: the same deltas as on one process, one log, exact resume."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.core.errors import UserError
from benchmark.core.signals import Preempted
from benchmark.data.record import Record
from benchmark.spec import CellSpec, EvalSpec, MethodSpec, ModelSpec, TrainSpec
from benchmark.training.checkpoint import load_delta
from benchmark.training.train import train
from methods.base import Method
from methods.registry import build
from tests.benchmark.models import tiny
from tests.multiprocess.launch import launch
from tests.multiprocess.training import ANSWERS, ZERO

STOP = 4  # the step in which a process is told to stop: the first of the second epoch
TENSOR = "model.language_model.layers.1.self_attn.q_proj.weight"


def cell(engine: str, dtype: str) -> CellSpec:
    """Return a cell of three batches of 8 samples, the last of 5, in each of two epochs."""
    settings = TrainSpec(
        epochs=2, batch_size=8, micro_batch_size=2, learning_rate=1e-3, projector_learning_rate=5e-4,
        scope="last_layers", last_layers=2, warmup_ratio=0.3, scheduler="cosine", weight_decay=0.0, max_grad_norm=0.3,
        loss_group=2, limit=None,
    )
    return CellSpec(
        profile="toy", model=ModelSpec("tiny", "Tiny", "llava", "unused", "pad", 256, 1e-3, 5e-4),
        method=MethodSpec("spider", {}), target="toy", seed=0, train=settings, datasets=(), eval=EvalSpec(4),
        data_root="unused", dtype=dtype, device="cpu", threads=1, engine=engine,
        zero_optimization=ZERO.get(engine, {}),
    )


class Remembers(Method):
    """Holds what it does not save, in the second process alone."""

    def before_step(self, shards: Any) -> None:
        if os.environ["RANK"] == "1":
            self.momenta = {shard.name: shard.grad.clone() for shard in shards}


def run(
    folder: Path, out: Path, engine: str, dtype: str = "float32", stop: bool = False, method: Method | None = None,
    **changes: Any,
) -> str:
    """Train as a worker process does; return how it ended. Changes are the cell's."""
    records = [
        Record(
            f"item{i}", "toy", "train", None if i % 3 == 2 else folder / f"{i}.png", f"what is {i} ?",
            ANSWERS[i % len(ANSWERS)], (), None, str(i), {},
        )
        for i in range(21)
    ]
    method = method or build("spider", {}, 0)
    if stop and os.environ["RANK"] == "1":
        steps, before_step = [], method.before_step

        def stopping(shards: Any) -> None:
            before_step(shards)
            steps.extend(shard.name for shard in shards if shard.name == TENSOR)
            if len(steps) == STOP:
                os.kill(os.getpid(), signal.SIGTERM)

        method.before_step = stopping
    loaded = tiny.load("llava", folder / "model", getattr(torch, dtype))
    try:
        train(replace(cell(engine, dtype), **changes), loaded, records, method, out)
    except (Preempted, UserError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def delta(out: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Return the trained tensors."""
    return load_delta(out / "delta.safetensors", tiny.load("llava", folder / "model").digest)


def rows(out: Path) -> list[dict[str, float]]:
    """Return the log."""
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(folder, tmp_path_factory):
    """The cell on one process."""
    out = tmp_path_factory.mktemp("single")
    assert launch(run, 1, folder, out, "single") == ["done"]
    return out


def check_weights_and_resume(
    worker: Callable[..., str], engine: str, folder: Path, single: Path, out: Path, between: Callable[[Path], None]
) -> Path:
    """Train a cell on two processes, straight and stopped halfway; compare both with one process.

    Args:
        worker: called as (folder, out, engine, stop=...) in every process.
        engine: of the two processes.
        folder: the small model and its images.
        single: what one process left.
        out: an empty folder.
        between: called with the folder of the stopped run before that run goes on.

    Returns:
        The folder of the straight run.
    """
    straight, stopped = out / "straight", out / "stopped"
    assert launch(worker, 2, folder, straight, engine) == ["done", "done"]
    expected, found = delta(single, folder), delta(straight, folder)
    assert expected.keys() == found.keys()
    assert all((found[name] - value).abs().max() < 1e-6 for name, value in expected.items())

    ended = launch(partial(worker, stop=True), 2, folder, stopped, engine)
    assert all(text.startswith(f"Preempted: Stopped after step {STOP} of 6") for text in ended), ended
    between(stopped)
    assert launch(worker, 2, folder, stopped, engine) == ["done", "done"]
    again = delta(stopped, folder)
    assert all(torch.equal(again[name], value) for name, value in found.items())
    assert rows(stopped) == rows(straight)
    return straight


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp2"])
def test_a_cell_gets_the_same_weights_and_resumes_exactly(engine, folder, single, tmp_path):
    def one_process_is_refused(stopped: Path) -> None:
        refused = launch(run, 1, folder, stopped, engine)[0]
        assert f"was saved with engine={engine} on 2 process(es), this run has engine={engine} on 1" in refused

    straight = check_weights_and_resume(run, engine, folder, single, tmp_path, one_process_is_refused)
    assert [row["step"] for row in rows(straight)] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(rows(single), rows(straight), strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


def test_a_cell_in_bfloat16(folder, tmp_path):
    """With either optimizer of DeepSpeed and with FSDP2 the delta holds the masters, rounded as the model's weights."""
    deltas = []
    # Blocks that run again in the backward pass are gathered again, too; and then no engine shares first tokens.
    again = {"train": replace(cell("single", "bfloat16").train, gradient_checkpointing=True)}
    for engine in ("zero1", "zero2", "fsdp2"):
        assert launch(partial(run, **again), 2, folder, tmp_path / engine, engine, "bfloat16") == ["done", "done"]
        deltas.append(delta(tmp_path / engine, folder))
    assert all(tensor.dtype == torch.bfloat16 for tensor in deltas[0].values())
    for other in deltas[1:]:
        for name, value in other.items():  # masters that differ in the last bits may round to neighbours
            assert torch.allclose(deltas[0][name].float(), value.float(), rtol=2**-7, atol=1e-6), name


def unsaved(folder: Path, out: Path) -> str:
    """Train a method that cannot be saved, with a save after the second step."""
    return run(folder, out, "zero2", method=Remembers(None, 0), checkpoint_steps=2)


def test_a_method_that_cannot_be_saved_stops_every_process(folder, tmp_path):
    first, second = launch(unsaved, 2, folder, tmp_path, patience=60)
    assert first == "UserError: Another process's method cannot be saved; its output says why."
    assert second.startswith("UserError: The method Remembers cannot be saved") and "momenta (dict of" in second
    assert list((tmp_path / "checkpoint").iterdir()) == []
