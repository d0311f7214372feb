"""The command that merges checkpoints on files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.cli.arguments import split
from benchmark.core.errors import UserError
from benchmark.core.files import user_path
from benchmark.merging import CALIBRATED

FORM = "merge METHOD BASE TUNED [TUNED ...] OUT"


def merge(arguments: list[str]) -> int:
    """merge checkpoints of any architecture on files; OUT is a new checkpoint

    METHOD: dare, dare_drop_only, dare_magnitude, wise_ft, spider_posthoc, lines, intruder, soup, ties (both several
    TUNED) or lora (TUNED is a PEFT adapter); method.x=VALUE sets its parameters.
    tailor and its variants, grafting_mask, fisher and wise_ft_tensors load BASE and measure on training data: models=
    names a model with BASE's layout, dataset= the data.
    BASE and TUNED are folders of safetensors, or models of the hub cache. seed= is one number, as of a cell.
    """
    from benchmark.core.progress import long_work

    overrides, words = split(arguments)
    if len(words) < 4:
        raise UserError(f"merge needs a method and three folders or more: {FORM}.")
    from benchmark.merging.merge import differing_settings, other_base
    from benchmark.merging.merge import merge as write

    method, base, *tuned, out = words
    own = [item for item in overrides if item.startswith(("method.", "seed"))]
    others = [item for item in overrides if item not in own]
    params, seed = _values(own)
    folders = [_folder(name) for name in (base, *tuned)]
    calibrate = _calibration(method, folders[0], overrides) if method in CALIBRATED else None
    if others and calibrate is None:
        raise UserError(f"{' '.join(others)}: merge {method} works on files alone and needs no model or data. Leave "
                        f"{'it' if len(others) == 1 else 'them'} out.")
    with long_work("merge") as told:
        path = write(method, folders[0], folders[1:], user_path(out), params, seed, told, calibrate)
    print(f"Written: {path}")
    if method == "lora" and (named := other_base(*folders)):
        print(f"note: the adapter names {named} as its base; the tensors of {folders[0]} fit it too. Check that "
              "these are the same weights.")
    for folder in folders[1:]:
        if method != "lora" and (names := differing_settings(folders[0], folder)):
            print(f"note: {', '.join(names)} in {folder} are not those of {folders[0]}, which {path} has.")
    return 0


def _calibration(method: str, base: Path, overrides: Sequence[str]) -> Callable[[Sequence[str]], Any]:
    """Return what measures on the model and the dataset that the command names.

    Raises:
        UserError: not one model and one dataset, or wrong ones.
    """
    from benchmark.config.compose import AXES
    from benchmark.config.request import request
    from benchmark.core.progress import progress
    from benchmark.planning import plan
    from benchmark.running import runner
    from benchmark.running.calibrate import calibrate

    given = {AXES.get(item.partition("=")[0]) for item in overrides}
    if not {"models", "targets"} <= given:
        raise UserError(f"merge {method} measures on the model and its training data. Add models=NAME dataset=NAME.")
    asked = request([f"method={method}", *overrides])
    if len(asked.cells) != 1:
        raise UserError(f"merge {method} takes one model, dataset and seed, got {len(asked.cells)} combinations.")
    runner.prepare(asked, progress(1))
    cell = asked.cells[0]
    assert cell.target is not None  # dataset= was given
    used = replace(cell, model=replace(cell.model, checkpoint=str(base)), datasets=(cell.dataset(cell.target),))
    plan.check_inputs([used])
    return partial(calibrate, used)


def _folder(name: str) -> Path:
    """Return a checkpoint's folder: a path, or the snapshot of a repository in the hub cache."""
    from benchmark.models.places import find

    path = user_path(name)
    return path if path.is_dir() or path.is_absolute() else find(name).path


def _values(overrides: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Return (parameters of the method, seed).

    Raises:
        UserError: a value that cannot be read, or several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    params, seed = {}, 0
    for item in overrides:
        try:
            parsed = OverridesParser.create().parse_override(item)
        except HydraException:
            raise UserError(f"{item} cannot be read. Write method.NAME=VALUE or seed=NUMBER.") from None
        key, value = parsed.key_or_group, parsed.value()
        if parsed.is_sweep_override() or isinstance(value, list | dict):
            raise UserError(f"{item}: a merge takes one value. Run it once per value.")
        if key.startswith("method."):
            params[key.removeprefix("method.")] = value
        elif re.fullmatch(r"\d+", str(value)):
            seed = int(str(value))
        else:
            raise UserError(f"{item}: a seed is a whole number from 0.")
    return params, seed
