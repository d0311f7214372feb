"""A third model family: one module with load, encode and blocks, and a line in FAMILIES; nothing else changes."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import pytest
import torch

import benchmark.data
import benchmark.models
from benchmark import cli
from benchmark.audit.protocol import sample
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.models.batch import Items
from benchmark.store.cells import Store
from benchmark.training.generate import answer_batch
from tests.benchmark import fakes
from tests.benchmark.models import third, tiny


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark.models.FAMILIES, "third", "tests.benchmark.models.third")
    return third.write(tmp_path / "third")


@pytest.fixture
def given(checkpoint, tmp_path, monkeypatch):
    """Overrides for cells of the family on small sets, every second item with an image."""
    image = tmp_path / "image.png"
    tiny.picture(30, 20).save(image)

    def load(spec, root, split, limit=None, seed=0):
        records = fakes.load_records(spec, root, split, limit)
        return [replace(record, image=image if i % 2 else None) for i, record in enumerate(records)]

    monkeypatch.setattr(benchmark.data, "load", load)
    world = fakes.World(tmp_path / "world")
    short = [f"dataset.{name}.max_new_tokens=3" for name in ("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa")]
    return [*world.overrides("methods=zero_shot,full_ft,spider"), "model.family=third", "train.epochs=1", *short,
            f"model.checkpoint={checkpoint}", "model.max_length=128"]


@pytest.mark.slow
def test_cells_of_a_third_family_train_answer_and_score(given, tmp_path, capsys):
    assert cli.main(["run", *given]) == 0, capsys.readouterr()
    assert cli.main(["plan", *given]) == 0 and "3 done" in capsys.readouterr().out
    asked = request(given)
    store = Store(asked.results)
    for cell in asked.cells:
        assert cell.model.family == "third" and (store.folder(cell) / "scores.json").is_file()
        assert (store.folder(cell) / "delta.safetensors").is_file() == (cell.train is not None)
    with pytest.raises(UserError, match="No writer for family third"):
        from benchmark.publishing.export import export

        export(store, store.folder(asked.cells[1]).name, tmp_path / "out")


def test_its_own_conversation_is_used_everywhere(checkpoint, given):
    spec = request(given).models[0]
    loaded = benchmark.models.load(spec, torch.float32)
    assert loaded.encode is third.encode and loaded.projector_prefix == "connector."
    assert benchmark.models.trainable_names(loaded, "last_layers", 1)[2].startswith("model.layers.2.")
    records = [replace(record, target="A") for record in benchmark.data.load(request(given).datasets["gqa"],
               request(given).data_root, "test", 4)]
    items = Items(loaded, records, supervised=True)
    fixed = (loaded.image_token_id, third.PATCHES, 128)
    assert [items.encoded[i] for i in range(2)] == [
        third.encode(loaded.tokenizer, record.prompt, "A", record.image is not None, *fixed) for record in records[:2]
    ]
    assert items[1].input_ids.count(loaded.image_token_id) == third.PATCHES
    asked = Items(loaded, records, supervised=False)
    batch = [asked[i] for i in range(4)]
    assert answer_batch(loaded, batch, 4) == [answer_batch(loaded, [item], 4)[0] for item in batch]
    text = sample("what?", "A", True, loaded.tokenizer, spec, marks=True).plain
    assert text.startswith("<s>:<image>what?A:« A</s>»") and "USER" not in text  # the tokenizer knows no Q


def test_a_module_that_lacks_a_function_is_named(monkeypatch):
    monkeypatch.setitem(benchmark.models.FAMILIES, "half", "tests.benchmark.models.half")
    monkeypatch.setitem(sys.modules, "tests.benchmark.models.half", types.SimpleNamespace(load=print))
    with pytest.raises(UserError, match="family=half lacks encode, blocks"):
        benchmark.models.family_of("half")
