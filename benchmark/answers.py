"""A cell's answers: plain as a run writes them, or packed as they are published."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from benchmark.errors import UserError
from benchmark.scores import read_items


def read_answers(folder: Path, dataset: str) -> dict[str, str]:
    """Return item id -> answer of a cell, from answers/<dataset>.jsonl or the packed .jsonl.gz.

    Raises:
        UserError: neither file is there, or one that is needed is damaged.
    """
    plain, packed = folder / "answers" / f"{dataset}.jsonl", folder / "answers" / f"{dataset}.jsonl.gz"
    path = plain if plain.is_file() else packed
    try:
        if path == plain:
            with open(path, encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
            return {row["item_id"]: row["text"] for row in rows}
        texts = read_packed(path)
        names = [item.item_id for item in read_items(folder / "items" / f"{dataset}.jsonl.gz")]
        return dict(zip(names, texts, strict=True))
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise UserError(f"Cannot read the answers in {path}: {error}. Run the cell again.") from error


def read_packed(path: Path) -> list[str]:
    """Return the lines of a packed file: an answer per item of items/<dataset>.jsonl.gz, in its order.

    Raises:
        OSError, EOFError, ValueError: it cannot be read, or a line is no JSON string.
    """
    texts = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            texts.append(json.loads(line))
            if not isinstance(texts[-1], str):
                raise ValueError(f"line {number} is no answer (a JSON string)")
    return texts


def pack(folder: Path, dataset: str) -> bytes:
    """Return a cell's answers packed, without ids, which items/ has, and without what only a resumed generation needs.

    Equal answers give equal bytes.

    Raises:
        UserError: see `read_answers`; or an item has no answer.
    """
    texts = read_answers(folder, dataset)
    names = [item.item_id for item in read_items(folder / "items" / f"{dataset}.jsonl.gz")]
    if lost := [name for name in names if name not in texts]:
        raise UserError(f"{folder}: no answer of {dataset} to item {lost[0]}. Run the cell again.")
    lines = "".join(json.dumps(texts[name], ensure_ascii=False) + "\n" for name in names)
    return gzip.compress(lines.encode(), mtime=0)
