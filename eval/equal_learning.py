"""What a method keeps where it has learned a given amount, read from its curve of (A^T, A^S).

A curve has one point per strength of a method (learning rate, share of the change, penalty), from the untuned model
onwards. Every function takes a bootstrap distribution along the last axis, so readings of two methods are paired when
both were resampled alike (`eval.stats.resample`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STEPS = 100  # of the integral below a curve


def kept(learned: Array, retained: Array, level: Array) -> Array:
    """Return the largest A^S that a curve has where A^T is at least a level; straight lines join neighbouring points.

    Args:
        learned: A^T in points, (points, draws), in the order of the strength; the curve may turn back.
        retained: A^S in points, (points, draws).
        level: A^T in points, (draws,) or (levels, draws).

    Returns:
        A^S in the shape of `level`; NaN where the curve does not reach the level.
    """
    level = np.asarray(level, dtype=float)[..., None, :]  # (..., 1, draws) against (points, draws)
    best = np.where(learned >= level, retained, -np.inf).max(axis=-2)
    start, step = learned[:-1], np.diff(learned, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (level - start) / step
        crossing = retained[:-1] + share * np.diff(retained, axis=0)
    crossing = np.where((share > 0) & (share < 1), crossing, -np.inf).max(axis=-2, initial=-np.inf)
    best = np.maximum(best, crossing)
    return np.where(np.isfinite(best), best, np.nan)


def area(learned: Array, retained: Array, start: Array, end: Array) -> Array:
    """Return the mean of `kept` between two levels of A^T, with 0 where the curve does not reach a level.

    Args:
        learned: see `kept`.
        retained: see `kept`.
        start: A^T of the untuned model, (draws,).
        end: A^T of the reference, (draws,).

    Returns:
        Points of A^S, (draws,); NaN where the reference has learned nothing.
    """
    shares = (np.arange(STEPS) + 0.5)[:, None] / STEPS
    heights = np.nan_to_num(kept(learned, retained, start + shares * (end - start)), nan=0.0)
    return np.where(end > start, heights.mean(axis=0), np.nan)
