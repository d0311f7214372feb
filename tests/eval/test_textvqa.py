import pytest

from benchmark.core.errors import UserError
from eval import textvqa


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The man's hat, size 1,000?", "man 's hat size 1000"),
        ("Nous les Gosses", "nous les gosses"),
        ("STOP!", "stop"),
        ("16-07-2010", "16 07 2010"),
        ("7:45 a.m.", "7:45 am"),
        ("none", "0"),
        ("dont walk", "don't walk"),
        ("1,000 a/b", "1000 b"),  # the comma is gone before it could change how "/" is treated
        ("a\nb\tc", "b c"),
    ],
)
def test_processor(text, expected):
    assert textvqa.process(text) == expected


def test_references_pass_the_processor_too():
    assert textvqa.score("two", ["2"] * 5 + ["Two."] * 5) == 1
    assert textvqa.score("Coca-Cola", ["coca cola"] * 10) == 1


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_leave_one_out_score(agreeing, expected):
    assert textvqa.score("Exit", ["exit"] * agreeing + ["other"] * (10 - agreeing)) == pytest.approx(expected)


def test_other_than_ten_references_are_refused():
    with pytest.raises(UserError, match="10 annotator answers per question, got 9"):
        textvqa.score("x", ["x"] * 9)
