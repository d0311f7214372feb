"""In-context examples: solved questions of the same dataset in front of a question (`eval.examples`)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmark.core.errors import UserError
from benchmark.data.record import Record

SPLIT = "validation"
POOL = 200
"""Largest number of records of the split that examples are drawn from."""


def questions(
    count: int, split: str, limit: int | None, read: Callable[[str, int | None], Sequence[Record]]
) -> Sequence[Record]:
    """Return what a model is asked of a dataset: the evaluated records, with solved ones before each.

    Args:
        count: examples per question (`eval.examples`).
        split: that is evaluated.
        limit: of its records.
        read: returns the dataset's records, from a split and a limit.

    Raises:
        UserError: the validation split has too few records.
    """
    records = read(split, limit)
    return with_examples(records, read(SPLIT, POOL), count) if count else records


def with_examples(records: Sequence[Record], pool: Sequence[Record], count: int) -> list[Record]:
    """Put solved questions before each question, in the same text: its prompt and its answer, a line each.

    An example has no picture. It shows the form of an answer, which a model can forget while it still knows the content
    (arXiv 2501.13453). Examples are drawn for each question by its id, so that no single answer is there to copy.

    Args:
        records: the questions.
        pool: solved questions; a question is no example for itself.
        count: examples per question.

    Returns:
        The questions with longer prompts, in the same order.

    Raises:
        UserError: the pool has too few records.
    """
    asked = []
    for record in records:
        others = [example for example in pool if example.item_id != record.item_id]
        if len(others) < count:
            raise UserError(
                f"eval.examples={count}: {record.dataset} has {len(others)} records in its {SPLIT} split to draw them "
                "from. Ask for fewer."
            )
        chosen = random.Random(f"{record.dataset}/{record.item_id}").sample(others, count)
        shown = (f"{example.prompt}\n{_answer(example)}\n" for example in chosen)
        asked.append(replace(record, prompt="".join(shown) + record.prompt))
    return asked


def _answer(record: Record) -> str:
    """Return what a model would be trained to answer; where it is not trained, the most frequent reference."""
    return record.target or Counter(record.references).most_common(1)[0][0]
