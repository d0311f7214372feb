"""A cell of family auto as a checkpoint: plain transformers loads it and gives the cell's own logits."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from benchmark.data.record import Record
from benchmark.models import load
from benchmark.models.batch import Items, collate
from benchmark.publishing.export import export
from benchmark.training.generate import answer_batch
from tests.benchmark.models import auto_tiny, tiny
from tests.benchmark.publishing.test_export import finished
from tests.benchmark.training.auto_cells import cell

TORCHVISION = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
KINDS = [pytest.param(kind, marks=TORCHVISION if kind == "mistral3" else ()) for kind in auto_tiny.TYPES]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_loads_a_tuned_model(kind, tmp_path):
    base = auto_tiny.load(kind, auto_tiny.write(kind, tmp_path / kind))
    store, name, loaded = finished(tmp_path, cell(base, "full_ft"))
    out = export(store, name, tmp_path / "out")
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tuned = loaded.model.state_dict()
    assert model.state_dict().keys() == tuned.keys()
    assert all(torch.equal(value, tuned[key]) for key, value in model.state_dict().items())
    assert any(not torch.equal(value, tuned[key]) for key, value in base.model.state_dict().items())

    again = load(auto_tiny.spec(kind, out), torch.float32)
    tiny.picture(40, 30).save(tmp_path / "a.png")
    record = Record("a", "toy", "test", tmp_path / "a.png", "What colour?", None, (), None, "a", {})
    items = [Items(one, [record], supervised=False)[0] for one in (loaded, again)]
    theirs, ours = (collate(one, [item], "left") for one, item in zip((again, loaded), items, strict=True))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert answer_batch(again, items[1:], 4) == answer_batch(loaded, items[:1], 4)
    assert AutoTokenizer.from_pretrained(out).eos_token == AutoTokenizer.from_pretrained(base.path).eos_token
    card = (out / "README.md").read_text()
    assert "AutoModelForImageTextToText.from_pretrained" in card and "chat template of the checkpoint" in card


def test_the_image_settings_of_the_cell_are_written(tmp_path):
    from dataclasses import replace

    base = auto_tiny.load("qwen2_vl", auto_tiny.write("qwen2_vl", tmp_path / "qwen2_vl"))
    one = cell(base, "full_ft")
    one = replace(one, model=replace(one.model, max_pixels=256))
    store, name, loaded = finished(tmp_path, one)
    again = auto_tiny.load("qwen2_vl", export(store, name, tmp_path / "out"))
    assert loaded.inputs.image_tokens((64, 48)) == again.inputs.image_tokens((64, 48)) < base.inputs.image_tokens(
        (64, 48)
    )
