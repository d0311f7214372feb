"""Losses under ZeRO and FSDP2: the weights of one process, whatever the micro-batches, and exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from methods.registry import build
from tests.multiprocess.launch import launch
from tests.multiprocess.test_train import STOP, cell, delta, rows, run

SETTINGS = {
    "lwf": {"lwf_weight": 3.0}, "dft": {}, "asft": {"asft_weight": 3.0}, "eaft": {"eaft_top": 5},
    "talr": {"talr_floor": 0.05},
}


def several(folder: Path, out: Path, engine: str, losses: tuple[str, ...], stop: bool = False) -> list[str]:
    """Train one cell after another with full_ft, as a worker process does; return how each ended."""
    ended = []
    for loss in losses:
        unset_hf_deepspeed_config()  # of the cell before; under ZeRO-3 it would cut up the next model as it loads
        settings = replace(cell(engine, "float32").train, loss=loss, **SETTINGS[loss])
        method = build("full_ft", {}, 0)
        ended.append(run(folder, out / loss, engine, stop=stop, method=method, train=settings))
    return ended


@pytest.fixture(scope="module")
def single(folder, tmp_path_factory):
    """Every loss on one process."""
    out = tmp_path_factory.mktemp("single")
    assert launch(several, 1, folder, out, "single", tuple(SETTINGS)) == [["done"] * len(SETTINGS)]
    return out


# With FSDP2 only those that pass through the model a second time: what the others do is not the engine's.
@pytest.mark.parametrize(("engine", "losses"), [
    ("zero2", tuple(SETTINGS)), ("zero3", tuple(SETTINGS)), ("fsdp2", ("lwf", "talr")),
])
def test_every_loss_gives_the_same_weights(engine, losses, folder, single, tmp_path):
    assert launch(several, 2, folder, tmp_path, engine, losses) == [["done"] * len(losses)] * 2
    for loss in losses:
        expected, found = delta(single / loss, folder), delta(tmp_path / loss, folder)
        assert expected.keys() == found.keys(), loss
        for name, value in expected.items():
            assert (found[name] - value).abs().max() < 1e-6, (loss, name)
        for one, other in zip(rows(single / loss), rows(tmp_path / loss), strict=True):
            assert other == pytest.approx(one, rel=1e-3, abs=1e-4), loss


def test_a_cell_that_compares_with_the_base_resumes_exactly(folder, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert launch(several, 2, folder, straight, "zero3", ("lwf",)) == [["done"]] * 2
    ended = launch(several, 2, folder, stopped, "zero3", ("lwf",), True)
    assert all(text.startswith(f"Preempted: Stopped after step {STOP} of 6") for (text,) in ended), ended
    assert launch(several, 2, folder, stopped, "zero3", ("lwf",)) == [["done"]] * 2
    found, again = delta(straight / "lwf", folder), delta(stopped / "lwf", folder)
    assert found.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in found.items())
    assert rows(stopped / "lwf") == rows(straight / "lwf")
