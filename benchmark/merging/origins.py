"""Where exported cells come from: the record in their model card, and merges that it forbids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmark.core.errors import UserError

CARD = "README.md"
KEY = "spiderbench_cell"
SAME = {  # entry of a record -> what differs, and what must be done
    "base": "bases",
    "scope": "scopes", "last_layers": "scopes", "projector": "scopes",
}


def record(base: str, scope: str, last_layers: int, projector: str) -> dict[str, Any]:
    """Return what the card of an exported cell says of its origin.

    Args:
        base: digest of the base checkpoint.
        scope, last_layers, projector: what was trained (train.scope, train.last_layers, train.projector).
    """
    return {KEY: {"base": base, "scope": scope, "last_layers": last_layers, "projector": projector}}


def origin_of(folder: Path) -> Mapping[str, Any] | None:
    """Return the record of an exported cell; None for other checkpoints."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return None
    found = front.get(KEY) if isinstance(front, dict) else None
    return found if isinstance(found, dict) else None


def check_origins(tuned: Sequence[Path]) -> None:
    """Refuse exported cells that were trained from different bases or in different scopes.

    Raises:
        UserError: names the first two that differ.
    """
    known = [(folder, origin) for folder in tuned if (origin := origin_of(folder)) is not None]
    for folder, origin in known[1:]:
        first, expected = known[0]
        for key, what in SAME.items():
            one, two = expected.get(key), origin.get(key)
            if one != two:
                shown = [str(value)[:12] if key == "base" else value for value in (one, two)]
                name = "base checkpoint" if key == "base" else f"train.{key}"
                raise UserError(
                    f"{first} and {folder} are cells of different {what}: {name} is {shown[0]} and {shown[1]}. Merge "
                    "cells that differ in the seed, the target or the method alone."
                )
