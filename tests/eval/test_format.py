import pytest

from eval.format import format_stats
from tests.eval.records import record


def test_long_answers_and_gold_strings_are_counted():
    records = [
        record("1", ("red",)),
        record("2", ("B",)),
        record("3", ("New  York",)),
        record("4", ("u.s.",)),
        record("5", ("dog", "cat")),
    ]
    answers = {
        "1": "The colour is RED.",  # four words, holds the gold word
        "2": "Bus and tram",  # "B" is not a word of it
        "3": "in new\nyork",
        "4": "u.s.",
        "5": "a small brown fox",  # long, holds none
    }
    found = format_stats(records, answers)
    assert found == {"words_over_3": pytest.approx(40), "contains_gold": pytest.approx(60)}


def test_empty_reference_is_contained_in_nothing():
    assert format_stats([record("1", ("",))], {"1": ""}) == {"words_over_3": 0, "contains_gold": 0}
