"""The survey runs every row at five strengths and reads it at Full FT's gain, with paired intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmark import cli
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.planning import plan as planning
from benchmark.reporting import plots
from benchmark.running import method_cost
from benchmark.spec import cell_id
from benchmark.store.cells import Store
from benchmark.studies import named_figures, survey
from tests.benchmark import fakes


@pytest.fixture
def figure():
    return named_figures.read("survey")


def asked(figure, *overrides):
    return survey.ask(figure, ["models=vila_pocket", "targets=coco", *overrides])


def test_a_row_has_five_strengths_around_the_models_own_rate(figure):
    made = asked(figure, "methods=spider,dare")
    spec = made.base.models[0]
    cells = made.curves["vila_pocket", "spider"].cells
    assert [cell.train.learning_rate for cell in cells] == pytest.approx(
        [spec.learning_rate * factor for factor in (0.1, 0.3, 1, 3, 10)]
    )
    assert [cell.train.projector_learning_rate / cell.train.learning_rate for cell in cells] == pytest.approx(
        [spec.projector_learning_rate / spec.learning_rate] * 5
    )
    posthoc = made.curves["vila_pocket", "dare"].cells
    assert [cell.method.params["keep"] for cell in posthoc] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert {cell.train.learning_rate for cell in posthoc} == {spec.learning_rate}


def test_the_usual_rate_of_an_adapter_leaves_the_projectors_rate_alone(figure):
    figure["groups"]["Selective, while training"]["half_ft"] = {"usual": 10.0}
    made = asked(figure, "methods=half_ft")
    spec = made.base.models[0]
    cells = made.curves["vila_pocket", "half_ft"].cells
    assert [cell.train.learning_rate for cell in cells] == pytest.approx(
        [spec.learning_rate * factor for factor in (1, 3, 10, 30, 100)]
    )
    assert [cell.train.projector_learning_rate for cell in cells] == pytest.approx(
        [spec.projector_learning_rate * factor for factor in (0.1, 0.3, 1, 3, 10)]
    )


def test_the_middle_of_full_ft_is_the_cell_of_the_tables(figure):
    table = request(["table=table5", "models=vila_pocket", "targets=coco", "methods=full_ft"]).cells
    made = asked(figure, "methods=full_ft")
    for cells in (made.curves["vila_pocket", "full_ft"].cells, made.base.cells):
        assert cell_id(table[0]) in {cell_id(cell) for cell in cells}


def test_where_to_train_is_a_row_of_its_own(figure):
    made = asked(figure, "methods=attention,projector_frozen")
    assert [row.id for row in made.rows] == ["full_ft", "attention", "projector_frozen"]
    assert {cell.train.scope for cell in made.curves["vila_pocket", "attention"].cells} == {"attention"}
    assert {cell.train.projector for cell in made.curves["vila_pocket", "projector_frozen"].cells} == {"frozen"}


@pytest.mark.parametrize(("override", "text"), [
    ("methods=spidr", "Did you mean 'spider'?"), ("train.learning_rate=1e-3", "the survey sets the rates itself"),
    ("method.alpah=0.1", "alpah"),
])
def test_what_the_survey_cannot_use_is_refused(figure, override, text):
    with pytest.raises(UserError, match=text.replace("?", r"\?")):
        asked(figure, override)


def test_every_row_of_the_file_is_a_method_with_five_points(figure):
    made = asked(figure)
    assert len(made.rows) >= 17 and made.rows[0].id == "full_ft"
    for row in made.rows:
        assert len(made.curves["vila_pocket", row.id].cells) == 5, row.id


def test_a_survey_runs_and_prints_kept_area_and_best_h(tmp_path, monkeypatch, capsys):
    """The stand-ins' scores are odd; what counts here is that every part of the page is made of finished cells."""
    world = fakes.world_in(tmp_path, monkeypatch)
    monkeypatch.setattr(method_cost, "measure_beside", lambda *_: [])
    given = [item for item in world.overrides() if not item.startswith("table=")]
    assert cli.main(["figure", "survey", *given, "methods=full_ft,spider,wise_ft"]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert "| method" in out and "WiSE-FT" in out and "SPIDER" in out and "kept at 75 %" in out
    [page] = world.results.glob("studies/survey_*.csv")
    frame = pd.read_csv(page)
    assert list(frame["row"]) == ["full_ft", "spider", "wise_ft"] and set(frame["points"]) == {5}
    plotted = sorted(world.results.glob("figures/survey_*"))
    assert [path.suffix for path in plotted] == [".csv", ".pdf", ".png"]
    points = pd.read_csv(plotted[0])
    line = points[points["row"] == "wise_ft"]
    assert line["strength"].tolist()[:5] == [0.1, 0.3, 0.5, 0.7, 0.9] and line["strength"].isna().tolist()[5:] == [True]
    tuned = points[points["row"] == "full_ft"].iloc[2]  # at the model's rate
    assert line[["A_S", "A_T"]].iloc[-1].tolist() == tuned[["A_S", "A_T"]].tolist()


def test_a_penalty_is_drawn_from_the_largest_on(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, points, stem: drawn.append(figure))
    columns = ["row", "name", "group", "strength", "A_S", "A_T"]
    rows = [
        ("full_ft", "Full FT", "G", 1.0, 60.0, 90.0), ("l2", "L2", "G", 0.1, 89.0, 11.0),
        ("l2", "L2", "G", 0.01, 88.0, 12.0), ("zero_shot", "Zero-shot", "", 0.0, 90.0, 10.0),
    ]
    frame = pd.DataFrame(rows, columns=columns).assign(target_name="T")
    plots.curves(frame, "Title", tmp_path / "x")
    [plot] = drawn[0].axes
    line = next(line for line in plot.lines if line.get_label() == "L2")
    assert list(line.get_xdata()) == [0.0, 1.0, 2.0]  # lost
    left, right = plot.get_xlim()
    assert left > 30 > 0 > right and plot.get_xscale() == "asinh"


class Numbers:
    """Samples with known values and draws, in the place of finished cells."""

    def __init__(self, **values):
        self.values = values
        self.draws = {name: value + np.linspace(-1, 1, 200) for name, value in values.items()}


def test_readings_and_differences_follow_the_rule():
    base, full = Numbers(A_S=90.0, A_T=10.0, H=18.0), Numbers(A_S=60.0, A_T=110.0, H=77.6)
    row = survey.Row("x", "X", "G", "x", 1.0, None, (1.0,), {}, False)
    reference = survey._read(row, [(1.0, full)], base, full, (1.0, 0.5))
    better = Numbers(A_S=80.0, A_T=85.0, H=82.4)
    line = survey._line(survey._read(row, [(1.0, better)], base, full, (1.0, 0.5)), reference)
    assert "kept_100" not in line and "delta_100" not in line  # it learns three quarters
    at_half = 90 - 10 * 50 / 75  # A^T 60 on the line from (10, 90) to (85, 80)
    assert line["kept_50"] == pytest.approx(at_half)
    assert line["delta_50"] == pytest.approx(at_half - 75)
    # All draws move alike, so the difference has no spread although both values have.
    assert line["delta_50_high"] - line["delta_50_low"] < 1e-9 < line["kept_50_high"] - line["kept_50_low"]
    assert line["area"] == pytest.approx(0.75 * 85, abs=1) and line["H"] == 82.4 and line["best_at"] == 1.0


def test_a_level_that_many_draws_miss_is_not_reached():
    base, full = Numbers(A_S=90.0, A_T=10.0, H=18.0), Numbers(A_S=60.0, A_T=110.0, H=77.6)
    row = survey.Row("x", "X", "G", "x", 1.0, None, (1.0,), {}, False)
    barely = Numbers(A_S=80.0, A_T=110.0, H=92.6)
    barely.draws["A_T"] = barely.draws["A_T"] - np.where(np.arange(200) % 10 == 0, 5.0, 0.0)
    line = survey._line(survey._read(row, [(1.0, barely)], base, full, (1.0, 0.9)), None)
    assert "kept_100" not in line and line["kept_90"] == pytest.approx(81)


def test_full_ft_that_learned_nothing_gives_no_level():
    base, full = Numbers(A_S=90.0, A_T=50.0, H=64.0), Numbers(A_S=60.0, A_T=40.0, H=48.0)
    row = survey.Row("x", "X", "G", "x", 1.0, None, (1.0,), {}, False)
    line = survey._line(survey._read(row, [(1.0, full)], base, full, (1.0,)), None)
    assert set(line) == {"H", "H_low", "H_high", "best_at"}


def test_the_page_ranks_by_what_is_kept_and_marks_sure_differences(figure):
    lines = pd.DataFrame([
        {"row": "a", "name": "A", "group": "G", "target": "t", "target_name": "T", "points": 5, "area": 50.0,
         "area_low": 40.0, "area_high": 60.0, "H": 1.0, "H_low": 0.0, "H_high": 2.0},
        {"row": "b", "name": "B|C", "group": "G", "target": "t", "target_name": "T", "points": 5, "kept_90": 70.0,
         "kept_90_low": 69.0, "kept_90_high": 71.0, "delta_90": 2.0, "delta_90_low": 1.0, "delta_90_high": 3.0,
         "area": 40.0, "area_low": 30.0, "area_high": 50.0, "H": 1.0, "H_low": 0.0, "H_high": 2.0},
    ])
    text = survey.markdown(lines, (1.0, 0.9, 0.75), "Title", ["Note."])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[2].startswith("| B\\|C") and "70.0 (69.0 to 71.0) ↑" in table[2] and "not reached" in table[2]
    assert table[3].startswith("| A ") and len({len(line) for line in table}) == 1


def test_a_planned_survey_counts_each_cell_once(figure, tmp_path):
    made = asked(figure, "methods=spider,wise_ft", f"results={tmp_path}")
    ids = [item.id for item in planning.make(made.everything, Store(tmp_path))]
    assert len(ids) == len(set(ids)) == 1 + 5 + 5 + 5


def test_losses_replay_and_ewc_are_rows_of_their_own(figure):
    made = asked(figure, "methods=lwf,asft,dft,talr,replay_generic,replay_source,ewc,corda")
    curves = {row.id: made.curves["vila_pocket", row.id].cells for row in made.rows}
    assert [cell.train.lwf_weight for cell in curves["lwf"]] == [100.0, 10.0, 1.0, 0.1, 0.01]
    assert [cell.train.asft_weight for cell in curves["asft"]] == [10.0, 1.0, 0.1, 0.01, 0.001]
    assert [cell.method.params["strength"] for cell in curves["ewc"]] == [100.0, 10.0, 1.0, 0.1, 0.01]
    for kind in ("generic", "source"):
        assert [cell.train.replay_share for cell in curves[f"replay_{kind}"]] == [0.75, 0.5, 0.25, 0.125, 0.0625]
        assert {cell.train.replay for cell in curves[f"replay_{kind}"]} == {kind}
    rate = made.base.models[0].learning_rate
    assert {cell.train.learning_rate for name in ("lwf", "asft", "ewc") for cell in curves[name]} == {rate}
    assert len({cell.train.learning_rate for cell in curves["dft"]}) == 5
    assert len({cell_id(cell) for cells in curves.values() for cell in cells}) == 5 * len(curves)
    # Rows that saw the source sets are marked, and those alone.
    marked = {row.id for row in made.rows if row.name.endswith(survey.SEES_SOURCES)}
    assert marked == {"replay_source", "corda"}


def test_a_curve_begins_where_the_method_moves_the_model_least(figure, tmp_path, monkeypatch):
    """At the largest penalty, not at the smallest, which is nearly Full FT; penalties of 0 are Full FT."""
    made = asked(figure, "methods=l2_reg,spider,dare")
    finished = survey._Finished(made, Store(tmp_path), [])
    monkeypatch.setattr(finished, "sample", lambda part, *_: part)
    curves = {row.id: [value for value, _ in finished.curve(row, "vila_pocket", "coco")] for row in made.rows}
    assert curves["l2_reg"] == [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]
    assert curves["dare"] == sorted(curves["dare"]) and curves["spider"] == sorted(curves["spider"])
    ends = {row.id for row in asked(figure).rows if row.to_full_ft}
    assert {"l2_reg", "grafting", "ewc", "lwf", "dare", "wise_ft"} <= ends and not {"spider", "asft"} & ends


def test_a_setting_of_the_command_line_marks_the_rows_that_it_shows_the_source_sets(figure):
    rows = asked(figure, "methods=spider,half_ft", "train.replay=source").rows
    assert all(row.name.endswith(survey.SEES_SOURCES) for row in rows)
