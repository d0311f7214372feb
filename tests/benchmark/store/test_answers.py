"""Item scores and answers are the same read from a run's folder and from published tables; damage is one message."""

from __future__ import annotations

import json

import pytest

from benchmark import results
from benchmark.core.errors import UserError
from benchmark.spec import ROOT
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cells import Store
from eval.score import ItemScore
from tests.benchmark.cells import unfold

TEXTS = ["x\u2028y \U0001f600", "", '"\\', "1\n2", "\x00", " a "]


@pytest.fixture
def cell(tmp_path):
    """Return a run's folder of a published cell, with odd answers to its first items."""
    source = next(folder for folder in Store(ROOT / "results" / "pocket").all_cells() if "-full_ft-" in folder.name)
    folder = unfold(source, tmp_path / "run" / "cells" / source.name)
    path = folder / "answers" / "gqa.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, text in zip(rows, TEXTS, strict=False):
        row["text"] = text
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))  # answers stand as batches ended
    return folder


def published(cell, root):
    root.mkdir()
    results.write(root, {cell.name: cell}, {})
    return Store(root).cells / cell.name


def test_answers_and_scores_are_those_of_the_run_whatever_their_order(cell, tmp_path):
    copy = published(cell, tmp_path / "published")
    sets = sorted(path.name for path in (cell / "answers").iterdir())
    assert sets == sorted(path.name for path in (copy / "answers").iterdir()) and len(sets) == 5
    for dataset in (name.removesuffix(".jsonl") for name in sets):
        assert read_answers(copy, dataset) == read_answers(cell, dataset)
        assert read_items(copy, dataset) == read_items(cell, dataset)
        assert all(isinstance(item, ItemScore) for item in read_items(copy, dataset))
    assert set(TEXTS) <= set(read_answers(copy, "gqa").values())
    assert list(read_answers(copy, "gqa")) == [item.item_id for item in read_items(copy, "gqa")]


def test_a_set_that_is_not_there_is_one_message(cell, tmp_path):
    copy = published(cell, tmp_path / "published")
    for folder, read in ((folder, read) for folder in (cell, copy) for read in (read_answers, read_items)):
        with pytest.raises(UserError, match="nothing"):
            read(folder, "nothing")


def test_an_item_without_an_answer_is_not_published(cell, tmp_path):
    path = cell / "answers" / "gqa.jsonl"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(UserError, match="item .* of gqa has no answer"):
        published(cell, tmp_path / "published")
    path.write_text("{")
    with pytest.raises(UserError, match="line 1 is damaged"):
        published(cell, tmp_path / "another")
