"""What a prepare leaves behind for the next one: a manifest per dataset, and the ids of every item ever chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic

MANIFEST, MARKER, KNOWN = "prepared.json", ".preparing", "ids.json"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest that an earlier prepare wrote for a dataset, or None."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return content if {"choice", "splits", "written"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def summary(content: Mapping[str, Any]) -> list[str]:
    """Return a manifest as lines, one per split."""
    return [
        f"{split}: {part['items']} items, {part['images']} images, from {part['source']}, ids sha256 {part['ids'][:16]}"
        for split, part in content["splits"].items()
    ]


def compare_ids(
    name: str, root: Path, choice: str, records: Mapping[str, list[data.Record]], keep: bool = False
) -> None:
    """Refuse items that differ from those that the first prepare chose with the same settings.

    Args:
        name: the dataset.
        root: data folder with ids.json.
        choice: digest of the settings.
        records: by split.
        keep: also record the ids of a first prepare.

    Raises:
        UserError: the ids differ.
    """
    path = root / KNOWN
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    for split, rows in records.items():
        place, ids = f"{name}/{split}/{choice[:12]}", data.ids_digest(rows)
        first = known.setdefault(place, {"items": len(rows), "ids": ids})
        if first["ids"] != ids:
            raise UserError(
                f"{split} has other items than at the first prepare with these settings: ids sha256 {ids[:16]}, then "
                f"{first['ids'][:16]}. Another source names or holds other items, so numbers could not be compared. "
                f"Use the first source, or delete the line {place} of {path}."
            )
    if keep:
        write_atomic(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
