"""Answers that need no look at the picture, and the ceiling that annotators' disagreement leaves."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from benchmark.data.layout import letter
from benchmark.data.record import Record

Answers = dict[str, str]


def template(record: Record) -> Hashable:
    """Return what questions of one kind share: type, number of options, image or not.

    A dataset without question types is grouped by the first three words of its questions.
    """
    kind = record.meta.get("question_type") or " ".join(record.meta["question"].split()[:3]).lower()
    return kind, len(record.options or ()), record.image is not None


def _commonest(answers: Sequence[str]) -> str:
    """Return the most frequent answer; of equally frequent ones, the alphabetically first."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def majority(train: Sequence[Record], test: Sequence[Record]) -> Answers:
    """Answer each question with the commonest training answer of its template.

    Args:
        train: records with targets; when empty, the test answers stand in, which flatters the baseline.
        test: records to answer.

    Returns:
        Answers by item id; a template that training lacks gets the commonest training answer of all.
    """
    known = train or test
    by_template: dict[Hashable, list[str]] = defaultdict(list)
    for record in known:
        by_template[template(record)].append(_target(record))
    answer = {key: _commonest(answers) for key, answers in by_template.items()}
    overall = _commonest([_target(record) for record in known])
    return {record.item_id: answer.get(template(record), overall) for record in test}


def lookup(train: Sequence[Record], test: Sequence[Record]) -> Answers:
    """Answer each question with the commonest training answer to the very same question.

    Where there are options, what is looked up is the right option's text: the letters are shuffled, the texts
    are what a model could learn by heart.

    Args:
        train: records with targets.
        test: records to answer.

    Returns:
        Answers by item id; unseen questions, or options never right in training, get `majority`'s answer.
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
            # Any other letter is a wrong answer, whatever form the target has.
            answers[record.item_id] = _target(record) if best == _gold(record) else letter(best)
    return answers


def _target(record: Record) -> str:
    """Return the right answer; records that are never trained on may have only references."""
    return _commonest(record.references) if record.target is None else record.target


def _content(record: Record) -> str:
    """Return the text of the right answer: the option's text behind a letter, else the target."""
    return _target(record) if record.options is None else record.options[_gold(record)]


def _gold(record: Record) -> int:
    """Return the position of the right option."""
    return next(index for index in range(len(record.options or ())) if letter(index) == record.meta["gold"])


def each_reference(records: Sequence[Record]) -> list[Answers]:
    """Return answer sets that together try every reference of every item: an item's best is its ceiling."""
    longest = max(len(record.references) for record in records)
    return [
        {record.item_id: record.references[min(position, len(record.references) - 1)] for record in records}
        for position in range(longest)
    ]


def held_out(records: Sequence[Record], position: int) -> tuple[list[Record], Answers]:
    """Take one caption of each image as the answer and keep the others as references.

    Args:
        records: evaluation records with at least two captions each.
        position: which caption; images with fewer count from the start again.

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
    """Describe every image by the commonest training caption.

    Among equally frequent captions it is the one whose words occur in the most training captions, on average.

    Args:
        train: caption records; when empty, the test captions stand in.
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
    """Return one record per image: training has several with the same references."""
    return list({record.group: record for record in records}.values())


def shuffled_captions(records: Sequence[Record], seed: int = 0) -> Answers:
    """Describe every image by the first caption of another one: the images in hashed order, shifted by one.

    Args:
        records: evaluation records, at least two.
        seed: another seed, another order.

    Returns:
        Answers by item id.
    """
    order = sorted(records, key=lambda r: hashlib.sha256(f"{seed}\0{r.item_id}".encode()).hexdigest())
    others = order[1:] + order[:1]
    return {record.item_id: other.references[0] for record, other in zip(order, others, strict=True)}
