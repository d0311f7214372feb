import pytest

from benchmark.core.errors import UserError
from eval.score import METRICS, ItemScore, by_type, score, value
from tests.eval.records import record


@pytest.mark.parametrize(
    ("metric", "item", "answer", "expected"),
    [
        ("vqa_lavis", record("1", ("two",) * 9 + ("pair",)), "two", 0),
        ("vqa_official", record("1", ("two",) * 9 + ("pair",)), "two", 1),
        ("textvqa", record("1", ("Exit",) * 3 + ("door",) * 7), "exit", 0.9),
        ("exact_lower", record("1", ("John Smith",)), "john smith", 1),
        ("gqa", record("1", ("yes",)), "Yes.", 1),
        ("scienceqa", record("1", ("B",), options=("x", "y")), "B. y", 1),
        ("scienceqa", record("1", ("C",), options=("x", "y")), "C", 0),
    ],
)
def test_each_metric_uses_its_rule(metric, item, answer, expected):
    assert score(metric, [item], {"1": answer})[0].score == pytest.approx(expected)


def test_cider_scores_images_in_record_order():
    records = [record("b", ("a red dog runs",)), record("a", ("one cat sleeps here",)), record("c", ("x y",))]
    items = score("cider", records, {"a": "one cat sleeps here", "b": "nothing", "c": "x y"})
    assert [item.item_id for item in items] == ["b", "a", "c"]
    assert items[0].score == 0
    assert items[1].score == pytest.approx(10)


def test_group_and_type_come_from_the_record():
    item = record("7", ("yes",), group="scene1", meta={"question_type": "verify"})
    items = score("gqa", [item], {"7": "no", "8": "ignored"})
    assert items == [ItemScore("7", "scene1", 0.0, "verify")]


def test_scienceqa_types_are_with_and_without_image():
    records = [record("1", ("A",), options=("x",)), record("2", ("A",), options=("x",), image=None)]
    assert [item.type for item in score("scienceqa", records, {"1": "A", "2": "B"})] == ["image", "text"]


def test_value_and_values_by_type():
    items = [ItemScore("1", "1", 1.0, "b"), ItemScore("2", "2", 0.5, "a"), ItemScore("3", "3", 0.0, "a")]
    assert value(items) == pytest.approx(50)
    assert by_type(items) == {"a": {"value": 25.0, "n": 2}, "b": {"value": 100.0, "n": 1}}
    assert list(by_type(items)) == ["a", "b"]
    assert by_type([ItemScore("1", "1", 1.0, "")]) == {}


def test_missing_answers_are_refused_with_count_and_example():
    records = [record(str(i), ("yes",)) for i in range(4)]
    with pytest.raises(UserError, match="2 of 4 items of some_set have no answer, the first is '1'"):
        score("gqa", records, {"0": "yes", "2": "yes"})


def test_an_empty_answer_counts_as_an_answer():
    assert score("gqa", [record("1", ("yes",))], {"1": ""})[0].score == 0


def test_bad_input_is_named():
    with pytest.raises(UserError, match="Unknown metric 'cidr'.*'cider'"):
        score("cidr", [], {})
    with pytest.raises(UserError, match="same item id"):
        score("gqa", [record("1", ("a",)), record("1", ("b",))], {"1": "a"})


def test_every_metric_has_a_description():
    names = {"vqa_lavis", "vqa_official", "textvqa", "exact_lower", "gqa", "scienceqa", "cider"}
    assert set(METRICS) == names
    assert all(METRICS.values())
