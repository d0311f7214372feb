"""Post-hoc methods: what they write, and what the log says of it."""

from __future__ import annotations

import json

import pytest
import torch

from benchmark.checkpoint import load_delta, save_delta, snapshot
from benchmark.models import trainable_names
from benchmark.posthoc import moved, transform
from methods.registry import build
from tests.benchmark.models import tiny
from tests.benchmark.test_train import cell


def test_where_and_how_far_the_weights_moved():
    base = {"a.layers.0.mlp.up_proj.weight": torch.zeros(4, 5), "projector.weight": torch.ones(10).bfloat16()}
    weights = {name: tensor.float().clone() for name, tensor in base.items()}
    weights["a.layers.0.mlp.up_proj.weight"][0] += 0.5
    weights["projector.weight"][7] -= 2.0
    assert moved(weights, base) == {
        "rms_delta": pytest.approx(((5 * 0.25 + 4) / 30) ** 0.5), "restored_fraction": pytest.approx(24 / 30),
        "mask_selected": pytest.approx(6 / 30),
        "selected_in/a.layers.0": 0.25, "selected_in/projector": 0.1,
        "selected/a.layers.0.mlp.up_proj.weight": 0.25, "selected/projector.weight": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize(("method", "share"), [("wise_ft", 1.0), ("dare", 0.1)])
def test_a_delta_and_one_row_of_log(method, share, tmp_path):
    loaded = tiny.load("vila", tiny.write("vila", tmp_path / "model"))
    base = snapshot(loaded.model, trainable_names(loaded, "last_layers", 2))
    tuned = {name: tensor + 0.125 for name, tensor in base.items()}
    for folder in ("full_ft", method):
        (tmp_path / folder).mkdir()
    save_delta(tmp_path / "full_ft" / "delta.safetensors", tuned, base, list(base), loaded.digest)
    out = tmp_path / method / "delta.safetensors"
    transform(
        cell(method=method), loaded, [], build(method, {}, 0), base, tmp_path / "full_ft" / "delta.safetensors", out
    )
    delta = load_delta(out, loaded.digest)
    (row,) = [json.loads(line) for line in (tmp_path / method / "train.jsonl").read_text().splitlines()]
    assert row == {"step": 0, **moved({**base, **delta}, base)}
    assert row["mask_selected"] == pytest.approx(share, abs=0.02)
    expected = 0.0625 if method == "wise_ft" else 1.25 * share**0.5
    assert row["rms_delta"] == pytest.approx(expected, rel=0.05)
    assert len([name for name in row if name.startswith("selected/")]) == len(base)
