"""From records and answers to one score per item, whatever the metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmark.core.errors import UserError, did_you_mean
from eval import caption, exact, scienceqa, textvqa, vqa

if TYPE_CHECKING:
    from benchmark.data.record import Record


@dataclass(frozen=True)
class ItemScore:
    """The score of one answer.

    Attributes:
        item_id: as in the record.
        group: image or scene that items share; the bootstrap resamples groups.
        score: 0..1; for CIDEr the score of the image, where 1 is 100 points and more is possible.
        type: kind of question, used for scores per kind; may be empty.
    """

    item_id: str
    group: str
    score: float
    type: str


def _scienceqa(record: Record, answer: str) -> float:
    return scienceqa.score(answer, record.references[0], len(record.options or ()))


_ITEM_SCORERS: dict[str, Callable[[Record, str], float]] = {
    "vqa_lavis": lambda record, answer: vqa.lavis(answer, record.references),
    "vqa_official": lambda record, answer: vqa.official(answer, record.references),
    "textvqa": lambda record, answer: textvqa.score(answer, record.references),
    "exact_lower": lambda record, answer: exact.lower(answer, record.references[0]),
    "gqa": lambda record, answer: exact.gqa(answer, record.references[0]),
    "scienceqa": _scienceqa,
}

METRICS: dict[str, str] = {
    "vqa_lavis": "VQA accuracy (LAVIS copy of VQAEval)",
    "vqa_official": "VQA accuracy (official VQAEval)",
    "textvqa": "TextVQA accuracy (EvalAI processor)",
    "exact_lower": "exact match, lower case",
    "gqa": "exact match, lower case, final periods dropped",
    "scienceqa": "accuracy of the parsed option",
    "cider": "CIDEr x 100 (pycocoevalcap)",
}


def _type(metric: str, record: Record) -> str:
    """Return the kind of question; ScienceQA is reported for items with and without an image."""
    if metric == "scienceqa":
        return "text" if record.image is None else "image"
    return str(record.meta.get("question_type", ""))


def score(metric: str, records: Sequence[Record], answers: Mapping[str, str]) -> list[ItemScore]:
    """Score the answers to all records.

    Args:
        metric: a key of `METRICS`.
        records: the evaluated items.
        answers: text by item id; entries for other items are ignored.

    Returns:
        One score per record, in the order of `records`.

    Raises:
        UserError: unknown metric, two records with the same id, or records without an answer.
    """
    if metric not in METRICS:
        raise UserError(f"Unknown metric {metric!r}.{did_you_mean(metric, METRICS)}")
    if len({record.item_id for record in records}) != len(records):
        raise UserError("Two records have the same item id; a score per item needs distinct ids.")
    missing = [record.item_id for record in records if record.item_id not in answers]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(records)} items of {records[0].dataset} have no answer, the first is "
            f"{missing[0]!r}. A score over a part is not a score: generate the missing answers first."
        )
    texts = [answers[record.item_id] for record in records]
    if metric == "cider":
        values = caption.cider(texts, [record.references for record in records])
    else:
        rule = _ITEM_SCORERS[metric]
        values = [rule(record, text) for record, text in zip(records, texts, strict=True)]
    return [
        ItemScore(record.item_id, record.group, value, _type(metric, record))
        for record, value in zip(records, values, strict=True)
    ]


def value(items: Sequence[ItemScore]) -> float:
    """Return the reported score: 100 times the mean over items."""
    return 100 * sum(item.score for item in items) / len(items)


def by_type(items: Sequence[ItemScore]) -> dict[str, dict[str, float | int]]:
    """Return {"type": {"value": points, "n": items}} for each kind of question, sorted by name."""
    kinds = {item.type for item in items} - {""}
    parts = {kind: [item for item in items if item.type == kind] for kind in sorted(kinds)}
    return {kind: {"value": value(part), "n": len(part)} for kind, part in parts.items()}
