"""Post-hoc methods: compute the method's weights from those of a finished Full FT cell, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from benchmark import data
from benchmark.core.files import write_atomic
from benchmark.data import Record
from benchmark.models import LoadedModel
from benchmark.models.batch import Items, collate
from benchmark.spec import CellSpec
from benchmark.training.calibration import Calibration
from benchmark.training.checkpoint import load_delta, save_delta
from methods.base import Method
from methods.masks import shares


def transform(
    cell: CellSpec, loaded: LoadedModel, records: Sequence[Record], method: Method, base: Mapping[str, Tensor],
    full_ft: Path, out: Path,
) -> None:
    """Write the delta of a post-hoc method.

    Args:
        cell: the cell; its training settings are those of the Full FT cell.
        loaded: the model with base weights.
        records: training split of the target; calibration uses a seeded sample of it.
        method: a method with `finish`.
        base: name -> w* of every tensor that training may change.
        full_ft: delta of the Full FT cell.
        out: the delta to write. train.jsonl beside it gets one row: how far, and where, the weights moved.

    Raises:
        UserError: the Full FT delta is missing, damaged, or belongs to another base.
    """
    assert cell.train is not None
    finetuned = {**base, **load_delta(full_ft, loaded.digest)}
    calibration = None
    if method.calibration_samples:
        items = Items(loaded, data.subset(records, method.calibration_samples, cell.seed), supervised=True)
        size = cell.train.micro_batch_size
        spans = (range(start, min(start + size, len(items))) for start in range(0, len(items), size))
        device = next(loaded.model.parameters()).device
        batches = [
            {name: tensor.to(device) for name, tensor in collate(loaded, [items[i] for i in span], "right").items()}
            for span in spans
        ]
        calibration = Calibration(loaded.model, batches, list(base))
    result = method.finish(finetuned, dict(base), calibration)
    stored = {name: tensor.to(base[name].dtype) for name, tensor in result.items()}
    write_atomic(out.with_name("train.jsonl"), json.dumps({"step": 0, **moved(stored, base, finetuned)}) + "\n")
    save_delta(out, stored, base, list(base), loaded.digest, {"method": cell.method.id})


def moved(
    weights: Mapping[str, Tensor], base: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]
) -> dict[str, float]:
    """Measure what a post-hoc method selected: where the weights differ from the base checkpoint.

    Args:
        weights: name -> the method's result.
        base: name -> w*.
        finetuned: name -> w_ft.

    Returns:
        rms_delta and restored_fraction, as a training logs them (`benchmark.training.attach`), and mask_selected,
        mask_ones, selected_in/<layer> and selected/<tensor> (`methods.masks`). An element counts as selected if it is
        not exactly w*, and as M = 1 if it is also exactly w_ft.
    """
    sizes = {name: tensor.numel() for name, tensor in weights.items()}
    counts, squares = {}, 0.0
    for name, tensor in weights.items():
        change = (tensor - base[name].to(tensor)).double()
        squares += change.square().sum().item()
        kept = (change != 0) & (tensor == finetuned[name].to(tensor))
        counts[name] = [float(change.count_nonzero()), float(kept.count_nonzero()), 0.0]
    found = shares(counts, sizes)
    del found["mask_flips"]  # a post-hoc method acts only once
    whole = sum(sizes.values())
    restored = 1 - found["mask_selected"]
    return {"rms_delta": (squares / whole) ** 0.5, "restored_fraction": restored, **found}
