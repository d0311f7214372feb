import pytest

from eval import exact


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("John Smith", "john smith", 1),
        ("B", "b", 1),
        ("B.", "B", 0),
        (" B", "B", 0),
        ("Answer: B", "B", 0),
        ("", "", 1),
    ],
)
def test_lower_strips_nothing(prediction, reference, expected):
    assert exact.lower(prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Yes.", "yes", 1),
        ("yes...", "yes", 1),
        ("yes. ", "yes", 0),
        ("Yes", "Yes", 0),  # the reference is taken as it is
        ("u.s.", "u.s", 1),
        ("yes, it is", "yes", 0),
    ],
)
def test_gqa_drops_final_periods_of_the_prediction_only(prediction, reference, expected):
    assert exact.gqa(prediction, reference) == expected
