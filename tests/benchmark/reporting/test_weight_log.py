"""What a cell's log says about its weights, in words and in a picture."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from PIL import Image

from benchmark.reporting.weight_log import describe, draw, grid, read
from methods.masks import shares

LAYERS = ("model.language_model.layers.9", "model.language_model.layers.10")
SIZES = {
    f"{layer}.{module}.weight": size
    for layer in LAYERS for module, size in (("self_attn.q_proj", 40), ("mlp.up_proj", 60), ("input_layernorm", 10))
} | {"model.multi_modal_projector.linear_1.bias": 5, "model.multi_modal_projector.linear_1.weight": 20}


def row(step: int, selected: float) -> dict[str, float]:
    """Return a row as training logs it: the same share everywhere, but the projector's weight is wholly selected."""
    counts = {name: [size * selected, 0.25 * size, 0.125 * size] for name, size in SIZES.items()}
    counts["model.multi_modal_projector.linear_1.weight"][0] = 20.0
    return {"step": step, "loss": 1.0, "rms_delta": 0.0123, "restored_fraction": 0.5, **shares(counts, SIZES)}


ROWS = [row(1, 0.25), row(10, 0.5), row(20, 0.75)]


def test_only_rows_with_diagnostics_are_read(tmp_path):
    path = tmp_path / "train.jsonl"
    assert read(path) == []
    path.write_text("".join(json.dumps(line) + "\n" for line in (ROWS[0], {"step": 2, "loss": 1.0}, ROWS[1])))
    assert read(path) == ROWS[:2]
    path.write_bytes(b"\x1f\x8b")
    assert read(path) == []


def test_layers_in_order_and_kinds_by_their_names():
    cells = grid(ROWS[0])
    assert list(cells) == ["layer 9", "layer 10", "projector"]
    assert cells["layer 10"] == {"all": 0.25, "q": 0.25, "up": 0.25, "input_norm": 0.25}
    assert cells["projector"] == {
        "all": pytest.approx(21.25 / 25), "projector linear_1.bias": 0.25, "projector linear_1.weight": 1.0
    }


def test_the_names_of_vilas_projector():
    names = {"model.mm_projector.layers.1.bias": 2, "model.mm_projector.layers.1.weight": 2}
    cells = grid(shares({name: [1.0, 0.0, 0.0] for name in names}, names))
    assert list(cells["projector"]) == ["all", "projector 1.bias", "projector 1.weight"]


def test_the_last_numbers_in_words():
    lines = describe(ROWS)
    text = "\n".join(" ".join(line.split()) for line in lines)
    for part in (
        "weights at step 20", "root mean square of w - w* 0.0123", "share of weights exactly at w* 50.00 %",
        "share selected (M > 0) 77.", "share of M equal to 1 25.00 %",
        "share selected anew or no more, since step 10 12.50 %", "% of layer 9 layer 10 projector",
        "all 75.0 75.0 95.0", "up 75.0 75.0", "projector linear_1.weight 100.0",
    ):
        assert part in text, text


def test_a_method_without_a_mask(tmp_path):
    plain = [{"step": 5, "rms_delta": 0.5, "restored_fraction": 0.0}]
    assert "no mask" in describe(plain)[-1]
    assert describe([]) == []
    assert draw(plain, "Toy", tmp_path / "x") is None and draw([], "Toy", tmp_path / "x") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_posthoc_method_has_one_row(tmp_path):
    rows = [row(0, 0.5)]
    assert describe(rows)[0] == "weights   as finished"
    assert draw(rows, "Toy", tmp_path / "one").is_file()


@pytest.mark.slow
def test_the_picture_and_its_numbers(tmp_path):
    path = draw(ROWS, "Toy", tmp_path / "figures" / "selected")
    assert path.suffix == ".png" and min(Image.open(path).size) > 300
    data = pd.read_csv(path.with_suffix(".csv"))
    found = data[(data["step"] == 20) & (data["layer"] == "layer 9") & (data["kind"] == "up")]
    assert found["selected"].tolist() == [0.75]
    assert data.groupby("step").size().tolist() == [11, 11, 11]


def test_ticks_do_not_round():
    from benchmark.reporting import weight_log

    assert [weight_log._percent(share, 0) for share in (0.425, 0.475, 0.5, 0.525, 0.4999, 0.1)] == [
        "42.5%", "47.5%", "50%", "52.5%", "49.99%", "10%"]
