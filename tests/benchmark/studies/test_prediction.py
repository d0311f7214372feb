"""What predicts forgetting: rank correlations by hand, groups and methods as the units of the bootstrap, the figure."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from benchmark import cli
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.reporting import plots
from benchmark.spec import ROOT
from benchmark.store.cells import Store
from benchmark.studies import named_figures, prediction
from benchmark.studies.prediction import MEASURES, correlations, flips, ranks, spearman

ONCE = np.ones((1, 5))


def pearson_of_ranks(x, y):
    """Spearman's correlation, written out: mean ranks of equal values, then Pearson's."""
    def rank(values):
        return np.array([np.mean([place + 1 for place, other in enumerate(sorted(values)) if other == value])
                         for value in values])

    return np.corrcoef(rank(x), rank(y))[0, 1]


def test_equal_values_share_their_mean_rank():
    assert ranks(np.array([3.0, 1.0, 3.0, 7.0, 2.0]), ONCE).tolist() == [[3.5, 1.0, 3.5, 5.0, 2.0]]
    # A value that a draw took twice has two ranks, and one that it left out has none.
    assert ranks(np.array([5.0, 1.0, 9.0]), np.array([[2.0, 0.0, 1.0]]))[0, [0, 2]].tolist() == [1.5, 3.0]


def test_the_correlation_is_pearsons_of_the_ranks_of_the_drawn_pairs():
    random = np.random.default_rng(0)
    x, y = np.round(random.standard_normal((2, 12)), 1)
    counts = random.integers(0, 4, (6, 12)).astype(float)
    for found, count in zip(spearman(x, y, counts), counts.astype(int), strict=True):
        assert found == pytest.approx(pearson_of_ranks(np.repeat(x, count), np.repeat(y, count)))
    assert spearman(np.arange(5.0), np.exp(np.arange(5.0)), ONCE)[0] == pytest.approx(1)
    assert spearman(np.arange(5.0), -np.arange(5.0), ONCE)[0] == pytest.approx(-1)
    assert math.isnan(spearman(np.ones(5), np.arange(5.0), ONCE)[0])


def test_long_answers_and_letters_are_of_another_form():
    answers = ["a red car is parked", "B", " C.", "red", "Clara A", "a", "", "two red cars"]
    assert prediction.other_form(answers) == pytest.approx(100 * 3 / 8)


def frame_of(groups, **columns):
    """Return a frame with a cell per value of forgetting: {(model, target): [forgetting, ...]}."""
    lines = [
        {"model": model, "model_name": model, "target": target, "target_name": target, "method": f"m{place}",
         "forgetting": value} | dict.fromkeys(MEASURES, np.nan)
        for (model, target), values in groups.items() for place, value in enumerate(values)
    ]
    frame = pd.DataFrame(lines)
    return frame.assign(**{name: make(frame) for name, make in columns.items()})


def test_within_groups_is_not_over_all_cells():
    """A measure that orders the cells of each target, but the targets themselves the other way round."""
    groups = {("a", str(place)): [place * 10.0 + n for n in range(6)] for place in range(4)}
    frame = frame_of(groups, kl=lambda f: f["forgetting"] - 20 * (f["forgetting"] // 10), E=lambda f: -f["forgetting"])
    found = correlations(frame, draws=200).set_index("measure")
    assert list(found.index) == ["kl", "E"]  # what was not measured has no line
    assert found.loc["kl", "within"] == pytest.approx(1) and found.loc["kl", "pooled"] < -0.5
    assert found.loc["E", "within"] == pytest.approx(-1) and found.loc["E", "within_high"] == pytest.approx(-1)
    assert (found.loc["kl", "cells"], found.loc["kl", "groups"]) == (24, 4)


def test_a_method_is_drawn_with_all_its_cells_and_a_group_with_all_its_methods():
    random = np.random.default_rng(1)
    one = {("a", "x"): random.standard_normal(8)}
    frame = frame_of(one, kl=lambda f: f["forgetting"] + random.standard_normal(8))
    wide = correlations(frame, draws=500).loc[0]
    assert wide["within_low"] < wide["within"] < wide["within_high"]
    # Each cell five times, under its method: the same evidence, so the same interval.
    copies = correlations(pd.concat([frame] * 5, ignore_index=True), draws=500).loc[0]
    assert copies["within"] == pytest.approx(wide["within"])
    assert copies["within_high"] - copies["within_low"] == pytest.approx(wide["within_high"] - wide["within_low"])
    # As methods of their own they would count as new evidence.
    apart = pd.concat([frame.assign(method=frame["method"] + str(copy)) for copy in range(5)], ignore_index=True)
    apart = correlations(apart, draws=500).loc[0]
    assert apart["within_high"] - apart["within_low"] < 0.7 * (wide["within_high"] - wide["within_low"])
    # Groups that disagree: the interval covers both.
    groups = {("a", "x"): range(6), ("a", "y"): range(6)}
    sign = frame_of(groups, kl=lambda f: f["forgetting"] * np.where(f["target"] == "x", 1, -1))
    both = correlations(sign, draws=500).loc[0]
    assert both["within"] == pytest.approx(0) and both["within_low"] == -1 and both["within_high"] == pytest.approx(1)


def test_too_few_cells_have_no_correlation():
    assert correlations(frame_of({("a", "x"): [1.0, 2.0, 3.0]}, kl=lambda f: f["forgetting"])).empty
    with pytest.raises(UserError, match="4 finished cells and a finished zero_shot"):
        prediction.markdown(pd.DataFrame(), "x", [])


def test_flips_are_means_over_sets_of_shares_of_items():
    first = {"a": 1.0, "b": 0.9, "c": 0.3, "d": 0.0}, {"d": 1.0, "c": 0.0, "b": 0.3, "a": 0.6}
    second = {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}
    assert flips([first, second]) == {"wrong_now": pytest.approx(100 * (1 / 4 + 1 / 2) / 2),
                                      "right_now": pytest.approx(100 * (1 / 4) / 2)}


def test_it_is_drawn_with_a_point_per_cell(tmp_path):
    random = np.random.default_rng(0)
    groups = {(model, target): random.standard_normal(6) for model in "ab" for target in ("x", "y")}
    frame = frame_of(groups, kl=lambda f: np.exp(f["forgetting"]), E=lambda f: f["forgetting"] ** 2)
    found = correlations(frame, draws=50)
    panels = {name: MEASURES[name] for name in ("kl", "E")}
    paths = plots.predictors(frame, found, panels, "Title", tmp_path / "predict")
    assert [path.suffix for path in paths] == [".png", ".pdf", ".csv"] and len(pd.read_csv(paths[2])) == 24
    text = prediction.markdown(found, "Title", ["A note."])
    assert "KL(tuned \\|\\| base), target" in text and "A note." in text and "| +1.00 (+1.00 to +1.00)" in text


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.9), (0.01, 8.0), (0.09, 890.0), (1e-6, 0.3), (1e-12, 1e3)])
def test_a_logarithmic_axis_has_ticks_over_any_range(low, high):
    ticks = plots._log_locator(low, high).tick_values(low, high)
    assert 1 <= sum(low <= tick <= high for tick in ticks) <= 10


@pytest.mark.slow
def test_the_published_cells_are_read_and_nothing_is_written(capsys, tmp_path):
    root = ROOT / "results" / "pocket"
    before = sorted(path.name for path in root.rglob("*"))
    assert cli.main(["figure", "predict", f"results={root}", "models=llava_pocket", "targets=iconqa"]) == 0
    out = capsys.readouterr().out
    assert "right to wrong *" in out and sorted(path.name for path in root.rglob("*")) == before
    folders = prediction.choose(Store(root), "pocket", {"models": ["llava_pocket"], "targets": ["iconqa"],
                                                        "seeds": ["0"], "methods": ["full_ft", "spider"]})
    frame, notes = prediction.collect(folders)
    line = frame[frame["method"] == "full_ft"].iloc[0]
    tuned = next(folder for folder in folders if folder.name == line["cell"])
    base = next(folder for folder in folders if "zero_shot" in folder.name)
    after, start = (json.loads((folder / "scores.json").read_text())["averages"]["iconqa"] for folder in (tuned, base))
    assert line["forgetting"] == pytest.approx(start["A_S"]["value"] - after["A_S"]["value"]) == -line["F"]
    assert line["E"] == pytest.approx(after["A_T"]["value"] - start["A_T"]["value"])
    assert line["O"] == pytest.approx(line["E"] + line["F"]) and math.isnan(line["kl"]) and notes == []
    # Of items that are right or wrong, what is lost less what is won is what is forgotten.
    assert line["wrong_now"] - line["right_now"] == pytest.approx(line["forgetting"], abs=3)


def test_a_name_that_no_finished_cell_has_is_refused(capsys):
    root = ROOT / "results" / "pocket"
    assert cli.main(["figure", "predict", f"results={root}", "methods=spidr,full_ft", "seeds=7"]) == 2
    said = capsys.readouterr().err
    assert "methods=spidr: no finished cell has it. Did you mean 'spider'" in said
    assert "seeds=7: no finished cell has it. Valid: 0, 1, 2" in said


def test_a_cell_is_compared_with_the_untuned_model_of_its_own_dtype_and_inputs():
    given = ["methods=zero_shot,full_ft", "model=vila_pocket", "dataset=coco"]
    untuned, tuned = request(given).cells
    places = {prediction._place(untuned, "coco")}
    assert places == {prediction._place(tuned, "coco")}
    for more in ("dtype=bfloat16", "eval.dtype=float16", "model.preprocess=crop", "eval.split=validation"):
        untuned, tuned = request([*given, more]).cells
        assert prediction._place(untuned, "coco") == prediction._place(tuned, "coco") not in places


def test_it_has_no_cells_to_publish():
    with pytest.raises(UserError, match="figure=predict has no cells of its own"):
        named_figures.requests("predict", [])
