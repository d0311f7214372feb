"""`model add`: what it says of a checkpoint, the file it writes, what it refuses; plan and audit of such a model."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from dataclasses import replace

import pytest
import torch
import yaml

import benchmark.data
from benchmark import cli
from benchmark.audit import checkpoint
from benchmark.audit.protocol import SUPERVISED, conversation
from benchmark.config import compose
from benchmark.config.request import request
from benchmark.models import load, trainable_names
from benchmark.models.sizes import Measured, architecture_of
from benchmark.planning.forecast import Forecast, describe
from benchmark.planning.image_tokens import of_data
from benchmark.planning.plan import make
from benchmark.spec import Faults, ModelSpec, build
from benchmark.store.cells import Store
from benchmark.training.trainable import check_counts, trainable_table
from tests.benchmark import fakes
from tests.benchmark.models import auto_tiny, tiny
from tests.benchmark.training.auto_cells import cell

TORCHVISION = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
KINDS = [pytest.param(kind, marks=TORCHVISION if kind == "mistral3" else ()) for kind in auto_tiny.TYPES]


def spec_of(text: str) -> ModelSpec:
    """Return the model that a file of conf/model describes."""
    faults = Faults()
    spec = build(ModelSpec, yaml.safe_load(text), "model", faults)
    faults.stop()
    assert spec is not None
    return spec


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_file_loads_the_model_that_was_described(kind, tmp_path, capsys):
    folder, out = auto_tiny.write(kind, tmp_path / kind), tmp_path / "model.yaml"
    assert cli.main(["model", "add", str(folder), f"tiny_{kind}", f"out={out}"]) == 0
    shown, spec = capsys.readouterr().out, spec_of(out.read_text())
    assert spec.id == f"tiny_{kind}" and spec.family == "auto" and not spec.decoder
    loaded = load(spec, torch.float32)
    one = replace(cell(loaded, "full_ft"), model=spec)
    names = trainable_names(loaded, "last_layers", 2)
    check_counts(loaded, names, one)  # counted on the meta device, compared with the loaded model
    trained = sum(loaded.model.get_parameter(name).numel() for name in names)
    assert f"trainable  last_layers, L=2: {trained:,} parameters in {len(names)} tensors" in shown
    sizes = architecture_of(spec.architecture, "")
    assert isinstance(sizes, Measured) and sizes.trainable("all", 1) == sum(
        loaded.model.get_parameter(name).numel() for name in trainable_names(loaded, "all", 1)
    )
    assert sizes.image_tokens == loaded.inputs.image_tokens((640, 480))
    assert f"640x480: {sizes.image_tokens} tokens" in shown and f"type       {kind} (" in shown
    assert re.search(f"« ?A cat.{re.escape(loaded.inputs.conversation.end)}»", shown)
    rows = trainable_table(loaded, names)
    assert "vision tower" in rows and "projector" in rows and "blocks 1 to 2" in rows
    assert ("image_newline" in shown) == kind.startswith(("llava_next", "llava_onevision"))


def test_an_unlisted_type_is_written_for_confirmation(tmp_path, monkeypatch, capsys):
    from benchmark.core.errors import UserError
    from benchmark.models import auto_parts

    folder, out = auto_tiny.write("qwen2_vl", tmp_path / "m"), tmp_path / "model.yaml"
    monkeypatch.setattr(auto_parts, "PARTS", {})
    assert cli.main(["model", "add", str(folder), f"out={out}"]) == 0
    assert "FOUND BY STRUCTURE" in capsys.readouterr().out
    text = out.read_text()
    assert "# decoder: model.language_model.layers\n# projector: [model.visual.merger]\n# tower: model.visual\n" in text
    with pytest.raises(UserError, match="confirm these three"):
        load(spec_of(text), torch.float32)
    for name in ("decoder", "projector", "tower"):
        text = text.replace(f"# {name}:", f"{name}:")
    assert load(spec_of(text), torch.float32).projector_prefix == ("model.visual.merger.",)


@pytest.mark.parametrize(("arguments", "said"), [
    (["add"], "model needs an action and a folder"),
    (["show", "x"], "model needs an action and a folder"),
    (["add", "/nowhere/at/all"], "/nowhere/at/all is not a folder"),
    (["add", "TINY", "a b"], "'a b' cannot be the name of a model"),
    (["add", "TINY", "out=OUT"], "exists. Give another name"),
])
def test_wrong_commands_get_one_message(arguments, said, tmp_path, capsys):
    (tmp_path / "model.yaml").write_text("")
    places = {"TINY": str(tmp_path), "out=OUT": f"out={tmp_path / 'model.yaml'}"}
    assert cli.main(["model", *(places.get(word, word) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("error:") == 1


def test_a_checkpoint_that_cannot_be_used_writes_nothing(tmp_path, capsys):
    folder, out = auto_tiny.write("qwen2_vl", tmp_path / "m"), tmp_path / "model.yaml"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    assert cli.main(["model", "add", str(folder), f"out={out}"]) == 2
    assert "quantised weights (awq)" in capsys.readouterr().err and not out.exists()


def test_the_colour_is_the_label_mask(tmp_path):
    loaded = auto_tiny.load("qwen2_vl", auto_tiny.write("qwen2_vl", tmp_path / "m"))
    text = conversation(loaded.inputs, "What?", "A cat", (64, 48))
    coloured = "".join(text.plain[span.start : span.end] for span in text.spans if span.style == SUPERVISED)
    assert coloured == "A cat<|im_end|>" and "<|vision_start|>[image x 12]<|vision_end|>What?" in text.plain
    assert "supervised" not in conversation(loaded.inputs, "What?", None, None).plain


# ---------------------------------------------------------------------------------------------------------------------
# Plan and audit


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Overrides for a planned grid with the file that `model add` wrote; images of two sizes."""
    folder = auto_tiny.write("qwen2_vl", tmp_path / "checkpoint")
    finding = checkpoint.look(folder, "tiny")
    for number, size in enumerate([(28, 28), (16, 16)]):
        tiny.picture(*size).save(tmp_path / f"{number}.png")

    def read(spec, root, split, limit=None, seed=0):
        records = fakes.load_records(spec, root, split, limit)
        return [replace(record, image=tmp_path / f"{i % 2}.png") for i, record in enumerate(records)]

    monkeypatch.setattr(benchmark.data, "load", read)
    world = fakes.World(tmp_path / "world")
    overrides = world.overrides("methods=full_ft,spider", "gpu=4090x1")
    asked = [*overrides, "model.family=auto", "model.preprocess=processor", f"model.checkpoint={folder}"]
    plain = compose.composed

    def composed(groups):
        config = copy.deepcopy(plain(groups))  # it is kept for other requests
        for model in config["models"].values():
            model["architecture"] = finding.sizes
        return config

    monkeypatch.setattr(compose, "composed", composed)
    return asked


