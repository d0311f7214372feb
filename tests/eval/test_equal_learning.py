"""Readings of a curve agree with a plain loop over its segments, and draws do not influence each other."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from eval.equal_learning import STEPS, area, kept


def column(*values):
    return np.array(values, dtype=float)[:, None]


def by_hand(points, level):
    """The largest A^S of the points at or above a level, and of the crossings, in exact arithmetic."""
    heights = [s for t, s in points if t >= level]
    for (t0, s0), (t1, s1) in pairwise(points):
        if min(t0, t1) < level < max(t0, t1):
            heights.append(s0 + Fraction(level - t0) / (t1 - t0) * (s1 - s0))
    return max(heights, default=None)


def test_a_level_between_two_points_is_read_on_the_line_between_them():
    assert kept(column(0, 10, 20), column(90, 80, 40), np.array([15.0])) == 60
    assert kept(column(0, 10, 20), column(90, 80, 40), np.array([20.0])) == 40
    assert np.isnan(kept(column(0, 10, 20), column(90, 80, 40), np.array([20.5])))


def test_a_point_that_learned_more_and_kept_more_counts_at_the_lower_level():
    assert kept(column(0, 10, 20), column(50, 30, 45), np.array([10.0])) == 45


def test_a_curve_that_turns_back_is_read_where_it_kept_most():
    assert kept(column(0, 30, 10), column(90, 80, 20), np.array([20.0])) == pytest.approx(90 - 10 * 2 / 3)


def test_one_point_is_a_curve():
    assert kept(column(5), column(80), np.array([5.0])) == 80
    assert np.isnan(kept(column(5), column(80), np.array([6.0])))


def test_random_curves_agree_with_the_loop_in_every_draw():
    random = np.random.default_rng(0)
    for points in (2, 3, 6, 7):
        learned, retained = random.integers(0, 40, (2, points, 50))
        levels = random.integers(0, 45, (4, 50)) + 0.5 * random.integers(0, 2, (4, 50))
        got = kept(learned.astype(float), retained.astype(float), levels)
        for draw in range(50):
            curve = [(int(t), int(s)) for t, s in zip(learned[:, draw], retained[:, draw], strict=True)]
            for place in range(4):
                expected = by_hand(curve, Fraction(levels[place, draw]))
                value = got[place, draw]
                assert np.isnan(value) if expected is None else value == pytest.approx(float(expected), abs=1e-9)


def test_the_area_is_the_mean_over_the_levels_with_nothing_where_none_is_reached():
    half = area(column(0, 10), column(80, 80), np.array([0.0]), np.array([20.0]))
    assert half == pytest.approx(40, abs=80 / STEPS)
    line = area(column(0, 20), column(80, 40), np.array([0.0]), np.array([20.0]))
    assert line == pytest.approx(60, abs=1e-9)
    assert np.isnan(area(column(0, 10), column(80, 80), np.array([20.0]), np.array([20.0])))
