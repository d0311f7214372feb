"""Scores at every epoch: kept weights, their own cells, a second training that must end as the first did."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.studies import forgetting_curve
from tests.benchmark import fakes

DRIFT = "SPIDERBENCH_TEST_DRIFT"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    made = fakes.world_in(tmp_path, monkeypatch)

    def train(cell, loaded, records, method, out, on_progress):
        assert loaded.model.weight == fakes.BASE
        fakes.note("train", cell.method.id)
        total = cell.train.epochs  # 12 items, batches of 16: a step per epoch
        for step in range(1, total + 1):
            loaded.model.weight += 0.1 * step + len(cell.method.id)
            on_progress(step, total, {"loss": 1.0})
        drift = "x" if (tmp_path / DRIFT).exists() else ""
        (out / "train.jsonl").write_text(json.dumps({"step": total, "loss": 1.0}) + "\n")
        (out / "delta.safetensors").write_text(str(loaded.model.weight) + drift)

    def save_delta(path, model, base, names, digest, extra):
        assert names == ["weight"] and base == {"weight": fakes.BASE}
        path.write_text(str(model.weight))

    def apply_delta(model, delta):
        model.weight = delta["weight"] if isinstance(delta, dict) else delta

    monkeypatch.setattr(sys.modules["benchmark.training.train"], "train", train)
    module = sys.modules["benchmark.training.checkpoint"]
    monkeypatch.setattr(module, "snapshot", lambda model, names: {"weight": model.weight})
    monkeypatch.setattr(module, "apply_delta", apply_delta)
    monkeypatch.setattr(module, "save_delta", save_delta, raising=False)
    monkeypatch.setattr(module, "read_metadata", lambda path: {"digest": path.read_text()}, raising=False)
    return made


def asked(world: fakes.World, *more: str):
    overrides = [item for item in world.overrides("train.epochs=3", *more) if not item.startswith("table=")]
    return request(overrides)


@pytest.mark.slow
def test_every_epoch_has_its_own_weights_and_scores(world, monkeypatch, capsys):
    monkeypatch.setattr("benchmark.core.progress.QUIET_SECONDS", 0)
    grid = asked(world, "methods=zero_shot,full_ft,spider")
    assert forgetting_curve.run(grid) == 0
    after = capsys.readouterr().out.partition("once more to keep the weights")[2]
    assert re.search(r"full_ft\S*: train 1/3", after)  # hours at the paper's scale
    assert [line for line in fakes.calls() if line.startswith("train")] == ["train full_ft", "train spider"] * 2
    for method, size in (("full_ft", 7), ("spider", 6)):
        found = {}
        for epoch in (1, 2):
            (folder,) = (world.results / "epochs" / str(epoch) / "cells").glob(f"*-{method}-*")
            found[epoch] = float((folder / "delta.safetensors").read_text())
            assert (folder / "scores.json").is_file()
        assert found == pytest.approx({1: 1 + 0.1 + size, 2: 1 + 0.3 + 2 * size})
    assert not list((world.results / "epochs").glob(".*"))
    frame = forgetting_curve.tidy(grid)
    assert sorted(set(frame["epoch"])) == [0, 1, 2, 3] and set(frame["method"]) == {"full_ft", "spider"}
    start = frame[(frame["epoch"] == 0) & (frame["metric"] == "H")]
    assert start["value"].nunique() == 1 and len(start) == 2
    world.forget_calls()
    assert forgetting_curve.run(grid) == 0 and fakes.calls() == []


def test_a_second_training_that_ends_elsewhere_is_refused(world):
    grid = asked(world, "methods=full_ft")
    assert cli.main(["run", *world.overrides("train.epochs=3", "methods=full_ft"), "--cells-only"]) == 0
    (world.root / DRIFT).touch()
    with pytest.raises(UserError, match="ended with other weights"):
        forgetting_curve.run(grid)
    assert not list((world.results / "epochs").glob("*/cells/*"))


def test_what_has_no_epochs_is_refused():
    base = ["models=vila_pocket", "targets=coco"]
    with pytest.raises(UserError, match="No method of this request is trained"):
        forgetting_curve.run(request([*base, "methods=zero_shot"]))
    with pytest.raises(UserError, match="dare: made after training"):
        forgetting_curve.run(request([*base, "methods=full_ft,dare"]))
    with pytest.raises(UserError, match="several values"):
        forgetting_curve.run(request([*base, "methods=full_ft", "train.epochs=2,3"]))
