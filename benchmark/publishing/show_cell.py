"""One cell on one screen."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError, printable
from benchmark.core.files import SUMS
from benchmark.reporting import weight_log
from benchmark.spec import CellSpec, at_root, sees_sources
from benchmark.store.answers import read_answers
from benchmark.store.cells import Store, read_cell
from benchmark.store.scores import read_scores

ANSWERS = 3


def describe(store: Store, name: str) -> str:
    """Return settings, diagnostics, stages, scores and a few answers of a cell, and plot its selection by layer.

    Args:
        store: the results.
        name: the name of the cell's folder, or a unique prefix.

    Raises:
        UserError: no cell or several cells match.
    """
    folder = store.find(name)
    cell, status = read_cell(folder), store.status(folder)
    lines = [folder.name, f"state     {status['state']} ({status.get('updated', '')})", f"model     {cell.model.name}"]
    lines.append(f"method    {cell.method.id} {json.dumps(dict(cell.method.params))}")
    if cell.train is not None:
        train = cell.train
        lines += ["sources   training samples of the source sets were seen"] * sees_sources(cell)
        lines.append(f"training  {cell.target}, seed {cell.seed}, {train.epochs} epochs, rate {train.learning_rate:g}")
    if trained := _provenance(folder).get("trained"):
        parts = ", ".join(f"{part} {count:,}" for part, count in trained.items())
        lines.append(f"trained   {sum(trained.values()):,} parameters: {parts}")
    lines += _weights(store, cell, folder)
    for stage, entry in status["stages"].items():
        lines.append(f"stage     {stage:<22} {entry['state']:<8} {entry.get('seconds', '')} s  key {entry['key'][:8]}")
    if status["error"]:
        lines.append(f"error     {status['error']['message']}\n{status['error']['traceback']}")
    if (folder / "scores.json").is_file():
        lines += _scores(folder)
    for path in sorted((folder / "answers").glob("*.jsonl")):
        texts = [str(text) for text in itertools.islice(read_answers(folder, path.stem).values(), ANSWERS)]
        lines.append(f"answers   {path.stem}: {' | '.join(texts)}")
    return printable("\n".join(lines))


def _weights(store: Store, cell: CellSpec, folder: Path) -> list[str]:
    """Summarise the weight statistics of the log, and plot where the weights moved."""
    rows = weight_log.read(folder / "train.jsonl")
    title = f"{cell.model.name}, {cell.method.id}, {cell.target}"
    # A published folder has digests of its files, so the figure goes elsewhere.
    place = at_root("build") if (store.root / SUMS).is_file() else store.root / "figures"
    try:
        picture = weight_log.draw(rows, title, place / f"selected_{folder.name}")
    except UserError as error:
        return [*weight_log.describe(rows), f"          not drawn: {error}"]
    return weight_log.describe(rows) + ([f"          drawn in {picture}"] if picture else [])


def _odd(folder: Path) -> dict[str, str]:
    """Return dataset -> text with the number of empty and unfinished answers, if there are any."""
    items = _provenance(folder).get("items") or {}
    try:
        counts = {name: {key: split.get(key, 0) for split in splits.values() for key in ("empty", "unfinished")
                         if key in split} for name, splits in items.items()}
    except AttributeError:
        return {}
    return {
        name: "".join(f", {count} {key}" for key, count in found.items() if count) for name, found in counts.items()
    }


def _provenance(folder: Path) -> dict[str, Any]:
    """Return what provenance.json says, or nothing if it cannot be read."""
    try:
        content = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _scores(folder: Path) -> list[str]:
    scores, odd, lines = read_scores(folder), _odd(folder), []
    for name, entry in scores["datasets"].items():
        lines.append(
            f"score     {name:<16} {entry['value']:6.2f} ({entry['low']:.2f} to {entry['high']:.2f}), n {entry['n']}, "
            f"{entry['metric']}, {entry['words_over_3']:.0f} % over 3 words, "
            f"{entry['contains_gold']:.0f} % contain the gold{odd.get(name, '')}"
        )
    for target, averages in scores["averages"].items():
        numbers = ", ".join(f"{name.replace('_', '^')} {entry['value']:.2f}" for name, entry in averages.items())
        lines.append(f"averages  {target}: {numbers}")
    return lines
