"""A plan as one Slurm array: one element for each trained cell and the post-hoc cells that are made from it."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark.config import own_modules
from benchmark.config.compose import AXES
from benchmark.config.overrides import hydra_value
from benchmark.config.own_checkpoints import PREFIX
from benchmark.config.request import Request
from benchmark.core.errors import UserError, counted
from benchmark.core.progress import clock
from benchmark.data import DATASETS
from benchmark.models.sizes import architecture_of
from benchmark.planning.cost import Costs
from benchmark.planning.plan import Planned
from benchmark.spec import ROOT, CellSpec, DatasetSpec

LIBRARIES, FEATURES = 4.0, 1.0  # GiB per process: Python's packages and data; cached image features
HEAD = """#!/bin/bash
# {cells} missing cells in {elements} array elements. Submit from the repository: sbatch THIS_FILE
# A job that is preempted or nears its end gets SIGTERM, saves its training state and is queued again.
#SBATCH --job-name=spiderbench
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.log
#SBATCH --signal=B:TERM@180
#SBATCH --nodes=1
#SBATCH --time={time}
{resources}
set -u
python=${{PYTHON:-{python}}}
commands=(
{commands}
)
# exec: the child is the program itself, so the signal reaches it and not a shell around it.
eval "exec \\"\\$python\\" -m benchmark run --cells-only ${{commands[$SLURM_ARRAY_TASK_ID]}}" &
child=$!
trap 'kill -TERM $child' TERM
wait $child; code=$?
# Interrupted by the trap, `wait` returns before the program has saved its state.
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
if [ $code -eq 75 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $code
"""


def elements(plan: Sequence[Planned]) -> list[list[Planned]]:
    """Return the unfinished cells in groups that do not depend on each other.

    Post-hoc cells are in the group of the Full FT cells that they are made from, whether these are finished or not.
    """
    names: dict[str, set[str]] = {}  # id of a cell -> the ids of all cells of its group
    for item in plan:
        together = {item.id}.union(*(names.get(name, {name}) for name in (item.id, *item.needs)))
        for name in together:
            names[name] = together
    groups: dict[frozenset[str], list[Planned]] = {}
    for item in plan:
        if not item.done:
            groups.setdefault(frozenset(names[item.id]), []).append(item)
    return list(groups.values())


def script(
    plan: Sequence[Planned], asked: Request, costs: Costs, overrides: Sequence[str], flags: str = ""
) -> str:
    """Return the array script for a plan's unfinished cells.

    Args:
        plan: the request's plan.
        asked: the request.
        costs: expected times. The time limit is three times that of the longest element, and at least 30 minutes.
        overrides: the command line that made the request; each element adds the names of its own cells (only=).
        flags: flags of sbatch, such as "--partition=a --account=b". They come last, so they replace ours.

    Returns:
        The script's text.

    Raises:
        UserError: a flag is malformed, all cells are finished, or the cells train on several machines.
    """
    if asked.cells[0].hostfile:
        raise UserError(f"hostfile={asked.cells[0].hostfile}: a job of the array has one node. Leave hostfile out.")
    groups = elements(plan)
    if not groups:
        raise UserError(f"{counted(len(plan), 'cell')}, all done. There is nothing to submit.")
    shared = _shared(asked, overrides)
    commands = [shlex.join([*shared, f"only={','.join(item.id for item in group)}"]) for group in groups]
    seconds = max(sum(costs.seconds(item.cell, item.missing) for item in group) for group in groups)
    minutes = max(30, math.ceil(3 * seconds / 60))
    place = asked.cells[0]
    resources = [f"#SBATCH --cpus-per-task={max(1, place.threads)}"]
    memory = max(map(_gigabytes, (item.cell for item in plan)))
    if place.device == "cuda":
        gpus = max(1, place.processes)
        resources = [f"#SBATCH --gpus-per-node={gpus}", f"#SBATCH --cpus-per-task={8 * gpus}"]
    notes = f"# Expected time of the longest element: about {clock(seconds)}."
    return HEAD.format(
        cells=sum(map(len, groups)), elements=len(groups), last=len(groups) - 1,
        time=f"{minutes // 60:02d}:{minutes % 60:02d}:00", python=_python(),
        resources="\n".join([*resources, f"#SBATCH --mem={memory}G", *_flags(flags), notes]),
        commands="\n".join(f"    {shlex.quote(command)}" for command in commands),
    )


def _flags(text: str) -> list[str]:
    """Return the lines of a script that set flags of sbatch.

    Raises:
        UserError: a flag does not begin with "--", or has characters that cannot be printed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"sbatch={text}: {error}. Write it like sbatch='--partition=a --account=b'.") from None
    for word in words:
        if not word.startswith("--") or len(word) < 3 or not word.isprintable():
            raise UserError(f"sbatch={text}: {word!r} is not a flag. Write it like sbatch='--partition=a --account=b'.")
    return [f"#SBATCH {shlex.quote(word) if ' ' in word else word}" for word in words]


def _gigabytes(cell: CellSpec) -> int:
    """Return the host memory of a cell in GiB: weights, image features and libraries of each process."""
    processes = max(1, cell.processes)
    weights = 0.0
    if cell.model.architecture:
        weights = 2 * architecture_of(cell.model.architecture, cell.model.id).total / 2**30
    return math.ceil(processes * (weights + (FEATURES if weights else 0) + LIBRARIES))


def _python() -> str:
    """Return the interpreter of the elements: that of make's environment, else the one that writes the script."""
    own = Path(sys.executable)
    return ".venv/bin/python" if own == ROOT / ".venv" / "bin" / "python" else shlex.quote(str(own))


def _shared(asked: Request, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that every element runs: the user's own, for one cell at a time and on the node's GPUs."""
    cells = [cell for cell in asked.cells if not cell.method.id.startswith(PREFIX)]
    methods = dict.fromkeys(cell.method.id for cell in cells)
    targets = {target.id: target for cell in cells for target in cell.targets if cell.target in (None, target.id)}
    named = {
        "methods": {method: _method(method) for method in methods},
        "targets": {name: _target(target) for name, target in targets.items()},
    }
    moved = {axis: names for axis, names in named.items() if any(name != text for name, text in names.items())}
    own = [axis for axis in moved if any(AXES.get(item.partition("=")[0]) == axis for item in overrides)]
    kept = [
        item for item in overrides
        if AXES.get(key := item.partition("=")[0]) not in own and key not in ("jobs", "gpu", "only")
    ]
    generic = next((cell.generic for cell in cells if cell.generic), None)
    if generic is not None:  # a user's file is named relative to a folder that an element does not run in
        kept = [f"generic={_target(generic)}" if item.startswith("generic=") else item for item in kept]
    place = asked.cells[0]
    if place.engine == "single" or place.devices:  # Slurm gives each element its own cards, and numbers them from 0
        kept = [item for item in kept if not item.startswith("gpus=")]
        kept += [f"gpus={place.processes}"] if place.devices else []
    return [*kept, *(f"{axis}={','.join(moved[axis].values())}" for axis in own), "jobs=1"]


def _method(method: str) -> str:
    """Return a method as an element can find it: a method in a user's own file by that file."""
    module, colon, name = method.rpartition(":")
    place = own_modules.portable(module) if colon else module
    return method if place == module else hydra_value(f"{place}:{name}")


def _target(dataset: DatasetSpec) -> str:
    """Return a target as an element can find it: a user's own target by its module or file."""
    reader = str(dataset.options.get("reader", dataset.id))
    if reader in DATASETS:
        return dataset.id
    place = own_modules.portable(reader)
    return place if place == reader else hydra_value(place)
