"""Named protocols. Where sources disagree on a prompt or on the form of an answer, each reading has a name.

A choice changes fields of a dataset's spec. The cell's key hashes them, so two readings never share a cell.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from benchmark.core.errors import UserError, did_you_mean
from benchmark.spec import CONF

FOLDER = CONF / "protocol"


@dataclass(frozen=True)
class Choice:
    """One reading of a dataset's protocol.

    Attributes:
        name: as in protocol.<dataset>=<name>.
        about: where it comes from.
        changes: fields of the dataset's spec; of options, the keys that differ.
        default: whether the configuration follows it when nothing is chosen.
    """

    name: str
    about: str
    changes: Mapping[str, Any]
    default: bool


@cache
def choices(dataset: str) -> dict[str, Choice]:
    """Return the named protocols of a dataset, the default first.

    Raises:
        UserError: the dataset has none.
    """
    path = FOLDER / f"{dataset}.yaml"
    if not path.is_file():
        valid = sorted(other.stem for other in FOLDER.glob("*.yaml"))
        raise UserError(f"{dataset!r} has no named protocols.{did_you_mean(dataset, valid)}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = [
        Choice(name, item["about"], item["set"], name == content["default"])
        for name, item in content["choices"].items()
    ]
    return {item.name: item for item in sorted(found, key=lambda item: not item.default)}


def apply(values: Mapping[str, Any], dataset: str, name: str) -> dict[str, Any]:
    """Return a dataset's configuration with a protocol chosen.

    Args:
        values: the dataset's part of the configuration.
        dataset: its id.
        name: the choice.

    Returns:
        New values; the default choice changes nothing.

    Raises:
        UserError: no such choice.
    """
    known = choices(dataset)
    if name not in known:
        raise UserError(f"protocol.{dataset}={name}: unknown value.{did_you_mean(str(name), known)}")
    changed = copy.deepcopy(dict(values))
    if not known[name].default:
        for key, value in known[name].changes.items():
            changed[key] = {**changed[key], **value} if isinstance(value, Mapping) else value
    return changed


def known(dataset: str) -> dict[str, Choice]:
    """Return the named protocols of a dataset, empty for one that has none."""
    return choices(dataset) if (FOLDER / f"{dataset}.yaml").is_file() else {}


def name_of(values: Mapping[str, Any], dataset: str, usual: Mapping[str, Any] | None = None) -> str:
    """Return the name of the protocol that a dataset's configuration follows, or "own" if it is none of them.

    Args:
        values: the dataset's part of the configuration.
        dataset: its id.
        usual: the same part as the profile has it. If several choices match, the one that changes the most of it
            counts: what the profile says anyway is nobody's choice.
    """
    found = [item for item in known(dataset).values() if _follows(values, item.changes)]
    return max(found, key=lambda item: (_changes(item.changes, usual or {}), item.default)).name if found else "own"


def _changes(changes: Mapping[str, Any], usual: Mapping[str, Any]) -> int:
    """Return how many keys a choice sets to another value than they usually have."""
    return sum(
        _changes(value, usual.get(key) or {}) if isinstance(value, Mapping)
        else key not in usual or usual[key] != value
        for key, value in changes.items() if key != "counts"  # they follow from the splits
    )


def _follows(values: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Return whether a configuration agrees with a choice.

    A missing option has its reader's default. A choice without a stop rule means the end token.
    """
    defaults = {"target_format": "{letter}", "ocr_tokens": True, "captions_per_image": 1}
    for key, value in {"stop": [], **changes}.items():
        if key == "counts":  # follows from the splits
            continue
        if isinstance(value, Mapping):
            if any(values[key].get(name, defaults.get(name)) != item for name, item in value.items()):
                return False
        elif values[key] != value:
            return False
    return True
