"""Trackers: a missing package is one message before anything runs; each is told to stay below the cell's folder."""

from __future__ import annotations

import os
import sys
import types

import pytest

from benchmark import cli, watch


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_message_before_anything_runs(tracker, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    arguments = ["method=full_ft", "model=vila_pocket", "dataset=coco", f"results={tmp_path / 'r'}"]
    assert cli.main(["run", *arguments, f"report_to={tracker}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"-m pip install {tracker}" in said and not (tmp_path / "r").exists()
    assert watch.fault(watch.NONE) is None


def test_a_run_of_weights_and_biases_is_offline_below_the_cell_and_ends_with_it(tmp_path, monkeypatch):
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_SILENT", "WANDB_MODE"):
        monkeypatch.setenv(name, "before")
        if name != "WANDB_MODE":
            monkeypatch.delenv(name)
    ended = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(finish=lambda: ended.append(1)))
    watch.start("wandb", tmp_path)
    assert os.environ["WANDB_DIR"] == str(tmp_path) and os.environ["WANDB_PROJECT"] == "spiderbench"
    assert os.environ["WANDB_MODE"] == "before"  # what the user says has the last word
    monkeypatch.delenv("WANDB_MODE")
    watch.start("wandb", tmp_path)
    assert os.environ["WANDB_MODE"] == "offline"
    watch.finish("tensorboard")
    assert ended == []
    watch.finish("wandb")
    assert ended == [1]
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_SILENT", "WANDB_MODE"):
        monkeypatch.delenv(name)
