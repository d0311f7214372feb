"""The command that merges checkpoints on files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.cli.arguments import split
from benchmark.core.errors import UserError
from benchmark.core.files import user_path

FORM = "merge METHOD BASE TUNED [TUNED ...] OUT"


def merge(arguments: list[str]) -> int:
    """merge checkpoints of any architecture on files; OUT is a new checkpoint

    METHOD: dare, dare_drop_only, dare_magnitude, wise_ft, spider_posthoc, lines, intruder, soup, ties (both several
    TUNED) or lora (TUNED is a PEFT adapter); method.x=VALUE sets its parameters.
    BASE and TUNED are folders of safetensors, or models of the hub cache. seed= is one number, as of a cell.
    """
    from benchmark.core.progress import long_work

    overrides, words = split(arguments)
    if len(words) < 4:
        raise UserError(f"merge needs a method and three folders or more: {FORM}.")
    from benchmark.merging.merge import differing_settings, other_base
    from benchmark.merging.merge import merge as write

    method, base, *tuned, out = words
    params, seed = _values(overrides)
    folders = [_folder(name) for name in (base, *tuned)]
    with long_work("merge") as told:
        path = write(method, folders[0], folders[1:], user_path(out), params, seed, told)
    print(f"Written: {path}")
    if method == "lora" and (named := other_base(*folders)):
        print(f"note: the adapter names {named} as its base; the tensors of {folders[0]} fit it too. Check that "
              "these are the same weights.")
    for folder in folders[1:]:
        if method != "lora" and (names := differing_settings(folders[0], folder)):
            print(f"note: {', '.join(names)} in {folder} are not those of {folders[0]}, which {path} has.")
    return 0


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
