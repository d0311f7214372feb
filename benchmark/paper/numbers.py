"""The paper's numbers, read from results/published/*.csv, with suspect cells marked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pandas as pd

from benchmark.core.errors import UserError
from benchmark.core.project import shipped

FOLDER = shipped("results/published")

# Our model ids and the names in the files.
MODELS = {"vila15_3b": "vila1.5-3b", "llava15_7b": "llava-1.5-7b"}

# Family -> the paper's model, for models that are only like it.
LIKE = {"vila": "vila15_3b", "llava": "llava15_7b"}

# Tables with one value per row (model, target, method, metric).
RESULT_TABLES = ("table5", "table6")
# Rows of Tables 3 and 4 (VILA only) by our method; the others repeat Table 5.
SELECTIONS = {
    "Rand_gamma": "half_ft_elements", "I_gamma (Eq. 2c)": "spider_magnitude", "G_gamma (Eq. 4)": "spider_gradient",
    "G>I (Eq. 5)": "spider_idm",
}
# Structural numbers of Table 2: they do not depend on the scale.
MEASURES = ("memory", "learnable")

# Summary values are suspect if a value they are computed from is.
_SUMMARIES = ("A_S", "H", "O")


@dataclass(frozen=True)
class Published:
    """A number of the paper.

    Attributes:
        value: as printed, in points.
        suspect: why it is not a target, or an empty string. "duplicate": this cell, or one that it is computed
            from, equals another cell that it cannot plausibly equal.
    """

    value: float
    suspect: str


@cache
def load(table: str) -> pd.DataFrame:
    """Read one published table.

    Args:
        table: table2, table3, table4, table5 or table6.

    Returns:
        The rows; values are strings exactly as printed, empty cells are empty strings. Do not modify.

    Raises:
        UserError: the file is missing.
    """
    path = FOLDER / f"{table}.csv"
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"The paper's numbers are missing: {path}. Restore it with git checkout.") from None


@cache
def _values() -> dict[tuple[str, str, str, str], Published]:
    table = pd.concat([load(name) for name in RESULT_TABLES])
    columns = [table[name] for name in ("model", "target", "method", "metric", "value", "suspect")]
    values = {
        (model, target, method, metric): Published(float(value), suspect)
        for model, target, method, metric, value, suspect in zip(*columns, strict=True)
    }
    for row in load("table3").to_dict("records"):
        method = SELECTIONS.get(row["selection"])
        for metric in ("A_S", "A_T", "H"):
            if method is not None:
                values["vila1.5-3b", row["target"], method, metric] = Published(float(row[metric]), "")
    inherited = {key[:3]: entry.suspect for key, entry in values.items() if entry.suspect}
    return {
        key: Published(entry.value, entry.suspect or inherited.get(key[:3], "") * (key[3] in _SUMMARIES))
        for key, entry in values.items()
    }


@cache
def complexity() -> dict[str, dict[str, Published]]:
    """Return Table 2 by method: extra copies of the tuned weights ("memory") and learnable share ("learnable")."""
    found = {}
    for row in load("table2").to_dict("records"):
        copies = int(row["complexity"].removeprefix("O(").removesuffix("M)") or 1)
        share = float(row["learnable_ratio_percent"]) / 100
        found[row["method"]] = {"memory": Published(copies - 1, ""), "learnable": Published(share, "")}
    return found


def of_row(model: str, target: str, method: str, name: str) -> dict[str, Published]:
    """Return all numbers of the paper for one row.

    Args:
        model: our model id.
        target: dataset id.
        method: our method id.
        name: the method's printed name.

    Returns:
        Metric or measure -> number; scores only for the paper's own models, measures for every model.
    """
    model, found = MODELS.get(model, model), dict(complexity().get(name, {}))
    for (of_model, of_target, of_method, metric), number in _values().items():
        if (of_model, of_target) == (model, target) and of_method in (name, method):
            found[metric] = number
    return found


def lookup(model: str, target: str, method: str, metric: str) -> Published | None:
    """Return a number of Table 5 or 6.

    Args:
        model: our model id or the name in the files, "vila1.5-3b" or "llava-1.5-7b".
        target: flickr30k, coco, iconqa or scienceqa.
        method: the paper's name, such as "Full FT".
        metric: okvqa, textvqa, ocrvqa, gqa, A_S, A_T, H or O.

    Returns:
        The value, or None where the paper has none.
    """
    return _values().get((MODELS.get(model, model), target, method, metric))
