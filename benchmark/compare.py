"""One results folder beside another: the same cells, how far apart their numbers are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UserError
from benchmark.scores import read_scores
from benchmark.store import Store


@dataclass(frozen=True)
class Gap:
    """The largest difference between two versions of a cell.

    Attributes:
        cell: id of the cell.
        metric: where the difference is, such as "coco A_T".
        ours: value in the first folder.
        theirs: value in the second.
        inside: whether all our values lie within their 95 % intervals.
        identical: whether every item has the same score.
    """

    cell: str
    metric: str
    ours: float
    theirs: float
    inside: bool
    identical: bool


def compare(ours: Path, theirs: Path) -> tuple[list[Gap], list[str]]:
    """Compare the cells that two results folders share.

    Args:
        ours: results folder.
        theirs: results folder.

    Returns:
        A gap per shared cell, and the ids of our cells that the other folder does not have.

    Raises:
        UserError: a folder has no finished cells, or a file is damaged.
    """
    mine, other = ({path.parent.name: path.parent for path in Store(root).cells.glob("*/scores.json")}
                   for root in (ours, theirs))
    for root, found in ((ours, mine), (theirs, other)):
        if not found:
            raise UserError(f"{root} has no finished cells. Name a results folder (it has a folder `cells`).")
    shared = sorted(mine.keys() & other.keys())
    return [_gap(name, mine[name], other[name]) for name in shared], sorted(mine.keys() - other.keys())


def _gap(name: str, ours: Path, theirs: Path) -> Gap:
    """Return the largest difference among all numbers that both versions of a cell have."""
    mine = dict(_numbers(read_scores(ours)))
    pairs = [(metric, mine[metric][0], value) for metric, value in _numbers(read_scores(theirs)) if metric in mine]
    metric, own, (value, _, _) = max(pairs, key=lambda pair: abs(pair[1] - pair[2][0]))
    inside = all(low - 1e-9 <= own <= high + 1e-9 for _, own, (_, low, high) in pairs)
    files = sorted(path.name for path in (theirs / "items").glob("*.gz") if (ours / "items" / path.name).is_file())
    identical = bool(files) and all(
        (ours / "items" / file).read_bytes() == (theirs / "items" / file).read_bytes() for file in files
    )
    return Gap(name, metric, own, value, inside, identical)


def _numbers(scores: dict) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Yield (metric, (value, low, high)) of scores.json."""
    for name, entry in scores["datasets"].items():
        yield name, (entry["value"], entry["low"], entry["high"])
    for target, averages in scores["averages"].items():
        for name, entry in averages.items():
            yield f"{target} {name}", (entry["value"], entry["low"], entry["high"])


def line(gaps: list[Gap], theirs: Path) -> str:
    """Return the comparison in one line."""
    if not gaps:
        return f"Nothing to compare: {theirs} has none of these cells with these settings."
    same, inside = sum(gap.identical for gap in gaps), sum(gap.inside for gap in gaps)
    text = f"Compared with {theirs}: {same} of {len(gaps)} cells have identical item scores"
    if same < len(gaps):
        worst = max(gaps, key=lambda gap: abs(gap.ours - gap.theirs))
        text += (
            f"; largest difference {worst.ours - worst.theirs:+.2f} ({worst.cell}, {worst.metric}); "
            f"{inside} of {len(gaps)} lie within the reference's 95 % intervals"
        )
    return text + "."
