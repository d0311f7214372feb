"""A cell of three steps for a small model of any type."""

from __future__ import annotations

from benchmark.models import LoadedModel
from benchmark.spec import CellSpec, EvalSpec, MethodSpec, TrainSpec
from tests.benchmark.models import auto_tiny


def cell(loaded: LoadedModel, method: str, engine: str = "single", zero: dict | None = None) -> CellSpec:
    """Return a cell of three batches of four samples; the last two blocks and the projector train."""
    settings = TrainSpec(
        epochs=3, batch_size=4, micro_batch_size=2, learning_rate=1e-2, projector_learning_rate=1e-2,
        scope="last_layers", last_layers=2, warmup_ratio=0.0, scheduler="constant", weight_decay=0.0, max_grad_norm=1.0,
        loss_group=2, limit=None,
    )
    return CellSpec(
        profile="toy", model=auto_tiny.spec(loaded.path.name, loaded.path), method=MethodSpec(method, {}), target="toy",
        seed=0, train=settings, datasets=(), eval=EvalSpec(4), data_root="unused", threads=1, engine=engine,
        zero_optimization=zero or {},
    )
