"""The paper's summary metrics, Eqs. 9 and 10. Nothing is rounded here, so H and O use the unrounded A^S."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TypeVar

Number = TypeVar("Number", float, Decimal)


def a_s(values: Sequence[Number]) -> Number:
    """Return A^S, the mean score over the upstream datasets (Eq. 9).

    Args:
        values: one score per upstream dataset, in points (0-100).

    Returns:
        Their mean.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("A^S needs at least one upstream score")
    return sum(values) / len(values)  # type: ignore[return-value]  # for mypy, sum may return its start, the int 0


def h_average(a_s: Number, a_t: Number) -> Number:
    """Return H, the harmonic mean of source and target performance (Eq. 10); 0 if both are 0.

    Args:
        a_s: A^S in points, unrounded.
        a_t: A^T in points; CIDEr x 100 may exceed 100.

    Returns:
        2 A^S A^T / (A^S + A^T).
    """
    total = a_s + a_t
    return 2 * a_s * a_t / total if total else total


def o_average(a_s: Number, a_t: Number) -> Number:
    """Return O, the arithmetic mean of source and target performance (Eq. 10).

    Args:
        a_s: A^S in points, unrounded.
        a_t: A^T in points.

    Returns:
        (A^S + A^T) / 2.
    """
    return (a_s + a_t) / 2
