"""A finished cell's weights in a loaded model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from benchmark.models import LoadedModel
from benchmark.spec import TunedCell
from methods.registry import build


@contextlib.contextmanager
def tuned(cell: TunedCell, loaded: LoadedModel, folder: Path) -> Iterator[None]:
    """Put a cell's tuned weights, and its adapter if that cannot be merged, into a model.

    Args:
        cell: the cell.
        loaded: the model with base weights. Tuned weights stay in it; an adapter goes when the context ends.
        folder: the cell's, with delta.safetensors.

    Raises:
        UserError: the delta is missing, damaged, or belongs to another base.
    """
    # Here, because a process that only plans never needs them.
    from benchmark.training.checkpoint import apply_delta, load_delta
    from methods.adapter import AdapterMethod

    delta = load_delta(folder / "delta.safetensors", loaded.digest)
    method = build(cell.method.id, dict(cell.method.params), cell.seed)
    if isinstance(method, AdapterMethod) and not method.merges:
        from benchmark.training.adapters import inserted

        with inserted(cell, loaded, method, delta):
            yield
    else:
        apply_delta(loaded.model, delta)
        yield
