"""Baselines on sets small enough to work out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from benchmark.audit.baselines import (
    commonest_caption,
    each_reference,
    held_out,
    lookup,
    majority,
    shuffled_captions,
    template,
)
from benchmark.data import Record


def ask(number, question, target, kind="", options=None, gold=None, image="x.png"):
    """Return a record that asks a question."""
    return Record(
        str(number), "set", "test", image, question, target, (target,), options, str(number),
        {"question": question, "question_type": kind, "gold": gold},
    )


TRAIN = [
    ask(1, "Which colour is the cat?", "red", "colour"),
    ask(2, "Which colour is the dog?", "red", "colour"),
    ask(3, "Which colour is the dog?", "blue", "colour"),
    ask(4, "Which colour is the dog?", "blue", "colour"),
    ask(5, "Which colour is the ox?", "red", "colour"),
    ask(6, "How many cats?", "2", "count"),
]
TEST = [
    ask(7, "Which colour is the cat?", "blue", "colour"),
    ask(8, "Which colour is the dog?", "blue", "colour"),
    ask(9, "How many cats?", "2", "count"),
    ask(10, "Which shape is it?", "square", "shape"),
]


def test_majority_per_template():
    assert majority(TRAIN, TEST) == {"7": "red", "8": "red", "9": "2", "10": "red"}


def test_majority_of_the_test_answers_without_training_answers():
    assert majority([], TEST) == {"7": "blue", "8": "blue", "9": "2", "10": "square"}


def test_test_items_without_targets_are_answered_by_their_references():
    test = [dataclasses.replace(ask(number, "Q?", "a"), target=None, references=("b", "a", "b")) for number in (1, 2)]
    assert majority([], test) == {"1": "b", "2": "b"}


def test_lookup_by_question_falls_back_to_majority():
    assert lookup(TRAIN, TEST) == {"7": "red", "8": "blue", "9": "2", "10": "red"}


def test_equally_frequent_answers_are_taken_in_order():
    train = [ask(1, "Q?", "b"), ask(2, "Q?", "a")]
    assert lookup(train, [ask(3, "Q?", "c")]) == majority(train, [ask(3, "Q?", "c")]) == {"3": "a"}


def test_templates_without_types_are_first_words():
    texts = ("What is the dog?", "What IS the cat?", "Who is the cat?")
    one, two, three = (ask(1, text, "a") for text in texts)
    assert template(one) == template(two) != template(three)
    assert template(one) != template(dataclasses.replace(one, image=None))


def choose(number, question, options, gold, target=None):
    """Return a record with options."""
    return ask(number, question, target or gold, "shape", tuple(options), gold)


def test_lookup_knows_the_text_behind_the_letter():
    train = [
        choose(1, "Which shape?", ["circle", "square"], "B"),
        choose(2, "Which shape?", ["square", "circle"], "A"),
        choose(3, "Which shape?", ["star", "circle"], "B"),
    ]
    test = [
        choose(4, "Which shape?", ["square", "circle"], "A"),
        choose(5, "Which shape?", ["circle", "square"], "A"),
        choose(6, "Which shape?", ["oval", "heart"], "A"),
        choose(7, "Which shape?", ["star", "square"], "B", target="Answer: B"),
    ]
    assert lookup(train, test) == {"4": "A", "5": "B", "6": "B", "7": "Answer: B"}


def test_majority_of_letters_depends_on_the_number_of_options():
    train = [choose(1, "Q", "ab", "B"), choose(2, "Q", "abc", "C"), choose(3, "Q", "abc", "C")]
    assert majority(train, [choose(4, "Q", "ab", "A"), choose(5, "Q", "abc", "A")]) == {"4": "B", "5": "C"}


def captions(number, *texts):
    """Return a record with captions."""
    return Record(
        str(number), "set", "test", "x.png", "P", texts[0], texts, None, str(number), {"question": "P"}
    )


def test_each_reference_is_tried():
    records = [captions(1, "a", "b", "c"), captions(2, "d")]
    assert each_reference(records) == [{"1": "a", "2": "d"}, {"1": "b", "2": "d"}, {"1": "c", "2": "d"}]


@pytest.mark.parametrize(("position", "answer", "rest"), [(0, "a", ("b", "c")), (2, "c", ("a", "b"))])
def test_one_caption_is_held_out(position, answer, rest):
    records, answers = held_out([captions(1, "a", "b", "c")], position)
    assert answers == {"1": answer} and records[0].references == rest


def test_the_commonest_caption():
    again = captions(2, "two oxen", "some oxen")  # three training records of one image count once
    train = [captions(1, "a dog", "a cat"), captions(3, "a cat", "cats"), again, again, again]
    assert commonest_caption(train, [captions(8, "x"), captions(9, "x")]) == {"8": "a cat", "9": "a cat"}
    assert commonest_caption([], [captions(8, "x", "y"), captions(9, "y")]) == {"8": "y", "9": "y"}


def test_among_single_captions_the_one_with_the_commonest_words():
    train = [captions(1, "a red dog", "a cat sleeps"), captions(2, "a red cat", "two oxen")]
    assert commonest_caption(train, [captions(9, "x")]) == {"9": "a red cat"}


def test_shuffled_captions_are_never_the_own_ones():
    records = [captions(number, f"caption {number}") for number in range(50)]
    given = shuffled_captions(records)
    assert sorted(given.values()) == sorted(f"caption {number}" for number in range(50))
    assert all(given[str(number)] != f"caption {number}" for number in range(50))
    assert given != shuffled_captions(records, seed=1)
