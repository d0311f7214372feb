"""What is known of each dataset's sources: its entry in conf/sources.yaml, and the official names of its splits."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import yaml

from benchmark import data
from benchmark.core.project import shipped
from benchmark.data.layout import official_names

SOURCES = shipped("conf") / "sources.yaml"


@cache
def sources() -> dict[str, Any]:
    """Return conf/sources.yaml."""
    return yaml.safe_load(SOURCES.read_text(encoding="utf-8"))


def official_splits(name: str, spec: data.DatasetLike, split: str) -> list[str]:
    """Return the official splits that a split of ours consists of."""
    return official_names(spec, split, importlib.import_module(data.DATASETS[name]).SPLITS)
