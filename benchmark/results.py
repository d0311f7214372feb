"""A results folder as three tables: `from benchmark import results; results.load(folder).cells`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.answers import read_answers
from benchmark.errors import UserError
from benchmark.files import canonical_json, read_text, user_path
from benchmark.scores import read_items, read_scores
from benchmark.spec import plain
from benchmark.store import Store, published_key, read_cell
from eval.stats import AVERAGES


@dataclass(frozen=True)
class Results:
    """The finished cells of a results folder; each table is read when it is first asked for.

    Args:
        root: results folder of a run, or a published one.
    """

    root: Path

    @property
    def folders(self) -> list[Path]:
        """The folders of finished cells, by name."""
        return [folder for folder in Store(self.root).all_cells() if (folder / "scores.json").is_file()]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One line per cell and target; an untuned model has a line for every target that it was scored on.

        Columns: cell (folder), profile, model, method, target, seed; A_S, A_T, H, O in points, each with _low and
        _high, the 95 % interval; epochs, batch_size, learning_rate, last_layers (missing for untuned models); spec
        (cell.yaml as JSON), key (published cells), commit, seconds (all stages) and peak_memory_mb of the run.

        Raises:
            UserError: a file of a cell is damaged.
        """
        return pd.DataFrame([line for folder in self.folders for line in _cell(folder)])

    @cached_property
    def items(self) -> pd.DataFrame:
        """One line per cell, test set and item.

        Columns: cell, dataset, item_id, group (image or scene that items share), type (of question, may be empty),
        score (0 to 1, for captions the image's CIDEr; a set's value is 100 times the mean), answer.

        Raises:
            UserError: a file of a cell is damaged.
        """
        frame = pd.DataFrame([line for folder in self.folders for line in _items(folder)])
        return frame.astype({name: "category" for name in ("cell", "dataset") if name in frame})

    @cached_property
    def logs(self) -> pd.DataFrame:
        """One line per cell and optimizer step: cell, step, loss, learning_rate, grad_norm and what the method logs.

        Raises:
            UserError: a training log is damaged.
        """
        return pd.DataFrame([line for folder in self.folders for line in _log(folder)])


def load(root: str | Path) -> Results:
    """Return the finished cells of a results folder as tables.

    Args:
        root: results folder of a run or a published one.

    Returns:
        Its tables `cells`, `items` and `logs`.

    Raises:
        UserError: the folder has no finished cells, or another schema.
    """
    results = Results(user_path(root))
    if not results.folders:
        raise UserError(f"{root} has no finished cells. Name a results folder (it has a folder `cells`).")
    return results


def _cell(folder: Path) -> Iterator[dict[str, Any]]:
    cell, scores, made = read_cell(folder), read_scores(folder), _provenance(folder)
    for target, averages in scores["averages"].items():
        line = {
            "cell": folder.name, "profile": cell.profile, "model": cell.model.id, "method": cell.method.id,
            "target": target, "seed": cell.seed,
        }
        for name in AVERAGES:
            line |= {name: averages[name]["value"], f"{name}_low": averages[name]["low"]}
            line[f"{name}_high"] = averages[name]["high"]
        for name in ("epochs", "batch_size", "learning_rate", "last_layers"):
            line[name] = None if cell.train is None else getattr(cell.train, name)
        yield {
            **line, "spec": canonical_json(plain(cell)), "key": published_key(folder), "commit": made.get("commit"),
            "seconds": sum(made.get("seconds", {}).values()), "peak_memory_mb": made.get("peak_memory_mb"),
        }


def _provenance(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {folder / 'provenance.json'}: {error}. Run the cell again.") from error


def _items(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "items").glob("*.jsonl.gz")):
        dataset = path.name.removesuffix(".jsonl.gz")
        answers = read_answers(folder, dataset)
        for item in read_items(path):
            yield {
                "cell": folder.name, "dataset": dataset, "item_id": item.item_id, "group": item.group,
                "type": item.type, "score": item.score, "answer": answers.get(item.item_id),
            }


def _log(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "train.jsonl"
    try:
        for line in read_text(path).splitlines():
            yield {"cell": folder.name, **json.loads(line)}
    except FileNotFoundError:  # an untuned model, or a post-hoc cell of older code
        return
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path}: {error}. Run the cell again.") from error