def test_a_plan_counts_the_tokens_of_the_datas_images(given):
    asked = request(given)
    store = Store(asked.results)
    forecast = Forecast(store, asked, "4090x1")
    one = asked.cells[0]
    tokens = forecast.image_tokens(one, one.target, "train")
    inputs = auto_tiny.load("qwen2_vl", tiny_folder(asked)).inputs
    counts = [inputs.image_tokens((16, 16)), inputs.image_tokens((28, 28))]
    assert counts[0] < counts[1]
    assert (tokens.mean, tokens.largest) == (round(sum(counts) / 2), counts[1])
    assert forecast.setting(one, largest=True).tokens - forecast.setting(one).tokens == tokens.largest - tokens.mean
    text = describe(make(asked, store), asked, forecast)
    assert f"images  {tokens.mean} tokens on average, at most {tokens.largest}, in 12 training images" in text


def tiny_folder(asked):
    from pathlib import Path

    return Path(asked.models[0].checkpoint)


def test_without_data_a_typical_picture_is_assumed(given):
    asked = request(given)
    model, dataset = asked.models[0], asked.cells[0].datasets[0]
    assert of_data(model, dataset, "/nowhere", "train") is None
    assert of_data(replace(model, checkpoint="/nowhere"), dataset, asked.data_root, "train") is None


def test_audit_protocol_shows_the_template(given, capsys):
    from benchmark.audit.protocol import main

    asked = request(given)
    used = [asked.datasets[name] for name in ("gqa", asked.cells[0].target)]
    from benchmark.spec import at_root

    assert main(used, at_root(asked.data_root), asked.models[0]) == 0
    out = capsys.readouterr().out
    assert "stops at <|im_end|> (of the chat template)" in out and "<|im_start|>assistant\n«A<|im_end|>»" in out
    assert "USER:" not in out and "Tokens of the checkpoint's own template." in out
