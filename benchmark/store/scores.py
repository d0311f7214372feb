"""Item scores on disk and their summary with intervals. Reads answers/ and items/, writes scores.json."""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.core.files import canonical_json, write_atomic
from benchmark.data import Record
from benchmark.spec import CellSpec
from eval.format import format_stats
from eval.score import ItemScore, by_type
from eval.stats import AVERAGES, bootstrap, dataset_interval


def read_answers(path: Path) -> dict[str, str]:
    """Return item id -> answer of answers/<dataset>.jsonl.

    Raises:
        UserError: the file is missing or a line is damaged.
    """
    answers = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                    answers[entry["item_id"]] = entry["text"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise UserError(f"{path}, line {number} is damaged. Delete the file and run again.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {getattr(error, 'strerror', error)}. Run the cell again.") from error
    return answers


def write_items(path: Path, items: Sequence[ItemScore]) -> None:
    """Write items/<dataset>.jsonl.gz; equal scores give equal bytes."""
    text = "".join(canonical_json(dataclasses.asdict(item)) + "\n" for item in items)
    write_atomic(path, gzip.compress(text.encode(), mtime=0))


def read_items(path: Path) -> list[ItemScore]:
    """Read items/<dataset>.jsonl.gz.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [ItemScore(**json.loads(line)) for line in file]
    except (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error) as error:
        raise UserError(f"Cannot read {path}: {error}. Run `score` for this cell again.") from error


def summarise(
    cell: CellSpec, items: Mapping[str, Sequence[ItemScore]], records: Mapping[str, Sequence[Record]],
    answers: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """Return the content of scores.json.

    Args:
        cell: names its source sets and targets.
        items: item scores by dataset.
        records: the evaluated records by dataset.
        answers: item id -> text by dataset.

    Returns:
        {"datasets": {id: {metric, value, n, low, high, words_over_3, contains_gold, by_type}},
        "averages": {target: {"A_S" | "A_T" | "H" | "O": {value, low, high}}}}; points, CIDEr x 100.
    """
    datasets: dict[str, Any] = {}
    for dataset in cell.datasets:
        name = dataset.id
        interval = dataset_interval(name, {cell.seed: items[name]})
        datasets[name] = {
            "metric": dataset.metric, "n": len(items[name]), **dataclasses.asdict(interval),
            **format_stats(records[name], answers[name]), "by_type": by_type(items[name]),
        }
    upstream, averages = [dataset.id for dataset in cell.upstream], {}
    for target in cell.targets:
        used = {name: {cell.seed: items[name]} for name in (*upstream, target.id)}
        found = bootstrap(used, target.id, upstream)
        averages[target.id] = {name: dataclasses.asdict(found[name]) for name in AVERAGES}
    return {"datasets": datasets, "averages": averages}


def read_scores(folder: Path) -> dict[str, Any]:
    """Return the content of a finished cell's scores.json.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        entries = [*scores["datasets"].values(), *(one for of in scores["averages"].values() for one in of.values())]
        if not all(isinstance(entry[key], float | int) for entry in entries for key in ("value", "low", "high")):
            raise ValueError("a value or an interval is no number")
        return scores
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"Cannot read {folder / 'scores.json'}: {error}. Run the cell again.") from error


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """Write scores.json."""
    write_atomic(folder / "scores.json", json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
