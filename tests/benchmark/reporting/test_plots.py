"""Plots of sweeps, plane, PID and examples: files, numbers as CSV, intervals, and text of models as text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmark.reporting import plots, tables
from benchmark.studies import named_figures
from tests.benchmark.table_rows import UPSTREAM, rows


@pytest.fixture
def drawn(monkeypatch):
    """Return the figures that were saved, without writing pixels."""
    found = []
    monkeypatch.setattr(plots, "save", lambda figure, data, stem: found.append((figure, data)) or [stem])
    yield found
    for figure, _ in found:
        plots.plt.close(figure)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    found = rows(methods=("zero_shot", "full_ft", "spider"), models=("llava",), n=40)
    return tables.build("T", found, UPSTREAM, draws=200).frame


def points(frame: pd.DataFrame, values) -> pd.DataFrame:
    return pd.concat([frame.assign(**{"train.epochs": value}) for value in values], ignore_index=True)


def test_no_line_of_a_long_heading_holds_one_word():
    text = "Every method at equal learning. Lines start at the untuned model (star); dashed: Full FT"
    assert plots._balanced(text, 81).count("\n") == 1
    first, second = plots._balanced(text, 81).splitlines()
    assert abs(len(first) - len(second)) < 12 and f"{first} {second}" == text
    assert plots._balanced(text, 200) == text


def test_lines_have_a_panel_per_group_and_metric_and_an_error_bar_per_point(frame, drawn, tmp_path):
    plots.lines(points(frame, [10, 5]), ["train.epochs"], "Epochs", tmp_path / "x")
    figure, data = drawn[0]
    assert len(figure.axes) == 2 * 3  # two targets
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["5", "10"]
    assert figure.axes[0].get_ylabel() == "LLaVA\nFlickr30k"
    spider = next(bar for bar in figure.axes[2].containers if bar.get_label() == "SPIDER")
    own = frame[(frame.method == "spider") & (frame.metric == "H") & (frame.target == "flickr30k")].iloc[0]
    assert spider[0].get_ydata() == pytest.approx([own.value] * 2)
    (low, high), _ = spider[2][0].get_segments()[0], None
    assert (low[1], high[1]) == pytest.approx((own.low, own.high))
    assert set(data["metric"]) == {"A_S", "A_T", "H"} and len(data) == 2 * 2 * 3 * 3


@pytest.mark.slow
def test_lines_take_words_further_axes_and_proportional_steps(frame, drawn, tmp_path):
    two = points(frame, [5, 6])
    both = pd.concat([two.assign(**{"train.scope": scope}) for scope in ("last_layers", "all_layers")])
    plots.lines(both, ["train.scope", "train.epochs"], "x", tmp_path / "x")
    figure, _ = drawn[0]
    assert len(figure.axes) == 2 * 2 * 3 and "epochs 6" in figure.axes[6].get_ylabel()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["last_layers", "all_layers"]
    plots.lines(points(frame, [1e-4, 5e-4, 2e-3]), ["train.epochs"], "x", tmp_path / "x")
    rates = drawn[1][0].axes[0]
    assert rates.get_xscale() == "log" and rates.get_title() == plots.MATH["A_S"]
    assert [label.get_text() for label in rates.get_xticklabels()] == ["1e-4", "5e-4", "2e-3"]


def test_lines_mark_a_value_of_the_axis(frame, drawn, tmp_path):
    plots.lines(points(frame, [1e-4, 5e-4]), ["train.epochs"], "x", tmp_path / "x", marked=5e-4)
    for plot in drawn[0][0].axes:
        assert [list(line.get_xdata()) for line in plot.lines if line.get_linestyle() == ":"] == [[5e-4, 5e-4]]


def test_a_missing_point_leaves_a_gap(frame, drawn, tmp_path):
    some = points(frame, [5, 6, 7])
    some = some[(some["method"] != "spider") | (some["train.epochs"] != 6)]
    plots.lines(some, ["train.epochs"], "x", tmp_path / "x")
    spider = next(bar for bar in drawn[0][0].axes[0].containers if bar.get_label() == "SPIDER")
    assert np.isnan(spider[0].get_ydata()).tolist() == [False, True, False]


def test_the_plane_shows_methods_with_both_intervals_and_the_curve_from_base_to_full_ft(frame, drawn, tmp_path):
    bent = points(frame[frame["method"] == "full_ft"], [0.5]).rename(columns={"train.epochs": "method.alpha"})
    bends = bent.assign(method="wise_ft", method_name="WiSE-FT")
    named_figures.planes(frame, bends, "method.alpha", tmp_path, "plane", "Plane")
    figure, data = drawn[0]
    assert [axis.get_title() for axis in figure.axes] == ["Flickr30k", "COCO-Caption"]
    for axis in figure.axes:  # the control's points say which they are
        assert [text.get_text() for text in axis.texts if text.get_color() == "#8C564B"] == ["0.5"]
    assert "with its alpha" in figure.get_suptitle()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["WiSE-FT", "Zero-shot", "Full FT", "SPIDER"]
    curve = data[data["curve"].astype(bool) & (data["panel"] == "Flickr30k")]
    assert curve["method.alpha"].tolist() == [0.0, 0.5, 1.0]
    assert curve["method"].tolist() == ["zero_shot", "wise_ft", "full_ft"]
    for panel in figure.axes:
        left, right = panel.get_xlim()
        inside = data[data["panel"] == panel.get_title()]
        assert left <= inside["A_S_low"].min() and inside["A_S_high"].max() <= right


def test_the_plane_without_a_curve(frame, drawn, tmp_path):
    named_figures.planes(frame, pd.DataFrame(), "method.alpha", tmp_path, "plane", "Plane")
    assert "WiSE-FT" not in [text.get_text() for text in drawn[0][0].legends[0].get_texts()]
    with pytest.raises(named_figures.UserError):
        named_figures.planes(frame.assign(value=np.nan), pd.DataFrame(), "method.alpha", tmp_path, "plane", "Plane")


def test_discrepancy_shows_every_set_and_layer(drawn, tmp_path):
    frame = pd.DataFrame([
        {"dataset": name, "dataset_name": name.upper(), "role": role, "part": part, "value": 2.0, "low": 1.8,
         "high": 2.2}
        for name, role in (("okvqa", "upstream"), ("gqa", "upstream"), ("coco", "target"))
        for part in ("tuned", "projector", "0", "1")
    ])
    plots.discrepancy(frame, "PID", tmp_path / "x")
    left, right = drawn[0][0].axes
    lines = [bar[0] for bar in right.containers]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    assert [line.get_markerfacecolor() == "white" for line in lines] == [False, False, True]
    assert [label.get_text() for label in left.get_yticklabels()] == ["OKVQA", "GQA", "COCO"]
    assert [label.get_text() for label in right.get_xticklabels()] == ["projector", "0", "1"]


def test_gallery_takes_any_text_and_items_without_an_image(drawn, tmp_path):
    example = {
        "item_id": "i1", "image": Image.new("RGB", (8, 8)), "prompt": "What is $x_{ \\frac?",
        "references": ("a $", "b"),
        "answers": {"Full FT": ("$\\bad{ <b>", 0.5), "SPIDER": ("", 1.2)},
    }
    plots.gallery("Fig. 3", "rule", [example, {**example, "image": None, "item_id": "i2"}], tmp_path / "x")
    figure, data = drawn[0]
    figure.canvas.draw()  # would raise on mathematics that cannot be parsed
    assert len(data) == 4 and data["answer"].tolist()[:2] == ["$\\bad{ <b>", ""]
    text = figure.axes[0].texts[0].get_text()
    assert "SPIDER (120): (empty)" in text and "Reference: a $" in text


@pytest.mark.parametrize(("value", "text"), [
    (42.5, "42.5"), (5e-4, "5e-4"), (2.5e-4, "2.5e-4"), (16777217, "16777217"), (0.1234567, "0.1234567"),
    (1e-3, "1e-3"), (10, "10"), ("last_layers", "last_layers"), (True, "True"), (np.int64(1234567), "1234567"),
])
def test_a_tick_says_its_value_and_no_other(value, text):
    assert plots.tick(value) == text


@pytest.mark.slow
def test_names_in_every_plot_are_text(frame, tmp_path):
    name = "US$ 5% to $10_^\\frac{"
    named = frame.assign(model_name=name, target_name=frame["target"] + name, method_name=name)
    assert plots.lines(points(named, [5, 10]), ["train.epochs"], name, tmp_path / "x")[1].exists()
    assert named_figures.planes(named, pd.DataFrame(), "method.alpha", tmp_path, "plane", name)[1].exists()
    one = {"dataset": "a", "dataset_name": name, "role": "target", "value": 2.0, "low": 1.0, "high": 3.0}
    sets = pd.DataFrame([one | {"part": part} for part in ("tuned", "0")])
    assert plots.discrepancy(sets, name, tmp_path / "y")[1].exists()
    example = {"item_id": name, "image": None, "prompt": name, "references": (name,), "answers": {name: (name, 0.5)}}
    assert plots.gallery(name, name, [example], tmp_path / "z")[1].exists()
