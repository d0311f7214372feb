"""The user's own checkpoints as rows of a table. They are evaluated like the untuned model and never trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import user_path
from benchmark.spec import CellSpec, DatasetSpec, Faults, MethodSpec

PREFIX = "checkpoint."


@dataclass(frozen=True)
class Checkpoint:
    """What the user wrote as NAME:PATH or NAME@MODEL:PATH."""

    name: str
    model: str | None
    path: Path


def parse(text: str, faults: Faults) -> list[Checkpoint]:
    """Read checkpoints=NAME:PATH,NAME@MODEL:PATH.

    Args:
        text: the value; empty for none. A path may hold commas, because a new entry begins with a name and a colon.
        faults: gets a message for each entry that cannot be used.

    Returns:
        The checkpoints. Their names are unique and their folders exist.
    """
    found: list[Checkpoint] = []
    for entry in re.split(r",(?=[\w.+-]+(?:@[\w.-]+)?:)", text) if text else []:
        match = re.fullmatch(r"([\w.+-]+)(?:@([\w.-]+))?:(.+)", entry)
        if match is None:
            faults.add(f"checkpoints={entry}: write NAME:FOLDER, or NAME@MODEL:FOLDER, e.g. mine:/data/my-llava.")
            continue
        name, model = match[1], match[2]
        try:
            path = user_path(match[3]).absolute()
        except UserError as error:
            faults.add(f"checkpoints={entry}: {error}")
            continue
        if not path.is_dir():
            faults.add(f"checkpoints={entry}: {path} is not a folder. Give the folder of a checkpoint.")
        elif name in {other.name for other in found}:
            faults.add(f"checkpoints={entry}: the name {name!r} is used twice. Give each row its own name.")
        else:
            found.append(Checkpoint(name, model, path))
    return found


def cells(checkpoints: Sequence[Checkpoint], grid: Sequence[CellSpec], faults: Faults) -> list[CellSpec]:
    """Return a cell for each checkpoint, evaluated on the grid's datasets as the untuned model is.

    The checkpoint takes prompts and images as the grid's model with the same layout does (LLaVA: one folder; VILA:
    llm/, mm_projector/ and vision_tower/), or as the model that the user names. The cell's keys hold its content, not
    its path.

    Args:
        checkpoints: from `parse`.
        grid: the cells of a table.
        faults: gets a message for each checkpoint that fits no model, or several.

    Returns:
        Cells without training.
    """
    made = []
    models = {cell.model.id: cell.model for cell in grid}
    for checkpoint in checkpoints if grid else []:
        family = "vila" if (checkpoint.path / "llm").is_dir() else "llava"
        fitting = [model for model in models.values() if model.family == family]
        if checkpoint.model is not None and checkpoint.model not in models:
            faults.add(
                f"checkpoints: the table has no model {checkpoint.model!r}.{did_you_mean(checkpoint.model, models)}"
            )
            continue
        if checkpoint.model is None and len(fitting) != 1:
            why = f"has the layout of {family}, which {len(fitting)} models of the table have"
            faults.add(
                f"checkpoints: {checkpoint.path} {why}. Write {checkpoint.name}@MODEL:FOLDER with one of "
                f"{', '.join(models)}, or choose one model with models=."
            )
            continue
        model = models[checkpoint.model] if checkpoint.model else fitting[0]
        same = [cell for cell in grid if cell.model == model]
        datasets: dict[str, DatasetSpec] = {}
        for cell in same:
            datasets |= {dataset.id: dataset for dataset in cell.datasets if dataset.role != "extra"}
        made.append(replace(
            same[0], model=replace(model, checkpoint=str(checkpoint.path)), target=None, seed=0, train=None,
            method=MethodSpec(PREFIX + checkpoint.name, {}), datasets=tuple(datasets.values()), generic=None,
        ))
    return made
