"""What each metric needs from a record, so that a fault is reported before training rather than after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval.scienceqa import OPTIONS
from eval.textvqa import ANNOTATORS

if TYPE_CHECKING:
    from benchmark.data.record import Record


def lacking(metric: str, record: Record) -> str | None:
    """Return why a metric cannot score a record; None if it can.

    Args:
        metric: a key of `eval.score.METRICS`.
        record: an item of an evaluation split.
    """
    count = len(record.references)
    if metric == "textvqa" and count != ANNOTATORS:
        return f"TextVQA accuracy is a mean over {ANNOTATORS} annotators, and the question has {count} answers"
    if count == 0:
        return f"the metric {metric} needs at least one reference, got none"
    if metric == "scienceqa":
        letters = OPTIONS[: len(record.options or ())]
        if record.references[0] not in letters:
            wanted = f"one of {', '.join(letters)}" if letters else "an option's letter, and the item has no options"
            return f"the metric scienceqa needs {wanted} as the reference, got {record.references[0]!r}"
    return None
