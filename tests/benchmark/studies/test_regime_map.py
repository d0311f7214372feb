"""The regime map: what it measures, by hand, and what it draws."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from PIL import Image

from benchmark.core.errors import UserError
from benchmark.reporting import plots
from benchmark.studies import named_figures
from benchmark.studies.regime_map import RATE, ROWS, at, measure


def h(a_s, a_t):
    return 2 * a_s * a_t / (a_s + a_t)


def frame_of(scores):
    """Return sweep lines from (rows, rate, method) -> (A^S, A^T)."""
    lines = []
    for (rows, rate, method), (a_s, a_t) in scores.items():
        full = scores.get((rows, rate, "full_ft"))
        for metric, value in (("A_S", a_s), ("A_T", a_t), ("H", h(a_s, a_t))):
            delta = value - h(*full) if full and metric == "H" and method != "full_ft" else math.nan
            lines.append({
                ROWS: rows, RATE: rate, "model": "vila_pocket", "model_name": "VILA (pocket)", "target": "iconqa",
                "target_name": "IconQA", "method": method, "metric": metric, "value": value, "delta": delta,
                "delta_low": delta - 1, "delta_high": delta + 1,
            })
    return pd.DataFrame(lines)


@pytest.fixture
def scores():
    return {
        (512, 1e-4, "zero_shot"): (85.0, 30.0), (512, 1e-3, "zero_shot"): (85.0, 30.0),
        (512, 1e-4, "full_ft"): (80.0, 50.0), (512, 1e-3, "full_ft"): (60.0, 90.0),
        (512, 1e-4, "spider"): (84.0, 40.0), (512, 1e-3, "spider"): (76.0, 80.0),
    }


def test_a_line_says_what_is_forgotten_and_by_how_much_the_method_wins(scores):
    low, high = measure(frame_of(scores), "spider").to_dict("records")
    assert (low["rows"], low["learning_rate"], low["forgetting"]) == (512, 1e-4, 5.0)
    assert low["difference"] == pytest.approx(h(84, 40) - h(80, 50)) and high["forgetting"] == 25.0
    assert low["difference_high"] - low["difference_low"] == pytest.approx(2.0)
    # At Full FT's A^T of 50 the method's curve, from (40, 84) to (80, 76), keeps 82.
    assert low["matched"] == pytest.approx(h(82, 50) - h(80, 50))
    assert math.isnan(high["matched"])  # the method never learns 90


def test_an_unfinished_method_is_missing_and_an_unfinished_full_ft_leaves_the_point_out(scores):
    del scores[512, 1e-3, "full_ft"], scores[512, 1e-4, "spider"], scores[512, 1e-3, "spider"]
    (line,) = measure(frame_of(scores), "spider").to_dict("records")
    assert line["forgetting"] == 5.0 and math.isnan(line["difference"]) and line["matched"] is None


def test_without_the_untuned_model_the_difference_is_still_there(scores):
    del scores[512, 1e-4, "zero_shot"], scores[512, 1e-3, "zero_shot"]
    low, _ = measure(frame_of(scores), "spider").to_dict("records")
    assert pd.isna(low["forgetting"]) and low["difference"] == pytest.approx(h(84, 40) - h(80, 50))


@pytest.mark.parametrize(("learned", "curve", "kept"), [
    (50.0, [(40.0, 84.0), (80.0, 76.0)], 82.0), (40.0, [(40.0, 84.0), (80.0, 76.0)], 84.0),
    (39.9, [(40.0, 84.0), (80.0, 76.0)], None), (80.1, [(40.0, 84.0), (80.0, 76.0)], None), (50.0, [], None),
    # It learns more, then less again: the better of two ways to the same A^T counts.
    (60.0, [(40.0, 84.0), (80.0, 76.0), (50.0, 40.0)], 80.0), (60.0, [(50.0, 40.0), (80.0, 76.0), (40.0, 84.0)], 80.0),
])
def test_a_curve_is_read_on_straight_lines(learned, curve, kept):
    assert at(learned, curve) == kept


def test_it_is_drawn_with_the_papers_point_framed(scores, tmp_path):
    for (_, rate, method), value in list(scores.items()):
        scores[10_000, rate, method] = value
    frame = measure(frame_of(scores), "spider")
    panels = {"forgetting": "forgets", "difference": "difference", "matched": "matched"}
    paths = plots.maps(frame, panels, "A map", tmp_path / "regime", {"vila_pocket": (10_000, 1e-4)})
    assert [path.suffix for path in paths] == [".png", ".pdf", ".csv"]
    assert min(Image.open(paths[0]).size) > 300
    written = pd.read_csv(paths[2])
    assert len(written) == 4 and written["matched"].notna().sum() == 2
    unframed = plots.maps(frame, panels, "A map", tmp_path / "plain", {})
    assert unframed[0].read_bytes() != paths[0].read_bytes()


@pytest.mark.parametrize("methods", ["full_ft,spider", "zero_shot,full_ft", "zero_shot,full_ft,spider,dare"])
def test_it_compares_one_method_with_full_ft(methods):
    with pytest.raises(UserError, match="needs zero_shot, full_ft and one more method"):
        named_figures.run("regime", ["profile=pocket_10k", f"methods={methods}"])
