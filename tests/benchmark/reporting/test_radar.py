from __future__ import annotations

import itertools
import unicodedata
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from PIL import Image

from benchmark.core.errors import UserError
from benchmark.reporting import lettering, radar, tables
from methods.registry import METHODS as METHODS_OF_ALL
from tests.benchmark.table_rows import METHODS, UPSTREAM, rows

AXES = {"okvqa": "OKVQA", "gqa": "GQA", "A_T": "COCO (target)"}
NAMES = {method: name for method, (name, _, _) in METHODS.items()}


@pytest.fixture(scope="module")
def table() -> tables.Table:
    found = rows(models=("llava",), methods=("zero_shot", "full_ft", "dare", "spider"), seeds=(0, 1))
    return tables.build("Table 5", found, UPSTREAM, draws=50)


@pytest.fixture(scope="module")
def radars(table, tmp_path_factory):
    """The radar plots of the table."""
    return radar.radars(table, tmp_path_factory.mktemp("figures"))


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


@pytest.mark.slow
def test_radars_draws_one_plot_per_model_and_target(radars):
    stems = ("fig4_llava_coco", "fig4_llava_flickr30k")
    expected = [f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "pdf", "png")]
    files = {path.name: path for path in radars}
    assert sorted(files) == expected
    assert min(Image.open(files["fig4_llava_coco.png"]).size) > 500
    assert files["fig4_llava_coco.pdf"].read_bytes().startswith(b"%PDF")


def points(lines) -> pd.DataFrame:
    """Return the numbers of a radar with intervals of two points on either side."""
    found = [(method, axis, value) for method, line in lines.items() for axis, value in line.items()]
    frame = pd.DataFrame(found, columns=["method", "axis", "value"])
    return frame.assign(low=frame["value"] - 2, high=frame["value"] + 2)


LINES = {
    "zero_shot": {"okvqa": 60, "gqa": 50, "A_T": 0}, "full_ft": {"okvqa": 40, "gqa": 25, "A_T": 90},
    "spider": {"okvqa": 80, "gqa": 60, "A_T": 85},
}


def of(*methods: str) -> dict[str, str]:
    return {method: NAMES[method] for method in methods}


def drawn_line(plot, name: str) -> list[float]:
    return list(next(line for line in plot.lines if line.get_label() == name).get_ydata())


def test_the_csv_holds_the_values_the_intervals_and_the_scale(table, radars):
    data = pd.read_csv(radars[0].parent / "fig4_llava_flickr30k.csv").set_index("method")
    frame = table.frame[(table.frame.target == "flickr30k") & (table.frame.method == "spider")].set_index("metric")
    for metric in (*UPSTREAM, "A_T"):
        for end, column in (("", "value"), ("_low", "low"), ("_high", "high")):
            assert data.loc["spider", metric + end] == pytest.approx(frame.loc[metric, column], abs=1e-4)
    assert set(data["rim"]) == {100} and set(data["unit"]) == {"points"}


@pytest.mark.slow
@pytest.mark.parametrize("methods", [("full_ft", "spider"), ("spider",), ("zero_shot", "full_ft", "spider")])
def test_a_radar_has_one_scale_from_0_whichever_methods_it_shows(tmp_path, drawn, methods):
    radar.radar("title", AXES, points({name: LINES[name] for name in methods}), of(*methods), tmp_path / "r")
    (plot,) = drawn[0].axes
    assert plot.get_ylim() == (0, 100)
    for method in methods:
        expected = list(LINES[method].values())
        assert drawn_line(plot, NAMES[method]) == [*expected, expected[0]]
    texts = [text.get_text() for text in plot.texts]
    assert {"20", "40", "60", "80", "100", "OKVQA"} <= set(texts)
    assert "All axes: 0 to 100 points. Bands: 95 % intervals." in texts


@pytest.mark.slow
def test_intervals_are_bands(tmp_path, drawn):
    radar.radar("title", AXES, points({"spider": LINES["spider"]}), of("spider"), tmp_path / "r")
    band = drawn[0].axes[0].patches[0].get_xy()[:8, 1]
    assert list(band) == [82, 62, 87, 82, 78, 83, 58, 78]


@pytest.mark.slow
def test_a_radar_of_captions_reaches_further_and_shows_what_lies_beyond(table, tmp_path, drawn):
    radar.radars(table, tmp_path, cider=["coco"])
    rims = {figure.axes[0].get_title(): figure.axes[0].get_ylim() for figure in drawn}
    assert rims == {"LLaVA, fine-tuned on Flickr30k": (0, 100), "LLaVA, fine-tuned on COCO-Caption": (0, 160)}
    far = {"spider": {"okvqa": 40, "gqa": 30, "A_T": 171}}
    radar.radar("title", AXES, points(far), of("spider"), tmp_path / "r", rim=160)
    plot = drawn[-1].axes[0]
    assert drawn_line(plot, "SPIDER")[2] == 160 and "171" in [text.get_text() for text in plot.texts]


@pytest.mark.slow
def test_scores_relative_to_a_method_leave_out_where_it_has_none(table, tmp_path, drawn):
    options = {"rim": 160, "reference": "zero_shot"}
    radar.radar("title", AXES, points(LINES), of(*LINES), tmp_path / "r", **options)
    (plot,) = drawn[0].axes
    assert drawn_line(plot, "SPIDER") == pytest.approx([100 * 80 / 60, 100 * 60 / 50, 100 * 80 / 60])
    note = next(text.get_text() for text in plot.texts if "All axes" in text.get_text())
    assert "0 to 160 % of Zero-shot" in note and "Without A_T: Zero-shot has no score above 0" in note
    # Without the reference nothing can be said.
    radar.radar("title", AXES, points({"spider": LINES["spider"]}), of("spider"), tmp_path / "s", **options)
    files = radar.radars(table, tmp_path, scale="full_ft")
    assert files[0].stem == "fig4_of_full_ft_llava_flickr30k"


