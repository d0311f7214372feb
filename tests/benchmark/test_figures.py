import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from PIL import Image

from benchmark import figures, tables
from benchmark.errors import UserError
from tests.benchmark.table_rows import METHODS, UPSTREAM, row, rows

AXES = {"okvqa": "OKVQA", "gqa": "GQA", "A_T": "COCO (target)"}
NAMES = {method: name for method, (name, _, _) in METHODS.items()}


@pytest.fixture(scope="module")
def table() -> tables.Table:
    found = rows(models=("llava",), methods=("zero_shot", "full_ft", "dare", "spider"), seeds=(0, 1))
    return tables.build("Table 5", found, UPSTREAM, draws=50)


@pytest.fixture(scope="module")
def radars(table, tmp_path_factory):
    """The radar plots of the table."""
    return figures.radars(table, tmp_path_factory.mktemp("figures"))


@pytest.fixture
def drawn(monkeypatch):
    """Keep figures open and return those that were saved."""
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    yield kept
    monkeypatch.undo()
    plt.close("all")


def test_no_window_is_needed():
    assert matplotlib.get_backend().lower() == "agg"


def test_radars_draws_one_plot_per_model_and_target(radars):
    stems = ("fig4_llava_coco", "fig4_llava_flickr30k")
    expected = [f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "pdf", "png")]
    files = {path.name: path for path in radars}
    assert sorted(files) == expected
    assert min(Image.open(files["fig4_llava_coco.png"]).size) > 500
    assert files["fig4_llava_coco.pdf"].read_bytes().startswith(b"%PDF")


def test_the_csv_holds_the_values_and_the_scales(table, radars):
    data = pd.read_csv(radars[0].parent / "fig4_llava_flickr30k.csv").set_index("method")
    frame = table.frame[(table.frame.target == "flickr30k") & (table.frame.method == "spider")]
    expected = frame.set_index("metric").value
    for metric in (*UPSTREAM, "A_T"):
        assert data.loc["spider", metric] == pytest.approx(expected[metric], abs=1e-4)
        values = data.drop(index=["(centre)", "(rim)"])[metric]
        assert data.loc["(centre)", metric] < values.min()
        assert values.max() <= data.loc["(rim)", metric]


def test_radar_scales_each_axis_and_closes_the_line(tmp_path, drawn):
    lines = {"full_ft": {"okvqa": 40, "gqa": 30, "A_T": 90}, "spider": {"okvqa": 80, "gqa": 60, "A_T": 85}}
    figures.radar("title", AXES, lines, NAMES, tmp_path / "r")
    (plot,) = drawn[0].axes
    drawn_lines = {line.get_label(): line.get_ydata() for line in plot.lines}
    for axis, low_high in zip(AXES, ((40, 80), (30, 60), (85, 90)), strict=True):
        low, high = figures.axis_range(low_high)
        place = list(AXES).index(axis)
        for method in lines:
            expected = (lines[method][axis] - low) / (high - low)
            assert drawn_lines[NAMES[method]][place] == pytest.approx(expected)
            assert drawn_lines[NAMES[method]][-1] == drawn_lines[NAMES[method]][0]
    written = [text.get_text() for text in plot.texts]
    low, high = figures.axis_range([40, 80])
    assert f"OKVQA\n{low:g} to {high:g}" in written


def test_methods_with_missing_values_are_named_and_not_drawn(tmp_path, drawn):
    lines = {"full_ft": {"okvqa": 40, "gqa": 30, "A_T": 90}, "spider": {"okvqa": 80, "gqa": np.nan}}
    figures.radar("title", AXES, lines, NAMES, tmp_path / "r")
    legend = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert legend == ["Full FT", "SPIDER (missing)"]
    (line,) = [line for line in drawn[0].axes[0].lines if line.get_label() == "SPIDER (missing)"]
    assert len(line.get_xdata()) == 0
    assert figures.radar("empty", AXES, {"spider": {}}, NAMES, tmp_path / "empty")[0].exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([40, 80], (30, 80)),
        ([97.2, 97.6], (92, 100)),
        ([86.4, 89.6], (82, 92)),
        ([0, 5], (0, 7)),
        ([20, 115], (0, 120)),
        ([50], (44, 54)),
    ],
)
def test_axis_range_is_round_and_holds_all_values(values, expected):
    assert figures.axis_range(values) == expected


def test_lines_can_be_told_apart_in_grey():
    """No two methods share a dash or a marker; the three that matter differ in grey by a visible step."""
    used = figures.styles([*METHODS, "mine", "yours"])
    assert len({str(style.dash) for style in used.values()}) == len(used)
    assert len({style.marker for style in used.values()}) == len(used)
    assert len({style.colour for style in used.values()}) == len(used)
    strong = [method for method, style in used.items() if style.emphasis]
    assert strong == ["zero_shot", "full_ft", "spider"]
    grey = sorted(np.dot(to_rgb(used[method].colour), (0.299, 0.587, 0.114)) for method in strong)
    assert min(np.diff(grey)) > 0.1


def test_summary_shows_intervals_and_seeds(table, tmp_path, drawn):
    figures.summary(table, tmp_path)
    figure = drawn[0]
    assert len(figure.axes) == 2 * 3
    spider = table.frame[(table.frame.method == "spider") & (table.frame.metric == "H")].iloc[0]
    bars = [line.get_xdata() for line in figure.axes[2].lines]
    assert any(list(data) == [spider.low, spider.high] for data in bars)
    assert any(list(data) == [float(value) for value in spider.by_seed.split()] for data in bars)
    assert "small dots: single seeds" in figure.get_supxlabel()
    assert (tmp_path / "summary.pdf").exists()


def test_summary_says_what_is_missing(tmp_path, drawn):
    found = tables.build("t", [row("full_ft"), row("spider", items={})], UPSTREAM, draws=20)
    figures.summary(found, tmp_path)
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["missing"]
    assert "seeds" not in drawn[0].get_supxlabel()


def test_the_same_numbers_give_the_same_files(tmp_path):
    lines = {"full_ft": {"okvqa": 40, "gqa": 30, "A_T": 90}}
    first, second = (figures.radar("t", AXES, lines, NAMES, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert not plt.get_fignums()


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    lines = {"full_ft": {"okvqa": 1, "gqa": 2, "A_T": 3}}
    with pytest.raises(UserError, match="Cannot write"):
        figures.radar("t", AXES, lines, NAMES, tmp_path / "file" / "r")


@pytest.mark.parametrize("span", [0.0, 3.0, 7.9, 8.0, 8.1, 9.9966, 10.0, 40.0])
@pytest.mark.parametrize("low", [0.0, 1.3, 55.0])
def test_every_value_lies_inside_its_axis(low, span):
    bottom, top = figures.axis_range([low, low + span])
    assert bottom <= low and low + span <= top
