"""Measures of a finished cell beside its scores: how far its weights moved, and what its method cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.spec import CellSpec

WEIGHTS = "weights.json"
FOOTPRINT = "footprint.json"
OF_FOOTPRINT = ("memory", "peak", "step_time", "trained")
OF_WEIGHTS = ("rms_delta", "restored", "learnable")


def of_cell(cell: CellSpec, folder: Path, wanted: Sequence[str] = ()) -> dict[str, float]:
    """Return the measures of a cell's weights and costs.

    Args:
        cell: a finished cell.
        folder: its folder.
        wanted: names of `benchmark.reporting.tables.MEASURES`. The delta is read only if they need it.

    Returns:
        Measure -> number: from the last logged step, from the finished weights, and from the method cost.
    """
    if cell.train is None:
        return {}
    found = last_row(folder)
    if "restored_fraction" not in found and set(OF_WEIGHTS) & set(wanted):
        found |= weights(cell, folder)
    return _named(found, folder, wanted)


def recorded(cell: CellSpec, folder: Path, wanted: Sequence[str] = ()) -> dict[str, float]:
    """Return what `of_cell` returned at its last call. No delta is read and nothing is written."""
    if cell.train is None:
        return {}
    found = last_row(folder)
    if "restored_fraction" not in found and set(OF_WEIGHTS) & set(wanted):
        found |= {key: value for key, value in kept(folder).items() if key in ("rms_delta", "restored_fraction")}
    return _named(found, folder, wanted)


def _named(found: dict[str, float], folder: Path, wanted: Sequence[str]) -> dict[str, float]:
    """Add the shares of restored and changed weights, and the method cost."""
    if "restored_fraction" in found:
        found |= {"restored": found["restored_fraction"], "learnable": 1 - found["restored_fraction"]}
    if "trained_share" in found:  # of an adapter: nearly all merged weights differ from the base
        found |= {"learnable": found["trained_share"]}
    if set(OF_FOOTPRINT) & set(wanted):
        found |= footprint(folder)
    return found


def kept(folder: Path) -> dict[str, float]:
    """Return the content of weights.json; empty if it cannot be read."""
    try:
        return json.loads((folder / WEIGHTS).read_text())
    except (OSError, ValueError):
        return {}


def last_row(folder: Path) -> dict[str, float]:
    """Return the last row of train.jsonl. A post-hoc cell has one row, or none if it is stale."""
    try:
        lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}


def weights(cell: CellSpec, folder: Path) -> dict[str, float]:
    """Return rms_delta and restored_fraction from a cell's delta; weights.json keeps them.

    Args:
        cell: a trained cell.
        folder: with delta.safetensors, or only with weights.json if the weights were not published.

    Returns:
        The two numbers; empty if neither file can be read, or the delta has an adapter that is not merged.
    """
    delta = folder / "delta.safetensors"
    known = kept(folder)
    try:
        from benchmark.training.checkpoint import read_metadata

        digest = read_metadata(delta)["digest"]
    except UserError:
        return {key: known[key] for key in ("rms_delta", "restored_fraction") if key in known}
    if known.get("delta") != digest:
        known = {"delta": digest, **_measure(cell, delta)}
        write_atomic(folder / WEIGHTS, json.dumps(known) + "\n")
    return {key: known[key] for key in ("rms_delta", "restored_fraction") if key in known}


def footprint(folder: Path) -> dict[str, float]:
    """Return the cost that `benchmark.running.method_cost` measured for a cell's method; empty if it did not."""
    try:
        known = json.loads((folder / FOOTPRINT).read_text())
        return {name: known[name] for name in OF_FOOTPRINT if name in known}
    except (OSError, ValueError):
        return {}


def _measure(cell: CellSpec, delta: Path) -> dict[str, float]:
    from benchmark.models import tuned_names
    from benchmark.training.checkpoint import load_delta

    assert cell.train is not None
    loaded = _base(cell)
    parameters = dict(loaded.model.named_parameters())
    names = tuned_names(loaded, cell.train)
    tuned = load_delta(delta, loaded.digest)
    if not tuned.keys() <= parameters.keys():  # an adapter that is no change of any weight
        return {}
    size = sum(parameters[name].numel() for name in names)
    squares, changed = 0.0, 0
    for name, tensor in tuned.items():
        difference = tensor.double() - parameters[name].detach().cpu().double()
        squares += float(difference.square().sum())
        changed += int((difference != 0).sum())
    return {"rms_delta": (squares / size) ** 0.5, "restored_fraction": 1 - changed / size}


_bases: dict = {}


def _base(cell: CellSpec):
    """Return the cell's base model on the CPU; the last one stays loaded."""
    from benchmark.models.loading import load_model

    key = (repr(cell.model), cell.dtype)  # a model holds a dict, its architecture, so it cannot be a key itself
    if key not in _bases:
        _bases.clear()
        _bases[key] = load_model(cell.model, cell.dtype, "cpu")
    return _bases[key]
