"""Post-hoc methods: compute the method's weights from those of a finished Full FT cell, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.data import Record
from benchmark.models import LoadedModel
from benchmark.models.batch import Items, collate
from benchmark.spec import CellSpec, at_root
from benchmark.training.calibration import Calibration
from benchmark.training.checkpoint import load_delta, read_metadata, save_delta
from benchmark.training.contrast import Contrast
from benchmark.training.replay import NO_DATA
from methods.base import Method
from methods.masks import shares
from methods.posthoc import ContrastMethod, SeedMerge


def transform(
    cell: CellSpec, loaded: LoadedModel, records: Sequence[Record], method: Method, base: Mapping[str, Tensor],
    sources: Sequence[Path], out: Path,
) -> None:
    """Write the delta of a post-hoc method.

    Args:
        cell: the cell; its training settings are those of the Full FT cell.
        loaded: the model with base weights.
        records: training split of the target; calibration uses a seeded sample of it.
        method: a method with `finish`, or with `combine`.
        base: name -> w* of every tensor that training may change.
        sources: deltas of the Full FT cells.
        out: the delta to write. train.jsonl beside it gets one row: how far, and where, the weights moved.

    Raises:
        UserError: a Full FT delta is missing, damaged, or belongs to another base or another scope. All are checked
            before anything is computed.
    """
    assert cell.train is not None
    _check_sources(sources, loaded.digest, base)
    tuned = [{**base, **load_delta(source, loaded.digest)} for source in sources]
    if isinstance(method, SeedMerge):
        result = method.combine(tuned, dict(base))
    else:
        (finetuned,) = tuned
        result = method.finish(finetuned, dict(base), calibration_data(cell, loaded, records, method, list(base)))
    stored = {name: tensor.to(base[name].dtype) for name, tensor in result.items()}
    write_atomic(out.with_name("train.jsonl"), json.dumps({"step": 0, **moved(stored, base, tuned[0])}) + "\n")
    save_delta(out, stored, base, list(base), loaded.digest, {"method": cell.method.id})


def _check_sources(sources: Sequence[Path], digest: str, base: Mapping[str, Tensor]) -> None:
    """Compare bases and scopes from the files' headers alone.

    Raises:
        UserError: see `transform`.
    """
    for source in sources:
        if read_metadata(source)["base_digest"] != digest:
            load_delta(source, digest)  # says which base it was made from
        with safe_open(source, framework="pt") as file:
            changed = set(file.keys())
        if outside := sorted(changed - base.keys()):
            raise UserError(
                f"{source} changes {outside[0]}, which this cell's scope does not train: weights of different scopes "
                "cannot be merged. Train that cell again with the same train.scope, train.last_layers and "
                "train.projector."
            )


def calibration_data(
    cell: CellSpec, loaded: LoadedModel, records: Sequence[Record], method: Method, names: Sequence[str]
) -> Calibration | None:
    """Return a method's calibration data: a seeded sample of the records, and generic data if it weighs both."""
    count = method.calibration_samples
    if not count:
        return None
    assert cell.train is not None
    chosen = data.subset(records, count, cell.seed)
    if not isinstance(method, ContrastMethod):
        return Calibration(loaded.model, _batches(loaded, chosen, cell.train.micro_batch_size), names)
    if cell.generic is None:
        raise UserError(f"method={cell.method.id} {NO_DATA}")
    size = 1 if method.single_samples else cell.train.micro_batch_size
    shown = data.load(cell.generic, at_root(cell.data_root), "train", count)
    generic = Contrast(loaded.model, _batches(loaded, shown, size), names)
    return Contrast(loaded.model, _batches(loaded, chosen, size), names, generic)


def _batches(loaded: LoadedModel, records: Sequence[Record], size: int) -> list[dict[str, Tensor]]:
    items = Items(loaded, records, supervised=True)
    spans = (range(start, min(start + size, len(items))) for start in range(0, len(items), size))
    device = next(loaded.model.parameters()).device
    return [
        {name: tensor.to(device) for name, tensor in collate(loaded, [items[i] for i in span], "right").items()}
        for span in spans
    ]


def moved(
    weights: Mapping[str, Tensor], base: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]
) -> dict[str, float]:
    """Measure what a post-hoc method selected: where the weights differ from the base checkpoint.

    Args:
        weights: name -> the method's result.
        base: name -> w*.
        finetuned: name -> w_ft; of the first, if there are several.

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
