"""The result of a data audit as tables, as Markdown and as a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmark.core.errors import counted

# In a usable captioning set, references of one image agree and captions of other images score low.
CAPTION_RANGES = {"one_reference": (70.0, 150.0), "commonest": (0.0, 15.0), "shuffled": (0.0, 30.0)}


@dataclass
class Report:
    """The result of an audit.

    Attributes:
        splits: one row per dataset and split: items, groups, images, scenes.
        faults: unreadable files, wrong counts, missing images or scene keys.
        duplicates: scenes that occur in more than one split or dataset.
        questions: one row per dataset, 0-100; a second row for the items with an image if others have none.
        captions: one row per captioning set, CIDEr x 100.
    """

    splits: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the data are sound. The baselines are for the reader to judge."""
        return not (self.faults or self.duplicates)


def tables(report: Report) -> list[Table]:
    """Return the report as rich tables."""
    made = [Table(title="Splits")]
    for column in ("dataset", "split", "compared by"):
        made[0].add_column(column)
    for column in ("items", "groups", "images", "distinct scenes"):
        made[0].add_column(column, justify="right")
    for row in report.splits:
        cells = (row[key] for key in ("dataset", "split", "keys", "items", "groups", "images", "scenes"))
        made[0].add_row(*map(str, cells))
    names = sorted({name for row in report.questions + report.captions for name in row["bases"]})
    if report.questions:
        table = Table(title="Questions: scores without the image, 0-100", caption=(
            "majority: most frequent training answer per question template (* from the test answers: no training "
            "split on disk); lookup: most frequent training answer to the same question; ceiling: the best single "
            "answer to every item; blind: the model on the images' mean colour"
        ))
        _columns(table, ["n", "majority", "lookup", "ceiling"], names)
        for row in report.questions:
            star = "" if row["learned_from"] == "train" else "*"
            table.add_row(
                row["dataset"] + (" (image items)" if row["items"] == "image" else ""), str(row["n"]),
                _points(row["majority"]) + star, _points(row["lookup"]), _points(row["ceiling"]),
                *_base_cells(row, names),
            )
        made.append(table)
    if report.captions:
        wanted = "; ".join(
            f"{name.replace('_', ' ')} {low:g}-{high:g}" for name, (low, high) in CAPTION_RANGES.items()
        )
        table = Table(title="Captions: CIDEr x 100", caption=(
            "one reference: each caption against the image's others; commonest: one caption for every image; "
            f"shuffled: correct captions on other images. A usable set has {wanted}; ! marks a value outside"
        ))
        _columns(table, ["n", *(name.replace("_", " ") for name in CAPTION_RANGES)], names)
        for row in report.captions:
            scores = [
                _points(row[name]) + ("" if row[name] is None or low <= row[name] <= high else " !")
                for name, (low, high) in CAPTION_RANGES.items()
            ]
            table.add_row(row["dataset"], str(row["n"]), *scores, *_base_cells(row, names))
        made.append(table)
    return made


def _columns(table: Table, columns: Iterable[str], bases: Iterable[str]) -> None:
    """Add the columns of a baseline table."""
    table.add_column("dataset")
    for column in [*columns, *(f"{name} {way}" for name in bases for way in ("blind", "sighted"))]:
        table.add_column(column, justify="right")


def _points(number: float | None) -> str:
    """Return a score with one decimal, '-' for none."""
    return "-" if number is None else f"{number:.1f}"


def _base_cells(row: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the cells of the models' columns."""
    return [_points(row["bases"].get(name, {}).get(way)) for name in names for way in ("blind", "sighted")]


def verdict(report: Report) -> str:
    """Return the faults and duplicates, or one line that says the audit passed."""
    lines = list(report.faults)
    if report.duplicates:
        shown = [f"  {' = '.join(each['places'])} ({each['key'][:60]})" for each in report.duplicates[:10]]
        more = len(report.duplicates) - len(shown)
        lines += [
            f"In more than one split or dataset: {counted(len(report.duplicates), 'scene')}.", *shown,
            *([f"  ... and {more} more"] if more else []),
            "No evaluation item may occur in training. Draw the data again.",
        ]
    if lines:
        return "\n".join(["AUDIT FAILED", *lines])
    scenes = sum(row["scenes"] for row in report.splits)
    return f"AUDIT PASSED: {scenes} scenes in {len(report.splits)} splits, none shared; all images readable."


def markdown(report: Report) -> str:
    """Return the report as Markdown tables."""
    parts = ["# Audit of the data"]
    for table in tables(report):
        heads = [str(column.header) for column in table.columns]
        rows = zip(*(list(column.cells) for column in table.columns), strict=True)
        parts.append(f"## {table.title}")
        parts.append("\n".join(
            ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *map(list, rows)]]
        ))
        if table.caption:
            parts.append(f"{table.caption}.")
    return "\n\n".join([*parts, "```\n" + verdict(report) + "\n```"]) + "\n"
