"""In which regime a method beats Full FT: over the number of training rows and the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from eval.averages import h_average

ROWS, RATE = "train.limit", "train.learning_rate"


def measure(frame: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return one line per model, target, number of rows and learning rate.

    Args:
        frame: of `sweep.tidy` over ROWS and RATE, with zero_shot, full_ft and the method.
        method: what is compared with Full FT.

    Returns:
        model, model_name, target, target_name, rows, learning_rate and, in points,
        forgetting: the A^S that Full FT loses;
        difference: H of the method less H of Full FT, with difference_low and difference_high (95 %);
        matched: the same after the method's A^S is read at Full FT's A^T, on the method's own curve over the learning
        rate at this number of rows; missing where the curve does not reach that A^T.
        Lines without a finished Full FT are left out; what another method lacks is missing.
    """
    found = []
    for (model, target, rows), block in frame.groupby(["model", "target", ROWS], sort=False):
        values = block.pivot_table(index=["method", RATE], columns="metric", values="value")
        deltas = block[(block["method"] == method) & (block["metric"] == "H")].set_index(RATE)
        curve = list(values.loc[[method], ["A_T", "A_S"]].itertuples(index=False)) if method in values.index else []
        for rate in sorted(set(block.loc[block["method"] == "full_ft", RATE])):
            tuned = values.loc[("full_ft", rate)]
            untuned = values.loc[("zero_shot", rate)] if ("zero_shot", rate) in values.index else None
            kept = at(tuned["A_T"], curve)
            line = {
                "model": model, "model_name": block["model_name"].iloc[0], "target": target,
                "target_name": block["target_name"].iloc[0], "rows": rows, "learning_rate": rate,
                "forgetting": None if untuned is None else untuned["A_S"] - tuned["A_S"],
                "matched": None if kept is None else h_average(kept, tuned["A_T"]) - tuned["H"],
            }
            if rate in deltas.index:
                names = {"difference": "delta", "difference_low": "delta_low", "difference_high": "delta_high"}
                line |= {name: deltas.loc[rate, column] for name, column in names.items()}
            found.append(line)
    columns = ["model", "model_name", "target", "target_name", "rows", "learning_rate", "forgetting", "difference",
               "difference_low", "difference_high", "matched"]
    return pd.DataFrame(found, columns=columns)


def at(learned: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Return the largest A^S that a curve has at a value of A^T, on straight lines between neighbouring points.

    Args:
        learned: A^T, in points.
        curve: (A^T, A^S) in the order of the learning rate; it may turn back.

    Returns:
        A^S in points; None if the curve does not reach the value.
    """
    kept = [a_s for a_t, a_s in curve if a_t == learned]
    for (first_t, first_s), (second_t, second_s) in pairwise(curve):
        if min(first_t, second_t) < learned < max(first_t, second_t):
            kept.append(first_s + (second_s - first_s) * (learned - first_t) / (second_t - first_t))
    return max(kept, default=None)
