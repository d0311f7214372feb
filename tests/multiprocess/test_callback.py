"""MethodCallback on two processes (DDP): the weights of one process, and a resume to the same bits."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from benchmark.training.callback import MethodCallback
from tests.benchmark.training.test_callback import model, plain_loop, trainer, weights
from tests.multiprocess.launch import launch

SAVING = {"save_strategy": "steps", "save_steps": 3}


def train(folder: Path, resumed: bool) -> dict[str, Tensor]:
    """Train in a process of torchrun's; two processes make a step of the whole batch without accumulation."""
    os.environ |= {"MASTER_ADDR": "localhost", "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}
    base = weights(model()) if resumed else None
    run = trainer(folder, MethodCallback("spider", pretrained=base), **{} if resumed else SAVING)
    run.args.gradient_accumulation_steps = 2 // int(os.environ["WORLD_SIZE"])
    run.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resumed else None)
    return weights(run.model)


def test_two_processes_train_as_one_and_resume(tmp_path):
    first, second = launch(train, 2, tmp_path, False)
    expected = plain_loop("spider")
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]) and (first[name] - value).abs().max() < 1e-6
    saved = sorted(path.name for path in (tmp_path / "checkpoint-3").glob("spiderbench_method_*.pt"))
    assert saved == ["spiderbench_method_0.pt", "spiderbench_method_1.pt"]
    for again in launch(train, 2, tmp_path, True):
        assert all(torch.equal(again[name], first[name]) for name in first)
