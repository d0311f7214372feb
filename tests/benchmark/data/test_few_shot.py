"""Solved questions in front of a question: their layout, their choice, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.core.errors import UserError
from benchmark.data import few_shot
from benchmark.data.record import Record


def record(name, prompt="Q?", target=None, references=("red",), dataset="gqa"):
    return Record(name, dataset, "test", Path("picture.png"), prompt, target, references, None, name)


POOL = [record(f"v{place}", f"Question {place}?", references=(f"answer {place}",)) for place in range(30)]


def test_an_example_is_a_prompt_and_its_answer_on_lines_of_their_own_and_the_question_stays_last():
    question = record("t1", "What is left?\nAnswer briefly.")
    (asked,) = few_shot.with_examples([question], POOL[:1], 1)
    assert asked.prompt == "Question 0?\nanswer 0\nWhat is left?\nAnswer briefly."
    assert (asked.item_id, asked.image, asked.references) == (question.item_id, question.image, question.references)
    (asked,) = few_shot.with_examples([question], POOL[:2], 2)
    assert sorted(asked.prompt.split("\n")[:4]) == ["Question 0?", "Question 1?", "answer 0", "answer 1"]
    assert asked.prompt.endswith("\nWhat is left?\nAnswer briefly.")


def test_the_answer_is_what_a_model_is_trained_on_or_else_what_most_people_said():
    said = ("blue", "navy", "navy", "blue", "navy")
    for target, answer in ((None, "navy"), ("dark blue", "dark blue")):
        (asked,) = few_shot.with_examples([record("t")], [record("v", "Colour?", target, said)], 1)
        assert asked.prompt == f"Colour?\n{answer}\nQ?"


def test_examples_follow_from_the_item_and_differ_between_items():
    questions = [record(f"t{place}") for place in range(60)]
    asked = few_shot.with_examples(questions, POOL, 1)
    assert few_shot.with_examples(questions[::-1], POOL, 1) == asked[::-1]  # whoever else is asked
    assert len({one.prompt for one in asked}) > 15
    other = few_shot.with_examples([record("t0", dataset="okvqa")], POOL, 3)[0]
    assert other.prompt != few_shot.with_examples([record("t0")], POOL, 3)[0].prompt


def test_a_question_is_no_example_for_itself():
    asked = few_shot.with_examples(POOL[:2] * 20, POOL[:2], 1)
    assert {one.prompt for one in asked} == {"Question 1?\nanswer 1\nQuestion 0?", "Question 0?\nanswer 0\nQuestion 1?"}


def test_more_examples_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"eval.examples=31: gqa has 30 records in its validation split"):
        few_shot.with_examples([record("t")], POOL, 31)


def test_without_examples_nothing_but_the_evaluated_records_is_read():
    read = []

    def reader(split, limit):
        read.append((split, limit))
        return POOL

    assert few_shot.questions(0, "test", 7, reader) is POOL and read == [("test", 7)]
    assert len(few_shot.questions(1, "test", None, reader)[0].prompt) > len(POOL[0].prompt)
    assert read[1:] == [("test", None), ("validation", few_shot.POOL)]
