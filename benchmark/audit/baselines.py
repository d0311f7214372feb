"""Baselines that never see the image, and the ceiling that disagreement among annotators sets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from benchmark.data.layout import letter
from benchmark.data.record import Record

Answers = dict[str, str]


def template(record: Record) -> Hashable:
    """Return the template of a question: its type, its number of options, whether it has an image.

    A dataset without question types is grouped by the first three words of its questions.
    """
    kind = record.meta.get("question_type") or " ".join(record.meta["question"].split()[:3]).lower()
    return kind, len(record.options or ()), record.image is not None


def _commonest(answers: Sequence[str]) -> str:
    """Return the most frequent answer; ties go to the alphabetically first."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def majority(train: Sequence[Record], test: Sequence[Record]) -> Answers:
    """Answer each question with the most frequent training answer of its template.

    Args:
        train: records with targets; if empty, the test answers are used, which flatters the baseline.
        test: records to answer.

    Returns:
        Answers by item id; a template without training records gets the most frequent training answer overall.
    """
    known = train or test
    by_template: dict[Hashable, list[str]] = defaultdict(list)
    for record in known:
        by_template[template(record)].append(_target(record))
    answer = {key: _commonest(answers) for key, answers in by_template.items()}
    overall = _commonest([_target(record) for record in known])
    return {record.item_id: answer.get(template(record), overall) for record in test}


def lookup(train: Sequence[Record], test: Sequence[Record]) -> Answers:
    """Answer each question with the most frequent training answer to the identical question.

    For multiple choice, the look-up uses the text of the correct option: letters are shuffled, so a model could
    memorise only the texts.

    Args:
        train: records with targets.
        test: records to answer.

    Returns:
        Answers by item id; new questions, and options that were never correct in training, get `majority`'s answer.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for record in train:
        seen[record.meta["question"]][_content(record)] += 1
    answers = majority(train, test)
    for record in test:
        counts = seen.get(record.meta["question"])
        if not counts:
            continue
        if (options := record.options) is None:
            answers[record.item_id] = min(counts, key=lambda answer: (-counts[answer], answer))
        elif max(counts[option] for option in options) > 0:
            best = options.index(max(options, key=counts.__getitem__))
            # Any other letter is a wrong answer in every form of the target.
            answers[record.item_id] = _target(record) if best == _gold(record) else letter(best)
    return answers


def _target(record: Record) -> str:
    """Return the right answer; records that are never trained on may have only references."""
    return _commonest(record.references) if record.target is None else record.target


def _content(record: Record) -> str:
    """Return the text of the correct answer: the text of the correct option, or else the target."""
    return _target(record) if record.options is None else record.options[_gold(record)]


def _gold(record: Record) -> int:
    """Return the position of the correct option."""
    return next(index for index in range(len(record.options or ())) if letter(index) == record.meta["gold"])


def each_reference(records: Sequence[Record]) -> list[Answers]:
    """Return answer sets that together try every reference of every item. An item's best score is its ceiling."""
    longest = max(len(record.references) for record in records)
    return [
        {record.item_id: record.references[min(position, len(record.references) - 1)] for record in records}
        for position in range(longest)
    ]


def held_out(records: Sequence[Record], position: int) -> tuple[list[Record], Answers]:
    """Take one caption of each image as the answer and keep the others as references.

    Args:
        records: evaluation records with at least two captions each.
        position: which caption; for images with fewer captions it wraps around.

    Returns:
        The records without that caption, and the answers.
    """
    rest, answers = [], {}
    for record in records:
        at = position % len(record.references)
        answers[record.item_id] = record.references[at]
        rest.append(dataclasses.replace(
            record, references=record.references[:at] + record.references[at + 1 :]
        ))
    return rest, answers


def commonest_caption(train: Sequence[Record], test: Sequence[Record]) -> Answers:
    """Describe every image by the most frequent training caption.

    Ties go to the caption whose words occur, on average, in the most training captions.

    Args:
        train: caption records; if empty, the test captions are used.
        test: records to answer.

    Returns:
        The same caption for every item id.
    """
    captions = [caption for group in _by_group(train or test) for caption in group.references]
    counts = Counter(captions)
    words = Counter(word for caption in counts for word in set(caption.lower().split()))

    def rank(caption: str) -> tuple[float, float, str]:
        used = caption.lower().split()
        return -counts[caption], -sum(words[word] for word in used) / max(1, len(used)), caption

    best = min(counts, key=rank)
    return {record.item_id: best for record in test}


def _by_group(records: Sequence[Record]) -> list[Record]:
    """Return one record per image; training has several records per image, with the same references."""
    return list({record.group: record for record in records}.values())


def shuffled_captions(records: Sequence[Record], seed: int = 0) -> Answers:
    """Describe every image by the first caption of another image: the next one in hashed order.

    Args:
        records: evaluation records, at least two.
        seed: seed of the order.

    Returns:
        Answers by item id.
    """
    order = sorted(records, key=lambda r: hashlib.sha256(f"{seed}\0{r.item_id}".encode()).hexdigest())
    others = order[1:] + order[:1]
    return {record.item_id: other.references[0] for record, other in zip(order, others, strict=True)}
