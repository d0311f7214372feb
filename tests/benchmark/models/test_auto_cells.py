"""Cells of family auto through the command line: run, plan, export, post-hoc methods, the shares of processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import benchmark.data
from benchmark import cli
from benchmark.config.request import request
from benchmark.models import load
from benchmark.running.rank import share
from benchmark.store.cells import Store
from benchmark.store.keys import Digests, keys_of
from tests.benchmark import fakes
from tests.benchmark.models import auto_tiny, tiny


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Overrides for cells of a Qwen2.5-VL on small sets; two of three items have an image, of two sizes."""
    checkpoint = auto_tiny.write("qwen2_5_vl", tmp_path / "qwen2_5_vl")
    for number in range(2):
        tiny.picture(30 + 50 * number, 40).save(tmp_path / f"{number}.png")

    def read(spec, root, split, limit=None, seed=0):
        records = fakes.load_records(spec, root, split, limit)
        return [replace(record, image=tmp_path / f"{i % 3}.png" if i % 3 < 2 else None)
                for i, record in enumerate(records)]

    monkeypatch.setattr(benchmark.data, "load", read)
    world = fakes.World(tmp_path / "world")
    short = [f"dataset.{name}.max_new_tokens=3" for name in ("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa")]
    return [*world.overrides("methods=zero_shot,full_ft,spider"), "model.family=auto", "model.preprocess=processor",
            "train.epochs=1", *short, f"model.checkpoint={checkpoint}", "model.max_length=512"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dare", "tailor", "tailor_official", "wise_ft", "grafting_mask", "half_ft", "lora"])
def test_other_methods_work_too(given, method, capsys):
    given = [item for item in given if not item.startswith("methods=")]
    rank = ["method.r=4"] if method == "lora" else []  # the blocks are narrow
    assert cli.main(["run", *given, f"methods={method}", *rank]) == 0, capsys.readouterr()


@pytest.mark.slow
def test_cells_train_answer_score_and_are_exported(given, tmp_path, capsys):
    assert cli.main(["run", *given]) == 0, capsys.readouterr()
    assert cli.main(["plan", *given]) == 0 and "3 done" in capsys.readouterr().out
    asked = request(given)
    store = Store(asked.results)
    for cell in asked.cells:
        assert cell.model.family == "auto" and (store.folder(cell) / "scores.json").is_file()
    name = store.folder(asked.cells[1]).name
    assert cli.main(["export", name, str(tmp_path / "out"), f"results={store.root}"]) == 0
    assert load(replace(asked.models[0], checkpoint=str(tmp_path / "out")), torch.float32)


def test_image_settings_are_part_of_the_keys(given):
    digests = Digests(request(given).results / "digests.json")
    one, other = (
        keys_of(request([*given, *more]).cells[1], digests) for more in ([], ["model.max_pixels=256"])
    )
    assert one.train != other.train and all(one.generate[name] != other.generate[name] for name in one.generate)


def test_processes_share_the_batches_of_one(given):
    asked = request([*given, "eval.share_images=true"])
    loaded = load(asked.models[0], torch.float32)
    records = benchmark.data.load(asked.datasets["gqa"], asked.data_root, "test", 12)
    parts = [share(loaded, records, replace(asked.cells[0].eval, batch_size=4), rank, 2) for rank in range(2)]
    assert sorted(record.item_id for part in parts for record in part) == sorted(r.item_id for r in records)
    lengths = [len(loaded.inputs.encode(record, False)[0]) for record in parts[0]]
    assert lengths[:4] == sorted(lengths[:4], reverse=True)
