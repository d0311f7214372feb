"""What a solved question brings back: losses against the model that was asked in the same way, paired."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.reporting import plots
from benchmark.spec import MethodSpec
from benchmark.studies import answer_form
from eval.score import ItemScore

SETS = ("okvqa", "textvqa", "ocrvqa", "gqa")
ITEMS = 200
PLAIN = ["model=vila_pocket", "dataset=coco", "methods=zero_shot,full_ft,spider", "seeds=0,1"]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Requests for cells whose scores are those that a test gives: (method, examples) -> share of right items."""
    plain, shown = request(PLAIN), request([*PLAIN, "eval.examples=1"])
    shares = {
        ("zero_shot", 0): 0.9, ("full_ft", 0): 0.5, ("spider", 0): 0.8,
        ("zero_shot", 1): 0.7, ("full_ft", 1): 0.7, ("spider", 1): 0.5,
    }
    folders = {}
    for cell in (*plain.cells, *shown.cells):
        folder = tmp_path / f"{cell.method.id}-{cell.seed}-{cell.eval.examples}"
        folder.mkdir(exist_ok=True)
        (folder / "scores.json").touch()
        folders[folder] = shares[cell.method.id, cell.eval.examples], cell

    def items(folder, dataset):
        share, cell = folders[folder]
        right = np.random.default_rng(SETS.index(dataset)).random(ITEMS) < share  # nested: the pairs agree
        return [ItemScore(str(place), str(place), float(one), "") for place, one in enumerate(right)]

    monkeypatch.setattr(answer_form, "read_items", items)
    monkeypatch.setattr(answer_form, "read_answers", lambda folder, _: {
        "a": "B", "b": "a red car is here", "c": "red", "d": "two"
    } if "full_ft-0-0" in folder.name else {"a": "red"})
    store = SimpleNamespace(folder=lambda cell: tmp_path / f"{cell.method.id}-{cell.seed}-{cell.eval.examples}")
    return plain, shown, store


def right(dataset, share):
    return 100 * np.mean(np.random.default_rng(SETS.index(dataset)).random(ITEMS) < share)


def test_a_loss_is_against_the_untuned_model_that_was_asked_in_the_same_way(asked):
    found = answer_form.measure(*asked).set_index("method")
    mean = {share: np.mean([right(name, share) for name in SETS]) for share in (0.5, 0.7, 0.8, 0.9)}
    assert list(found.index) == ["zero_shot", "full_ft", "spider"] and list(found["seeds"]) == [1, 2, 2]
    full, spider = found.loc["full_ft"], found.loc["spider"]
    assert (full["A_S"], full["A_S_shown"]) == (pytest.approx(mean[0.5]), pytest.approx(mean[0.7]))
    assert full["lost"] == pytest.approx(mean[0.9] - mean[0.5])
    assert full["lost_shown"] == pytest.approx(0) == full["lost_shown_low"]  # the same items: no noise between pairs
    assert full["back"] == pytest.approx(full["lost"]) and full["back_low"] == pytest.approx(full["lost_low"])
    assert spider["back"] == pytest.approx(mean[0.9] - mean[0.8] - (mean[0.7] - mean[0.5])) and spider["back_high"] < 0
    assert full["lost_low"] < full["lost"] < full["lost_high"]
    assert found.loc["zero_shot", ["lost", "lost_shown", "back"]].tolist() == [0, 0, 0]
    assert full["other"] == pytest.approx((50 + 0) / 2) and full["other_shown"] == 0  # the mean over seeds


def test_a_checkpoint_of_the_users_own_is_a_row_and_not_the_untuned_model(asked):
    plain, shown, store = asked

    def with_own(way):
        start = next(cell for cell in way.cells if cell.train is None)
        return way.of([replace(start, method=MethodSpec("checkpoint.mine", {})), *way.cells])

    def folder(cell):
        own = cell.method.id == "checkpoint.mine"
        return store.folder(replace(cell, method=MethodSpec("full_ft", {})) if own else cell)

    found = answer_form.measure(with_own(plain), with_own(shown), SimpleNamespace(folder=folder)).set_index("method")
    mine, full_ft = found.loc["checkpoint.mine"], found.loc["full_ft"]
    assert mine["A_S"] == pytest.approx(full_ft["A_S"]) and mine["lost"] == pytest.approx(full_ft["lost"]) != 0
    assert mine["target"] == "" and mine["seeds"] == 1
    text = answer_form.markdown(found.reset_index(), "Title", 1)
    (line,) = (line for line in text.splitlines() if " mine " in line)
    assert line.count(" - ") == 0  # it has lost something


def test_a_cell_that_is_finished_one_way_only_is_left_out(asked):
    plain, shown, store = asked
    for cell in shown.cells:
        if cell.method.id == "spider" or (cell.method.id, cell.seed) == ("full_ft", 1):
            (store.folder(cell) / "scores.json").unlink(missing_ok=True)
    found = answer_form.measure(plain, shown, store)
    assert list(zip(found["method"], found["seeds"], strict=True)) == [("zero_shot", 1), ("full_ft", 1)]
    (store.folder(next(cell for cell in shown.cells if cell.train is None)) / "scores.json").unlink()
    with pytest.raises(UserError, match="the untuned model is needed too"):
        answer_form.markdown(answer_form.measure(plain, shown, store), "Title", 1)


def test_it_is_printed_and_drawn(asked, tmp_path):
    found = answer_form.measure(*asked)
    text = answer_form.markdown(found, "Form or content", 2)
    assert text.startswith("# Form or content\n\n| model") and "after 2 solved questions of its set" in text
    (line,) = (line for line in text.splitlines() if "Zero-shot" in line)
    assert line.count(" - ") == 3
    tuned = found[found["target"] != ""]
    paths = plots.lost_and_shown(tuned, "Form or content", tmp_path / "form")
    assert [path.suffix for path in paths] == [".png", ".pdf", ".csv"] and len(pd.read_csv(paths[2])) == 2
