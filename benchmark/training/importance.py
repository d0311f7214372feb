"""Gradients of single samples at w*, for methods that measure the importance of weights before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.models import LoadedModel
from benchmark.models.batch import Items, collate
from benchmark.spec import TunedCell, at_root
from benchmark.training.calibration import Calibration
from benchmark.training.checkpoint import snapshot
from benchmark.training.replay import NO_DATA
from methods.base import Method
from methods.importance import ImportanceMethod


def measure(cell: TunedCell, loaded: LoadedModel, method: Method, names: Sequence[str]) -> None:
    """Let a method measure importances, if it does so. The model must be whole and have base weights.

    Args:
        cell: the cell, with the generic data.
        loaded: the model; unchanged afterwards.
        method: its method.
        names: the tensors that will train.

    Raises:
        UserError: there are no such data, or they cannot be read.
    """
    if not isinstance(method, ImportanceMethod):
        return
    if cell.generic is None:
        raise UserError(f"method={cell.method.id} {NO_DATA}")
    records = data.load(cell.generic, at_root(cell.data_root), "train", method.calibration_samples)
    method.measure(_gradients(loaded, Items(loaded, records, supervised=True), names))


def _gradients(loaded: LoadedModel, items: Items, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of each item's mean token loss: name -> float32 tensor."""
    base, device = snapshot(loaded.model, names), next(loaded.model.parameters()).device
    for index in range(len(items)):
        batch = {name: tensor.to(device) for name, tensor in collate(loaded, [items[index]], "right").items()}
        yield Calibration(loaded.model, [batch], names).gradient(base)
