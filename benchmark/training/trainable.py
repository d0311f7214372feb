"""The trained parameters: a table for the log, counts by part, and a check against the configuration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from benchmark.core.errors import UserError
from benchmark.models import LoadedModel
from benchmark.models.sizes import architecture_of
from benchmark.spec import CellSpec
from methods.blocks import split_layer

# Part -> what the names of its modules contain; the other modules of a block are norms.
MARKS = {"projector": "projector", "attention": "attn", "mlp": "mlp"}


def trainable_table(loaded: LoadedModel, names: Sequence[str]) -> str:
    """Return a table of the model's parts: tensors and parameters, all and trainable.

    Args:
        loaded: the model.
        names: names of the trained tensors.

    Returns:
        One line per part, and their sum.
    """
    chosen = set(names)
    rows: dict[str, list[int]] = {}  # part -> parameters, trained parameters, trained tensors
    blocks = {prefix: number for number, prefix in enumerate(loaded.block_prefixes)}
    first = next((number for prefix, number in blocks.items() if any(n.startswith(prefix) for n in names)), len(blocks))
    for name, parameter in loaded.model.named_parameters():
        number = next((blocks[prefix] for prefix in blocks if name.startswith(prefix)), None)
        if name.startswith(loaded.projector_prefix):
            part = "projector"
        elif number is None:
            part = "vision tower" if loaded.tower_prefix in name else "embedding, norm, output"
        else:
            part = _span(0, first) if number < first else _span(first, len(blocks))
        row = rows.setdefault(part, [0, 0, 0])
        row[0] += parameter.numel()
        if name in chosen:
            row[1] += parameter.numel()
            row[2] += 1
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    width = max(map(len, rows))
    lines = [f"{'part':<{width}}  {'parameters':>14}  {'trainable':>14}  {'tensors':>7}"]
    lines += [f"{part:<{width}}  {a:>14,}  {t:>14,}  {n:>7}" for part, (a, t, n) in rows.items()]
    return "\n".join(lines)


def check_counts(loaded: LoadedModel, names: list[str], cell: CellSpec) -> None:
    """Refuse a model whose parameter counts differ from model.architecture, if that is set.

    Args:
        loaded: the model.
        names: names of the trained tensors.
        cell: the cell, with model and train settings.

    Raises:
        UserError: the number of all parameters, or of the trained ones, differs.
    """
    if not cell.model.architecture or cell.train is None:
        return
    sizes = architecture_of(cell.model.architecture, "model.architecture")
    train = cell.train
    wanted = sizes.total, sizes.trainable(train.scope, train.last_layers, train.projector)
    counts = {name: parameter.numel() for name, parameter in loaded.model.named_parameters()}
    actual = sum(counts.values()), sum(counts[name] for name in names)
    if actual != wanted:
        raise UserError(
            f"The checkpoint {loaded.path} has {actual[0]:,} parameters, of which {actual[1]:,} would train with "
            f"train.scope={cell.train.scope}; {cell.model.id} has {wanted[0]:,} and {wanted[1]:,}. This is another "
            "model: correct model.checkpoint, or model.architecture in conf/model."
        )


def trained_counts(delta: Path) -> dict[str, int]:
    """Return the number of trained parameters of a cell by part: projector, attention, mlp, norms.

    Args:
        delta: the cell's delta.safetensors, which has every trained tensor.
    """
    counts: Counter[str] = Counter()
    with safe_open(delta, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # the file is no mapping
            _, module = split_layer(name) or ("", "projector")
            part = next((part for part, mark in MARKS.items() if mark in module), "norms")
            counts[part] += math.prod(file.get_slice(name).get_shape())
    return dict(counts)


def _span(start: int, end: int) -> str:
    return f"block {start}" if end - start == 1 else f"blocks {start} to {end - 1}"
