"""Everything here starts several processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.multiprocess.launch import launch
from tests.multiprocess.parity import Result, by_hand, results
from tests.multiprocess.small_world import write_world
from tests.multiprocess.training import write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.multiprocess)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model and its images."""
    return write(tmp_path_factory.mktemp("multiprocess"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and an IconQA."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def expected(folder: Path) -> dict[str, Result]:
    """Every method trained by one plain process in float32."""
    return launch(results, 1, folder, "plain")[0]


@pytest.fixture(scope="session")
def expected_bf16(folder: Path) -> Callable[[int, bool], dict[str, Result]]:
    """The same with float32 masters of a bfloat16 model, kept by hand, on the micro-batches of so many processes."""
    return functools.cache(lambda processes, fsdp2: by_hand(folder, processes, fsdp2))
