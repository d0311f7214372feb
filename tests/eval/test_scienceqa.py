import pytest

from eval.scienceqa import parse_option, score


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. Saturn", "B"),
        ("B.", None),  # too short for the "B. " rule
        ("B.Saturn", None),
        ("b", None),
        ("F", None),
        ("F. Saturn", None),
        ("The answer is C.", "C"),
        ("The answer is C", None),  # the pattern wants one more character, whichever
        ("The answer is C!", "C"),
        ("So. The answer is C. Yes.", "C"),
        ("The answer is A. The answer is B.", None),
        ("A. The answer is B.", "A"),
        ("The answer is Z.", "Z"),
        (" B", None),
        ("Saturn", None),
        ("", None),
    ],
)
def test_parse_option(text, letter):
    assert parse_option(text) == letter


@pytest.mark.parametrize(
    ("text", "gold", "n_options", "expected"),
    [
        ("B", "B", 2, 1),
        ("A", "B", 2, 0),
        ("C", "C", 2, 0),
        ("C", "C", 3, 1),
        ("The answer is Z.", "Z", 26, 0),
    ],
)
def test_option_must_exist(text, gold, n_options, expected):
    assert score(text, gold, n_options) == expected
