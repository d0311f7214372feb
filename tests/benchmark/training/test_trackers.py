"""Trackers: a missing package is one message before anything runs; each is told to stay below the cell's folder."""

from __future__ import annotations

import os
import sys
import types

import pytest

from benchmark import cli
from benchmark.training import trackers


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_message_before_anything_runs(tracker, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    arguments = ["method=full_ft", "model=vila_pocket", "dataset=coco", f"results={tmp_path / 'r'}"]
    assert cli.main(["run", *arguments, f"report_to={tracker}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"-m pip install {tracker}" in said and not (tmp_path / "r").exists()
    assert trackers.fault(trackers.NONE) is None


def test_a_run_of_weights_and_biases_is_offline_below_the_cell_and_ends_with_it(tmp_path, monkeypatch):
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_SILENT", "WANDB_MODE"):
        monkeypatch.setenv(name, "before")
        if name != "WANDB_MODE":
            monkeypatch.delenv(name)
    ended = []
    fake = types.SimpleNamespace(finish=lambda: ended.append("run"), teardown=lambda: ended.append("settings"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trackers.start("wandb", tmp_path)
    assert os.environ["WANDB_DIR"] == str(tmp_path) and os.environ["WANDB_PROJECT"] == "spiderbench"
    assert os.environ["WANDB_MODE"] == "before"  # what the user says has the last word
    monkeypatch.delenv("WANDB_MODE")
    trackers.start("wandb", tmp_path)
    assert os.environ["WANDB_MODE"] == "offline"
    trackers.finish("tensorboard")
    assert ended == []
    trackers.finish("wandb")
    assert ended == ["run", "settings"]
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_SILENT", "WANDB_MODE"):
        monkeypatch.delenv(name)


def test_two_runs_of_one_process_each_stay_below_their_own_cell(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_SILENT", "WANDB_MODE"):
        monkeypatch.setenv(name, "before")  # set back at the end
        monkeypatch.delenv(name)
    for cell in ("one", "two"):
        (tmp_path / cell).mkdir()
        trackers.start("wandb", tmp_path / cell)
        assert wandb.run is None  # or the Trainer's callback would go on in it
        wandb.init(project="spiderbench").log({"loss": 1.0})
        trackers.finish("wandb")
    assert [len(list((tmp_path / cell).glob("wandb/offline-run-*/run-*.wandb"))) for cell in ("one", "two")] == [1, 1]
