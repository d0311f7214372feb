"""What must not change a cell's result: order, jobs, workers, evaluation batch size; and what a seed changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark.models import batch
from tests.benchmark import hostile

METHODS = "methods=zero_shot,full_ft,spider,dare"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> hostile.World:
    """Return small data and a tiny random model that the real programs train."""
    return hostile.write_world(tmp_path_factory.mktemp("world"))


def result(world: hostile.World, name: str, *more: str) -> dict[str, dict[str, object]]:
    """Run cells into a folder of their own and return what they made: cell -> file -> content."""
    root = world.root / "outcomes" / name
    settings = [
        "table=table6", "targets=iconqa", METHODS, "train.epochs=2", "train.batch_size=4", "train.micro_batch_size=4",
        "train.learning_rate=0.003", *more, f"results={root}",
    ]
    done = world.call(["run", *world.settings(*settings), "--cells-only"])
    assert done.code == 0, done.out + done.err
    found: dict[str, dict[str, object]] = {}
    for cell in sorted((root / "cells").glob("*/cell.yaml")):
        found[cell.parent.name] = contents(cell.parent)
    return found


def contents(cell: Path) -> dict[str, object]:
    """Return every file that is a result; answers without their order, which follows the batches."""
    files: dict[str, object] = {
        str(path.relative_to(cell)): path.read_bytes()
        for pattern in ("delta.safetensors", "train.jsonl", "scores.json", "items/*") for path in cell.glob(pattern)
    }
    for path in cell.glob("answers/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        files[f"answers/{path.name}"] = {row["item_id"]: row for row in rows}
    return files


@pytest.fixture(scope="module")
def plain(world) -> dict[str, dict[str, object]]:
    """Return what the cells make, one after another in one process."""
    found = result(world, "plain")
    assert len(found) == 4 and sum("delta.safetensors" in files for files in found.values()) == 3
    assert all(files["scores.json"] for files in found.values())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [
    ("again", []),
    ("order", ["methods=dare,spider,zero_shot,full_ft"]),
    ("batch", ["eval.batch_size=3"]),
])
def test_the_same_results(world, plain, name, more):
    assert result(world, name, *more) == plain


@pytest.mark.slow
def test_images_read_by_workers_give_the_same_results(world, plain, monkeypatch):
    """Features that do not fit into memory: two processes read pixels ahead, and the tower runs in every batch."""
    monkeypatch.setattr(batch, "FEATURE_BYTES", 0)
    monkeypatch.setattr(batch.Items, "workers", 2)
    (untuned,) = (cell for cell in plain if "zero_shot" in cell)
    found = result(world, "workers", f"only={untuned}")
    assert found and all(found[cell] == plain[cell] for cell in found)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_jobs_give_the_same_results(world, plain):
    assert result(world, "jobs", "jobs=2") == plain


@pytest.mark.slow
def test_a_seed_changes_its_trained_cells_and_nothing_else(world, plain):
    both = result(world, "seeds", "seeds=0,1")
    assert {name: files for name, files in both.items() if name in plain} == plain
    others = {name: files for name, files in both.items() if name not in plain}
    assert sorted(name.split("-")[2] for name in others) == ["dare", "full_ft", "spider"]
    assert all("s1" in name.split("-") for name in others)
    for name, files in others.items():
        twin = next(plain[other] for other in plain if other.split("-")[:3] == name.split("-")[:3])
        assert files["delta.safetensors"] != twin["delta.safetensors"]
        assert [key for key in files["answers/gqa.jsonl"]] == [key for key in twin["answers/gqa.jsonl"]]
        for item, row in files["answers/gqa.jsonl"].items():
            assert row["prompt_hash"] == twin["answers/gqa.jsonl"][item]["prompt_hash"]
