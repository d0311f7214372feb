"""Format compliance of answers: fine-tuning often loses the form of an answer rather than its content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmark.data.record import Record

MAX_WORDS = 3


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _contains(answer: str, gold: str) -> bool:
    """Return whether the answer contains the gold text as whole words; "Bus" does not contain option "B"."""
    gold = _plain(gold)
    return bool(gold) and re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", _plain(answer)) is not None


def format_stats(records: Sequence[Record], answers: Mapping[str, str]) -> dict[str, float]:
    """Describe the form of the answers to short-answer questions.

    Args:
        records: the evaluated items, at least one.
        answers: text by item id.

    Returns:
        words_over_3: percent of answers with more than three words; contains_gold: percent of answers that
        contain a reference as whole words, in any case. Both 0-100.
    """
    texts = [answers[record.item_id] for record in records]
    long = sum(len(text.split()) > MAX_WORDS for text in texts)
    found = sum(
        any(_contains(text, gold) for gold in set(record.references))
        for record, text in zip(records, texts, strict=True)
    )
    return {"words_over_3": 100 * long / len(records), "contains_gold": 100 * found / len(records)}