@pytest.mark.slow
def test_methods_with_missing_values_are_named_and_not_drawn(tmp_path, drawn):
    lines = {"full_ft": LINES["full_ft"], "spider": {"okvqa": 80, "gqa": np.nan}}
    radar.radar("title", AXES, points(lines), of("full_ft", "spider"), tmp_path / "r")
    legend = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert legend == ["Full FT", "SPIDER (missing)"]
    assert not drawn_line(drawn[0].axes[0], "SPIDER (missing)")
    assert radar.radar("empty", AXES, points({}), of("spider"), tmp_path / "empty")[0].exists()


def test_a_method_looks_the_same_in_every_figure():
    ids = [*METHODS_OF_ALL, "mine:Mine", "yours:Yours"]
    together = radar.styles(ids)
    for method in METHODS_OF_ALL:
        assert radar.styles([method])[method] == together[method] == radar.styles(["x:Y", method])[method]
    assert len(set(together.values())) == len(together)


# Machado, Oliveira, Fernandes 2009, severity 1, for linear RGB.
SIGHT = {
    "trichromat": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colour: str, sight) -> np.ndarray:
    """Return a colour as somebody sees it, in CIELAB."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(np.array(sight) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]) @ linear
    f = np.where((t := xyz / [0.9505, 1, 1.0888]) > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_no_two_methods_and_no_grid_line_look_alike_to_anybody(sight):
    colours = {method: radar.styles([method])[method].colour for method in METHODS}
    colours |= {"grid": "0.8", "ring": "0.75", "paper": "white"}
    seen = {name: lab(colour, SIGHT[sight]) for name, colour in colours.items()}
    close = [(a, b) for a, b in itertools.combinations(seen, 2)
             if np.linalg.norm(seen[a] - seen[b]) < 11 and not {a, b} <= {"grid", "ring", "paper"}]
    assert not close


def test_lines_can_be_told_apart_in_grey():
    """No two methods share a dash or a marker; the three that matter differ in grey by a visible step."""
    used = radar.styles([*METHODS, "mine", "yours"])
    assert len({str(style.dash) for style in used.values()}) == len(used)
    assert len({style.marker for style in used.values()}) == len(used)
    assert len({style.colour for style in used.values()}) == len(used)
    strong = [method for method, style in used.items() if style.emphasis]
    assert strong == ["zero_shot", "full_ft", "spider"]
    grey = sorted(np.dot(to_rgb(used[method].colour), (0.299, 0.587, 0.114)) for method in strong)
    assert min(np.diff(grey)) > 0.1


@pytest.mark.slow
def test_the_same_numbers_give_the_same_files(tmp_path):
    lines = points({"full_ft": LINES["full_ft"]})
    first, second = (radar.radar("t", AXES, lines, of("full_ft"), tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert not plt.get_fignums()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        radar.radar("t", AXES, points(LINES), of(*LINES), tmp_path / "file" / "r")


# -- text of users ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "Prices, US$ 5% to $10", "$\\frac{", "\\alpha_1^2 & #x ~", "a\nb\tc\x07", "100 % of $x$", "{}", "$", "\\",
])
def test_a_name_is_drawn_as_it_is_written(tmp_path, drawn, name):
    radar.radar(name, {**AXES, "A_T": name}, points(LINES), {**of(*LINES), "spider": name}, tmp_path / "r")
    plot = drawn[0].axes[0]
    written = " ".join(name.replace("\x07", "").split())
    assert plot.get_title().split() == written.split()
    assert (tmp_path / "r.pdf").stat().st_size > 1000


@pytest.mark.slow
def test_letters_that_no_font_has_are_spelled_out_with_one_note(tmp_path, drawn, monkeypatch, capsys):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_: [])
    monkeypatch.setattr(lettering, "_reported", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every box that it draws
        for stem in "rs":
            radar.radar("\u4e2d\u6587 \U0001f577\ufe0f", AXES, points(LINES), of(*LINES), tmp_path / stem)
    assert drawn[0].axes[0].get_title() == "[U+4E2D][U+6587] [spider]"
    said = capsys.readouterr().err
    assert said.count("Note: no font here has") == 1 and "Install a font" in said


@pytest.mark.slow
def test_letters_come_from_another_font_where_there_is_one(tmp_path, drawn, monkeypatch, capsys):
    # cmsy10 comes with matplotlib and has what DejaVu Sans lacks at this place.
    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    base, other = (set(font_manager.get_font(str(own / name)).get_charmap())
                   for name in ("DejaVuSans.ttf", "STIXGeneral.ttf"))
    letter = chr(min(code for code in other - base if unicodedata.category(chr(code)) in ("Ll", "Lo", "So", "Sm")))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_: [str(own / "STIXGeneral.ttf")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        radar.radar(f"a {letter}", AXES, points(LINES), of(*LINES), tmp_path / "r")
    assert drawn[0].axes[0].get_title() == f"a {letter}"
    assert "STIXGeneral" in drawn[0].axes[0].title.get_fontfamily() and not capsys.readouterr().err


@pytest.mark.slow
def test_the_numbers_of_a_figure_hold_no_formula(tmp_path):
    radar.radar("t", AXES, points(LINES), {**of(*LINES), "spider": "=1+1"}, tmp_path / "r")
    assert pd.read_csv(tmp_path / "r.csv").set_index("method").loc["spider", "name"] == "'=1+1"
