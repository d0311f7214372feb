"""Cells for tests: one of the small models, for its settings only; a published one as a run leaves it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.answers import read_answers
from benchmark.spec import CellSpec, EvalSpec, MethodSpec, ModelSpec, TrainSpec

TRAIN = TrainSpec(
    epochs=2, batch_size=8, micro_batch_size=2, learning_rate=1e-3, projector_learning_rate=5e-4, scope="last_layers",
    last_layers=2, warmup_ratio=0.3, scheduler="cosine", weight_decay=0.0, max_grad_norm=0.3, loss_group=2, limit=None,
)


def cell_of_tiny(family: str = "llava", train: dict[str, Any] | None = None, **model: Any) -> CellSpec:
    """Return a cell; `train` changes its settings, `model` its model."""
    base = ModelSpec(
        id="tiny", name="Tiny", family=family, checkpoint="unused", preprocess="pad", max_length=256,
        learning_rate=1e-3, projector_learning_rate=5e-4,
    )
    return CellSpec(
        profile="toy", model=replace(base, **model), method=MethodSpec("full_ft", {}), target="toy", seed=0,
        train=replace(TRAIN, **train or {}), datasets=(), eval=EvalSpec(4), data_root="unused", threads=1,
    )


def unpack_answers(cell: Path) -> None:
    """Write a published cell's answers as a run has them."""
    for packed in sorted((cell / "answers").glob("*.gz")):
        found = read_answers(cell, packed.name.partition(".")[0]).items()
        lines = [json.dumps({"item_id": name, "text": text}) for name, text in found]
        packed.with_suffix("").write_text("\n".join(lines) + "\n")
        packed.unlink()
