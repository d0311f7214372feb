"""Calibration data for merges on files: a model and a dataset, on any base checkpoint of that layout."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.models.loading import how_to_load, load_model
from benchmark.running.worker import prepare_process
from benchmark.spec import CellSpec, at_root, is_tuned
from benchmark.training import posthoc
from benchmark.training.calibration import Calibration
from methods.registry import build


def calibrate(cell: CellSpec, names: Sequence[str]) -> Calibration | None:
    """Return what a post-hoc method measures on, as the cell would have it.

    Args:
        cell: a cell of the method: the model, whose checkpoint is the merge's base, its training data and its seed.
        names: tensors that the merge changes.

    Raises:
        UserError: the checkpoint is not one for this model, or the data are missing.
    """
    assert is_tuned(cell)
    prepare_process(cell.threads, cell.device, None)
    loaded = load_model(*how_to_load(cell, answering=False))
    unknown = sorted(set(names) - {name for name, _ in loaded.model.named_parameters()})
    if unknown:
        raise UserError(
            f"{cell.model.id} has no weight {unknown[0]}, which the tuned model changes. Name the model that has the "
            "checkpoint's layout: models=NAME."
        )
    records = data.load(cell.dataset(cell.target), at_root(cell.data_root), "train", cell.train.limit)
    method = build(cell.method.id, dict(cell.method.params), cell.seed)
    return posthoc.calibration_data(cell, loaded, records, method, names)
