"""Records for scorer tests."""

from __future__ import annotations

from pathlib import Path

from benchmark.data.record import Record


def record(item_id: str, references: tuple[str, ...], **fields) -> Record:
    """Return a test record of which only the given fields matter."""
    defaults = {
        "dataset": "some_set", "split": "test", "image": Path("unused.png"), "prompt": "", "target": None,
        "options": None, "group": item_id, "meta": {},
    }
    return Record(item_id=item_id, references=references, **{**defaults, **fields})
