"""The generic descriptions: pretraining's, of no source set, the same wherever they are drawn."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from benchmark import data
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.data.record import open_image
from benchmark.pocket.world.content import candidates
from benchmark.pocket.world.generic import Generic
from benchmark.pocket.world.splits import owner
from benchmark.pocket.world.words import INSTRUCTIONS
from benchmark.running import runner
from benchmark.spec import ROOT

FEW = 40


@pytest.fixture
def drawn(tmp_path):
    Generic(FEW).draw(tmp_path)
    return tmp_path


def spec():
    made = request(["method=full_ft", "model=vila_pocket", "dataset=coco", "train.replay=generic"]).cells[0].generic
    return made.__class__(**{**vars(made), "counts": {}})


def test_they_are_the_pictures_and_words_of_pretrainings_stream(drawn):
    records = data.load(spec(), drawn, "train")
    keys = json.loads((drawn / "generic/scene_keys.json").read_text())["train"]
    stream = [picture.key() for picture, _, _ in islice(candidates("describe", "train"), 3 * FEW)]
    assert len(records) == FEW == len(set(keys.values())) and set(keys.values()) <= set(stream)
    assert {owner(key) for key in keys.values()} == {("describe", "train")}
    assert {record.prompt for record in records} <= set(INSTRUCTIONS)
    sources = request(["method=full_ft", "model=vila_pocket", "dataset=coco"]).cells[0].datasets
    asked = {dataset.prompt.rpartition("\n")[2] for dataset in sources}
    assert not any(text in record.prompt for record in records for text in asked)
    assert all(record.target.endswith(".") and open_image(record).size[0] > 8 for record in records)


def test_they_are_drawn_the_same_again_and_only_once(drawn, tmp_path):
    Generic(FEW).draw(tmp_path / "again")
    files = sorted(path.relative_to(drawn / "generic") for path in (drawn / "generic").rglob("*") if path.is_file())
    assert len(files) == FEW + 3
    for path in files:
        assert (drawn / "generic" / path).read_bytes() == (tmp_path / "again/generic" / path).read_bytes()
    assert Generic(FEW).complete(drawn) and not Generic(FEW).complete(tmp_path / "elsewhere")
    before = (drawn / "generic/train.jsonl").stat().st_mtime_ns
    Generic(FEW).draw(drawn)
    assert (drawn / "generic/train.jsonl").stat().st_mtime_ns == before


def test_a_run_draws_them_only_for_cells_that_read_them(monkeypatch):
    called = []
    monkeypatch.setattr(runner, "_draw", lambda hook, root, show: called.append((hook, root)))
    for overrides, hooks in (([], ["suite:POCKET"]), (["train.replay=generic"], ["suite:POCKET", "generic:GENERIC"])):
        called.clear()
        runner.prepare(request(["method=full_ft", "model=vila_pocket", "dataset=coco", *overrides]), None)
        assert called == [(f"benchmark.pocket.world.{name}", "data/pocket") for name in hooks]
    assert (ROOT / "benchmark/pocket/world/generic.py").is_file()


def test_they_have_no_test_split(drawn):
    with pytest.raises(UserError, match=r"test\.jsonl"):
        data.load(spec(), drawn, "test")
