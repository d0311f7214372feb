"""A results folder as three tables: `from benchmark import results; results.load(folder).cells`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.core.errors import UserError
from benchmark.core.files import user_path
from benchmark.spec import cell_of
from benchmark.store import cell_tables
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cells import Store, published_key, read_values, scored_datasets
from benchmark.store.scores import read_scores
from eval.stats import AVERAGES

DIGITS = 6  # of the numbers of a published log


@dataclass(frozen=True)
class Results:
    """The finished cells of a results folder. Each table is read when it is first used.

    Args:
        root: results folder of a run, or a published one.
    """

    root: Path

    @property
    def folders(self) -> list[Path]:
        """The folders of finished cells, by name."""
        return Store(self.root).finished()

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell and target; an untuned model has a row for every target that it was scored on.

        Columns: cell (its name), profile, model, method, target, seed; A_S, A_T, H, O in points, each with _low and
        _high, the 95 % interval; epochs, batch_size, learning_rate, last_layers (missing for untuned models); commit,
        seconds (all stages), peak_memory_mb and trained_parameters of the run. As JSON: spec (all settings), scores
        (every dataset's value with its interval, by type, and the averages), provenance (versions, machine, digests of
        item ids), weights and footprint (where they were measured), and drift if a cell has it. Published cells also
        have key, a digest of everything that the scores depend on.

        Raises:
            UserError: a file of a cell is damaged.
        """
        return cell_tables.frame(self.root, "cells") if self._is_published else cells_of(_by_name(self.folders))

    @cached_property
    def items(self) -> pd.DataFrame:
        """One row per cell, dataset and item.

        Columns: cell, dataset, item_id, group (the image or scene that items share), type (of the question; may be
        empty), score (0 to 1, or for captions the image's CIDEr; a dataset's value is 100 times the mean), answer.

        Raises:
            UserError: a file of a cell is damaged.
        """
        return cell_tables.frame(self.root, "items") if self._is_published else items_of(_by_name(self.folders))

    @cached_property
    def logs(self) -> pd.DataFrame:
        """One row per cell and optimizer step: cell, step, loss, learning_rate, grad_norm and the method's own columns.

        Raises:
            UserError: a training log is damaged.
        """
        if self._is_published:
            return cell_tables.frame(self.root, "logs")
        return pd.DataFrame(logs_of(_by_name(self.folders)))

    @property
    def _is_published(self) -> bool:
        return Store(self.root).is_published


def load(root: str | Path) -> Results:
    """Return the finished cells of a results folder as tables.

    Args:
        root: results folder of a run or a published one.

    Returns:
        Its tables `cells`, `items` and `logs`.

    Raises:
        UserError: the folder has no finished cells, or another schema version.
    """
    results = Results(user_path(root))
    if not results.folders:
        raise UserError(f"{root} has no finished cells. Name a results folder of a run or a published one.")
    return results


def write(root: Path, folders: Mapping[str, Path], keys: Mapping[str, str]) -> None:
    """Write finished cells as the three tables of a published folder; equal cells give equal bytes.

    Args:
        root: an existing folder.
        folders: name -> folder of a cell, of runs or published.
        keys: name -> key, for cells of runs.

    Raises:
        UserError: a cell's file is missing or damaged, or an item has no answer.
    """
    folders = dict(sorted(folders.items()))
    cells, items = cells_of(folders), items_of(folders)
    cells["key"] = [keys.get(name, key) for name, key in zip(cells.cell, cells.key, strict=True)]
    lost = items[items.answer.isna()].head(1)
    for line in lost.itertuples():
        raise UserError(f"{line.cell}: item {line.item_id} of {line.dataset} has no answer. Run the cell again.")
    logs = [
        {key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value for key, value in row.items()}
        for row in logs_of(folders)
    ]  # rounding halves the file
    cell_tables.write(root, cells, items, logs)


def cells_of(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Return `Results.cells` of some cells, by name."""
    frame = pd.DataFrame([line for name, folder in folders.items() for line in _cell(name, folder)])
    unused = [column for column in cell_tables.OPTIONAL if column in frame and frame[column].isna().all()]
    return frame.drop(columns=unused)


def items_of(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Return `Results.items` of some cells, by name."""
    frames = [frame for name, folder in folders.items() for frame in _items(name, folder)]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=cell_tables.COLUMNS["items"])
    return frame.astype({name: "category" for name in ("cell", "dataset")})


def logs_of(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the rows of `Results.logs` of some cells, by name."""
    return [row for name, folder in folders.items() for row in _log(name, folder)]


def _by_name(folders: list[Path]) -> dict[str, Path]:
    return {folder.name: folder for folder in folders}


def _cell(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    values, scores, made = read_values(folder), read_scores(folder), _provenance(folder)
    cell = cell_of(values, str(folder / "cell.yaml"))
    train = {} if cell.train is None else {
        key: getattr(cell.train, key) for key in ("epochs", "batch_size", "learning_rate", "last_layers")
    }
    about = {
        **{key: train.get(key) for key in ("epochs", "batch_size", "learning_rate", "last_layers")},
        "commit": made.get("commit"), "seconds": sum(made.get("seconds", {}).values()),
        "peak_memory_mb": made.get("peak_memory_mb"),
        "trained_parameters": sum(made.get("trained", {}).values()) or None,
        "spec": json.dumps(values, ensure_ascii=False, default=str),
        **{column: _text(folder / file) for file, column in cell_tables.FILES.items()}, "key": published_key(folder),
    }
    for target, averages in (scores["averages"] or {None: {}}).items():
        line = {
            "cell": name, "profile": cell.profile, "model": cell.model.id, "method": cell.method.id,
            "target": target, "seed": cell.seed,
        }
        for average in AVERAGES:
            found = averages.get(average, {})
            line |= {f"{average}{end}": found.get(key) for end, key in (("", "value"), ("_low", "low"),
                                                                        ("_high", "high"))}
        yield line | about


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}. Run the cell again.") from error


def _provenance(folder: Path) -> dict[str, Any]:
    try:
        made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        if not isinstance(made, dict) or not isinstance(made.get("seconds", {}), dict):
            raise ValueError("it does not describe how the cell was made")
        return made
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {folder / 'provenance.json'}: {error}. Run the cell again.") from error


def _items(name: str, folder: Path) -> Iterator[pd.DataFrame]:
    for dataset in scored_datasets(folder):
        items, answers = read_items(folder, dataset), read_answers(folder, dataset)
        yield pd.DataFrame({
            "cell": name, "dataset": dataset, "item_id": [item.item_id for item in items],
            "group": [item.group for item in items], "type": [item.type for item in items],
            "score": [item.score for item in items], "answer": [answers.get(item.item_id) for item in items],
        })


def _log(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "train.jsonl"
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield {"cell": name, **json.loads(line)}
    except FileNotFoundError:  # an untuned model, or a stale post-hoc cell
        return
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"Cannot read {path}: {error}. Run the cell again.") from error
