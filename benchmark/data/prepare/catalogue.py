"""Where each dataset comes from: its entry in conf/sources.yaml, and the module that reads its official files."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import yaml

from benchmark import data
from benchmark.core.project import shipped

SOURCES = shipped("conf") / "sources.yaml"


@cache
def sources() -> dict[str, Any]:
    """Return conf/sources.yaml."""
    return yaml.safe_load(SOURCES.read_text(encoding="utf-8"))


def reader_module(name: str) -> Any:
    """Return the module that reads the official files of a dataset."""
    return importlib.import_module(data.DATASETS[name])
