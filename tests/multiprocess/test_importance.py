"""EWC under ZeRO: every process keeps its part of the importances, and the weights are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import data
from benchmark.data.record import Record
from benchmark.spec import DatasetSpec
from methods.registry import build
from tests.multiprocess.launch import launch
from tests.multiprocess.test_train import check_weights_and_resume, delta, run

GENERIC = DatasetSpec("generic", "Generic", "extra", "gqa", "{question}", 8, {}, {}, {})


def ewc(folder: Path, out: Path, engine: str, stop: bool = False, strength: float = 3.0) -> str:
    """Train a cell as a worker process does; return how it ended."""

    def load(dataset: DatasetSpec, root: Path, split: str, limit: int) -> list[Record]:
        assert (dataset.id, split, limit) == ("generic", "train", 4)
        return [
            Record(f"g{i}", "generic", "train", folder / f"{20 + i}.png", "say what", "a red dog", (), None, "", {})
            for i in range(4)
        ]

    data.load = load  # of this process alone
    method = build("ewc", {"strength": strength, "samples": 4}, 0)
    return run(folder, out, engine, stop=stop, method=method, generic=GENERIC)


@pytest.fixture(scope="module")
def single(folder, tmp_path_factory):
    """The cell on one process."""
    out = tmp_path_factory.mktemp("single")
    assert launch(ewc, 1, folder, out, "single") == ["done"]
    return out


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_the_weights_are_those_of_one_process_and_resume_exactly(engine, folder, single, tmp_path):
    check_weights_and_resume(ewc, engine, folder, single, tmp_path, lambda stopped: None)


def test_the_penalty_counts(folder, single, tmp_path):
    """Otherwise the test above would compare trainings that do not depend on the importances."""
    assert launch(ewc, 1, folder, tmp_path, "single", False, 0.0) == ["done"]
    one, other = delta(single, folder), delta(tmp_path, folder)
    assert max((one[name] - other[name]).abs().max() for name in one) > 1e-4
