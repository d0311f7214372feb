"""A cell's item scores and answers: files of a run's folder, or rows of a published items.parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.store import scores
from benchmark.store.cell_tables import SETS, CellPath
from eval.score import ItemScore


def read_items(folder: Path, dataset: str) -> list[ItemScore]:
    """Return the item scores of a cell's dataset, in the order of the data.

    Args:
        folder: the cell's, in a store.
        dataset: id of the dataset.

    Raises:
        UserError: they are missing or damaged.
    """
    if not isinstance(folder, CellPath):
        return scores.read_items(folder / "items" / f"{dataset}{SETS['items']}")
    return [ItemScore(*values) for values in _published(folder, dataset, "item_id", "group", "score", "type")]


def read_answers(folder: Path, dataset: str) -> dict[str, str]:
    """Return item id -> answer of a cell's dataset.

    Args:
        folder: the cell's, in a store.
        dataset: id of the dataset.

    Raises:
        UserError: they are missing or damaged.
    """
    if not isinstance(folder, CellPath):
        return scores.read_answers(folder / "answers" / f"{dataset}{SETS['answers']}")
    return dict(_published(folder, dataset, "item_id", "answer"))


def _published(folder: CellPath, dataset: str, *columns: str) -> list[tuple[Any, ...]]:
    try:
        return folder.items(dataset, columns)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}. Restore the file (git checkout), or publish again.") from error
