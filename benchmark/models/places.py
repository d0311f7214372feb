"""Checkpoint lookup: in the user's folders and in the Hugging Face hub cache. Nothing is ever downloaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.spec import at_root

if TYPE_CHECKING:
    from benchmark.spec import ModelSpec

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Place:
    """A checkpoint on disk.

    Attributes:
        path: its folder, which may not exist.
        revision: "repository@revision" for a folder of the hub cache; otherwise None.
    """

    path: Path
    revision: str | None = None


def find(name: str, repository: str | None = None) -> Place:
    """Return the folder with this name, or else the hub cache's snapshot of the repository.

    Args:
        name: path (relative ones start at the repository's root) or hub repository.
        repository: hub repository to fall back on.
    """
    path = at_root(name)
    if path.is_dir():
        return Place(path)
    for candidate in (name, repository):
        if candidate and REPOSITORY.fullmatch(candidate) and (found := _in_hub_cache(candidate)):
            return found
    return Place(path)


def checkpoint(model: ModelSpec) -> Place:
    """Return where a model's checkpoint is, or should be."""
    return find(model.checkpoint, model.repository)


def folders(model: ModelSpec) -> list[Path]:
    """Return the folders that a model is read from: the checkpoint's and, if that has no tower, the tower's."""
    path = checkpoint(model).path
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return [path]
    original = isinstance(config, dict) and is_original(config)
    return [path, tower(path, config, model.vision_tower)] if original else [path]


def is_original(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json has LLaVA's own layout, which names its vision tower but does not contain it."""
    return "mm_vision_tower" in config and not {"text_config", "llm_cfg"} & config.keys()


def tower(path: Path, config: Mapping[str, Any], given: str | None) -> Path:
    """Return the folder of the vision tower that an original LLaVA checkpoint needs.

    Args:
        path: the checkpoint's folder; the tower may be beside it.
        config: the checkpoint's config.json.
        given: model.vision_tower.

    Raises:
        UserError: the tower was not found; the message names the folders.
    """
    named = str(config["mm_vision_tower"])
    beside = path.parent / Path(named).name
    places = [find(given).path] if given else [find(named).path, beside]
    for place in places:
        if (place / "config.json").is_file():
            return place
    searched = ", ".join(str(place) for place in dict.fromkeys(places))
    raise UserError(
        f"{path} needs the vision tower {given or named!r}, which is neither in {searched} nor in the hub cache "
        f"({hub_cache()}). Put it beside the checkpoint, or set model.vision_tower=/path."
    )


def hub_cache() -> Path:
    """Return the folder of huggingface_hub's downloads.

    For a user without a home folder the path begins with ~ and does not exist, as in huggingface_hub.
    """
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"))


def _in_hub_cache(repository: str) -> Place | None:
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    path = folder / "snapshots" / revision
    return Place(path, f"{repository}@{revision[:12]}") if path.is_dir() else None
