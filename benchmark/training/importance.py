"""Gradients or sensitivities of single samples at w*, for methods that measure importances before the first step."""

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
from benchmark.training.sensitivity import sensitivities
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
    items = Items(loaded, records, supervised=True)
    if method.measures == "sensitivities":
        method.measure(sensitivities(loaded.model, _batches(loaded, items), names, method.params.probes, cell.seed))
    else:
        method.measure(_gradients(loaded, items, names))


def _gradients(loaded: LoadedModel, items: Items, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of each item's mean token loss: name -> float32 tensor."""
    base = snapshot(loaded.model, names)
    for batch in _batches(loaded, items):
        yield Calibration(loaded.model, [batch], names).gradient(base)


def _batches(loaded: LoadedModel, items: Items) -> Iterator[dict[str, Tensor]]:
    """Yield a batch of each item alone, on the model's device."""
    device = next(loaded.model.parameters()).device
    for index in range(len(items)):
        yield {name: tensor.to(device) for name, tensor in collate(loaded, [items[index]], "right").items()}
