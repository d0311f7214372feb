import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.normalise import CONTRACTIONS, leave_one_out, process_digit_article, process_punctuation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red/blue", "red blue"),  # touches no space: becomes a space
        ("red, blue", "red blue"),  # touches a space: removed
        ("a/b / c", "ab  c"),  # one occurrence touches a space, so all are removed
        ("1,000 m/s", "1000 ms"),  # comma in a number: every mark is removed
        ("u.s.a.", "usa"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("no.5", "no.5"),  # a period before a digit stays whatever stands before it
        ("it's 5:30", "it's 5:30"),  # neither apostrophe nor colon is in the list
        ("100%", "100%"),
        ("what?!", "what  "),
        ("", ""),
    ],
)
def test_punctuation_rules(text, expected):
    assert process_punctuation(text) == expected


def test_only_32_periods_are_removed():
    assert process_punctuation("x" + "." * 40) == "x" + "." * 8


@given(st.text(alphabet=".<=0a5 ", max_size=60))
def test_period_rule_equals_the_published_pattern(text):
    """The published pattern types a look-behind as a look-ahead, and passes re.UNICODE (32) as count."""
    without_marks = text
    for mark in "=<":
        touches = f"{mark} " in text or f" {mark}" in text
        without_marks = without_marks.replace(mark, "" if touches else " ")
    published = re.compile(r"(?!<=\d)(\.)(?!\d)")
    assert process_punctuation(text) == published.sub("", without_marks, count=int(re.UNICODE))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two  dogs", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("an apple a day", "apple day"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),  # the table's own slip
        ("IVE", "ive"),  # "Ive" is in the table, but words are lower case by then
        ("the", ""),
        (" a\tb\n c ", "b c"),
    ],
)
def test_digit_article_rules(text, expected):
    assert process_digit_article(text) == expected


def test_contractions_table_has_the_published_entries():
    assert len(CONTRACTIONS) == 120
    assert CONTRACTIONS["couldnt've"] == CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert CONTRACTIONS["'ow'sat"] == "'ow's'at"
    assert CONTRACTIONS["y'all'dve"] == "y'all'd've"
    assert CONTRACTIONS["twas"] == "'twas"
    assert CONTRACTIONS["let's"] == "let's"
    assert "its" not in CONTRACTIONS


def test_leave_one_out_equals_the_definition():
    for annotators in (1, 2, 10):
        for matches in range(annotators + 1):
            answers = ["yes"] * matches + ["no"] * (annotators - matches)
            accuracies = []
            for left_out in range(annotators):
                others = answers[:left_out] + answers[left_out + 1 :]
                accuracies.append(min(1, others.count("yes") / 3))
            expected = sum(accuracies) / annotators
            assert leave_one_out(matches, annotators) == pytest.approx(expected, abs=1e-12)
    assert [round(leave_one_out(k, 10), 9) for k in range(6)] == [0, 0.3, 0.6, 0.9, 1, 1]
