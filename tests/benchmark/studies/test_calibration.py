"""The rule for how hard the targets are: which cells it needs, what it allows, and how it is printed."""

from __future__ import annotations

import pytest

from benchmark.core.errors import UserError
from benchmark.studies import calibration
from benchmark.studies.calibration import Line, cells_of, lines, table

PROFILE = "profile=pocket_10k"


def averages(a_s, a_t):
    return {"A_S": {"value": a_s}, "A_T": {"value": a_t}}


@pytest.fixture(scope="module")
def asked():
    return cells_of([PROFILE])


def test_it_needs_the_rows_of_the_paper_and_never_the_test_split(asked):
    tuned = {(cell.model.id, cell.target) for cell in asked.cells if cell.train}
    assert tuned == {
        *(("vila_pocket", name) for name in ("flickr30k", "coco", "iconqa", "scienceqa")),
        ("llava_pocket", "flickr30k"), ("llava_pocket", "coco"),
    }
    assert {cell.method.id for cell in asked.cells} == {"zero_shot", "full_ft"}
    assert {cell.eval.split for cell in asked.cells} == {"validation"}
    assert {cell.seed for cell in asked.cells if cell.train} == {100}


def test_it_is_held_against_the_paper(asked, monkeypatch, tmp_path):
    cells = [cell for cell in asked.cells if cell.model.id == "vila_pocket" and cell.target in (None, "flickr30k")]
    monkeypatch.setattr(calibration, "read_scores", lambda cell: {"averages": {
        "flickr30k": averages(85.0, 40.9) if cell.train is None else averages(61.0, 90.0)
    }})
    store = type("Store", (), {"folder": staticmethod(lambda cell: cell)})
    start, forgetting = lines(cells, store)
    # Table 5, VILA on Flickr30k: A^T 55.43 untuned; A^S 61.39 untuned and 47.04 after Full FT.
    assert (start.paper, start.got, start.met) == (55.43, 40.9, True)
    assert (start.low, start.high) == pytest.approx((40.43, 70.43))
    assert forgetting.paper == pytest.approx(14.35) and forgetting.got == pytest.approx(24.0) and forgetting.met
    assert (forgetting.low, forgetting.high) == pytest.approx((7.175, 28.7))
    text = table(asked, [start, forgetting])
    assert "| forgetting | VILA (pocket) | Flickr30k | 14.4 | 7.2 to 28.7 | 24.0 | yes |" in text
    assert "Met: 2 of 2." in text


@pytest.mark.parametrize(("got", "met"), [(4.9, False), (5.0, True), (20.0, True), (20.1, False)])
def test_a_line_is_met_between_its_limits(got, met):
    assert Line("forgetting", "m", "t", 10.0, 5.0, 20.0, got).met is met


@pytest.mark.parametrize("given", ["targets=coco", "methods=spider", "seed=1"])
def test_what_the_rule_fixes_is_refused(given):
    with pytest.raises(UserError, match="The rule fixes"):
        calibration.run([PROFILE, given])


def test_a_model_without_a_like_in_the_paper_is_refused(monkeypatch):
    monkeypatch.setattr(calibration.numbers, "LIKE", {})
    with pytest.raises(UserError, match="like a model of the paper"):
        cells_of([PROFILE])
