"""A toy cell of a few steps on a small model, trained in place; how to kill it, and how to compare what it leaves."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from benchmark.spec import CellSpec, EvalSpec, MethodSpec, ModelSpec, TrainSpec
from benchmark.training.checkpoint import apply_delta, load_delta, snapshot
from benchmark.training.train import train
from methods.registry import build


def cell(seed=0, method="full_ft", dtype="float32", **changes):
    settings = {
        "epochs": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 2e-3, "projector_learning_rate": 2e-4,
        "last_layers": 2, "scope": "last_layers", "warmup_ratio": 0.3, "scheduler": "cosine", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "loss_group": 2, "limit": None,
    }
    return CellSpec(
        profile="toy",
        model=ModelSpec("tiny", "Tiny", "vila", "unused", "resize", 256, 2e-3, 2e-4),
        method=MethodSpec(method, {}),
        target="toy",
        seed=seed,
        train=TrainSpec(**(settings | changes)),
        datasets=(),
        eval=EvalSpec(4),
        data_root="unused",
        dtype=dtype,
        device="cpu",
        threads=1,
    )


def run(loaded, records, out, spec=None, method=None, on_progress=None, **options):
    """Train from the base weights and put them back; returns (delta, rows). Options are the cell's."""
    spec = replace(spec or cell(), **options)
    base = snapshot(loaded.model, [name for name, _ in loaded.model.named_parameters()])
    try:
        train(spec, loaded, records, method or build(spec.method.id, {}, spec.seed), out, on_progress)
    finally:
        apply_delta(loaded.model, base)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return load_delta(out / "delta.safetensors", loaded.digest), rows


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Killed(Exception):
    pass


def stop_at(step, action):
    def on_progress(now, steps, row):
        if now == step:
            action()

    return on_progress


def kill():
    raise Killed
