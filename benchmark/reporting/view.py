"""What a printed table says: numbers, marks and headings, shared by the terminal, Markdown, LaTeX and the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from benchmark.reporting.tables import MEASURES, OLDER, REFERENCE, Table

MISSING = "-"


@dataclass(frozen=True)
class Number:
    """One number of a method's row.

    Attributes:
        line: the line of the table's frame behind it.
        text: as printed.
        best: it is the best of the tuned methods.
        interval: bounds of its 95 % interval; None where it has none.
        difference: arrow, size and star of the difference from the reference; None in a column without arrows.
        paper: the paper's number, and how far ours is from it.
    """

    line: pd.Series
    text: str
    best: bool
    interval: tuple[float, float] | None
    difference: str | None
    paper: str


@dataclass(frozen=True)
class Row:
    """A method's row: its printed name, and metric -> number."""

    name: str
    numbers: dict[str, Number]


@dataclass(frozen=True)
class Block:
    """The rows of one model and target."""

    model: str
    target: str
    rows: list[Row]

    @property
    def heading(self) -> str:
        """What stands above the rows."""
        return f"{self.model}, fine-tuned on {self.target}"


def blocks(table: Table) -> list[Block]:
    """Return the rows of a table by model and target."""
    return [
        Block(model, target, [
            Row(name_of(lines.iloc[0]), {line["metric"]: number(table, line) for _, line in lines.iterrows()})
            for _, lines in block.groupby("method", sort=False)
        ])
        for model, target, block in table.blocks()
    ]


def heads(table: Table, papers: Iterable[str]) -> list[str]:
    """Return the headings of a table: scores, arrows beside the compared ones, then the paper's numbers.

    Args:
        table: the table.
        papers: metrics with a column for the paper's number.
    """
    names = table.columns()
    scores = (
        head for metric, name in names.items()
        for head in ([name, against(table)] if metric in table.compared() else [name])
    )
    return ["Method", *scores, *(f"Paper {names[metric]}" for metric in papers)]


def given_papers(table: Table) -> list[str]:
    """Return the metrics with a column for the paper's number that has one: a column of dashes says nothing."""
    given = set(table.frame.loc[table.frame["paper"].notna(), "metric"])
    return [metric for metric in table.paper_metrics() if metric in given]


def against(table: Table) -> str:
    """Return the heading of the arrows; with several references each row names its own."""
    return "vs FT" if set(table.frame["reference"]) <= {"", REFERENCE} else "vs"


def name_of(line: pd.Series) -> str:
    """Return the printed name of a line's method, with a mark if older code made its numbers."""
    return f"{line['method_name']} {OLDER}" if line["older_code"] else line["method_name"]


def decimals(value: float) -> str:
    """Return a value with two decimals, or '-' if there is none."""
    return MISSING if pd.isna(value) else f"{value:.2f}"


def number(table: Table, line: pd.Series) -> Number:
    """Return a line of a table's frame as it is printed."""
    scored = not pd.isna(line["low"]) and line["metric"] not in MEASURES
    return Number(
        line, _value(line, "value"), bool(line["best"]), (line["low"], line["high"]) if scored else None,
        difference(table, line) if line["metric"] in table.compared() else None, _paper(line),
    )


def difference(table: Table, line: pd.Series) -> str:
    """Return a difference like "↑3.20*", with the reference where rows have different ones."""
    if pd.isna(line["delta"]):
        return MISSING
    size = f"{abs(line['delta']):.2f}"
    arrow = "" if size == "0.00" else "↑" if line["delta"] > 0 else "↓"
    text = f"{arrow}{size}{'*' * bool(line['star'])}"
    return f"{text} {line['reference']}" if against(table) == "vs" else text


def _value(line: pd.Series, column: str) -> str:
    """Return a number with two decimals for scores, and as the measure says for others."""
    measure = MEASURES.get(line["metric"])
    if measure is None or pd.isna(line[column]):
        return decimals(line[column])
    return f"{line[column] * measure.scale:.{measure.digits}f}"


def _paper(line: pd.Series) -> str:
    """Return the paper's number, and how far ours is from it, like "55.16 (+1.20)"."""
    text = _value(line, "paper") + "?" * bool(line["paper_suspect"])
    if pd.isna(line["paper"]) or pd.isna(line["value"]):
        return text
    measure = MEASURES.get(line["metric"])
    gap = (line["value"] - line["paper"]) * (measure.scale if measure else 1)
    return f"{text} ({gap:+.{measure.digits if measure else 2}f})"
