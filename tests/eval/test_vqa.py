import pytest

from eval import vqa

TEN = ["surf"] * 4 + ["surfing"] * 3 + ["sea"] * 2 + ["wave"]


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("surf", 1), ("Surfing.", 0.9), ("the sea", 0.6), ("wave\n", 0.3), ("sand", 0)],
)
@pytest.mark.parametrize("rule", [vqa.lavis, vqa.official])
def test_soft_accuracy(rule, prediction, expected):
    assert rule(prediction, TEN) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "references", "lavis", "official"),
    [
        # Number words: LAVIS turns the prediction into a digit but never the references.
        ("two", ["two"] * 9 + ["pair"], 0, 1),
        ("2", ["2"] * 9 + ["two"], 1, 1),
        ("2", ["two"] * 9 + ["2"], 0.3, 1),
        # Articles and case in references.
        ("the dog", ["the dog"] * 9 + ["cat"], 0, 1),
        ("dog", ["Dog"] * 9 + ["cat"], 0, 1),
        # Unanimous references: LAVIS still normalises the prediction, the official rule compares raw text.
        ("Yes", ["yes"] * 10, 1, 0),
        ("yes.", ["yes"] * 10, 1, 0),
        ("t-shirt", ["t-shirt"] * 10, 0, 1),
        ("t-shirt", ["t-shirt"] * 9 + ["shirt"], 1, 1),
        ("yes", [" yes\n"] * 10, 0, 1),
        # Contractions are repaired in the prediction only, under LAVIS.
        ("dont", ["don't"] * 6 + ["no"] * 4, 1, 1),
        ("dont", ["dont"] * 6 + ["no"] * 4, 0, 1),
        # References that differ in punctuation only become equal.
        ("ping pong", ["ping-pong"] * 5 + ["ping pong"] * 5, 1, 1),
    ],
)
def test_rules_differ_where_the_scripts_do(prediction, references, lavis, official):
    assert vqa.lavis(prediction, references) == pytest.approx(lavis)
    assert vqa.official(prediction, references) == pytest.approx(official)


def test_okvqa_style_annotations_give_0_or_06_or_1():
    """Five annotators, each answer doubled to ten: one annotator's word scores 0.6, two's 1."""
    references = ["race"] * 2 + ["sport"] * 4 + ["ride"] * 2 + ["motocross"] * 2
    assert vqa.lavis("race", references) == pytest.approx(0.6)
    assert vqa.lavis("sport", references) == 1
    assert vqa.lavis("walk", references) == 0


def test_references_are_not_changed():
    references = ["a-b"] * 5 + ["c"] * 5
    vqa.lavis("a", references)
    vqa.official("a", references)
    assert references == ["a-b"] * 5 + ["c"] * 5
