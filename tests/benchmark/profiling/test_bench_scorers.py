"""The bench of the scorers: real sizes, texts that need normalising, one message for a wrong setting."""

from __future__ import annotations

import pytest

from benchmark.core.errors import UserError
from benchmark.profiling import bench_scorers
from eval.score import METRICS, score


@pytest.mark.slow
@pytest.mark.parametrize("metric", [name for name in METRICS if name != "cider"])
def test_some_of_the_answers_are_right_and_some_are_wrong(metric):
    records, answers = bench_scorers.items(metric)
    assert len(records) == len(answers) == bench_scorers.ANSWERS
    some = records[:200]
    found = {item.score for item in score(metric, some, {r.item_id: answers[r.item_id] for r in some})}
    assert min(found) == 0 and max(found) == 1
    assert bench_scorers.items(metric) == (records, answers)


def test_captions_have_five_references():
    records, answers = bench_scorers.items("cider")
    assert len(records) == len(answers) == bench_scorers.CAPTIONS
    assert {len(record.references) for record in records} == {5}


def test_the_table_says_what_was_measured(tmp_path, capsys):
    out = tmp_path / "scorers.md"
    assert bench_scorers.main(["metrics=gqa,cider", f"out={out}"], lambda metric: (12, 1.5, 2.25)) == 0
    assert "| CIDEr x 100 (pycocoevalcap) | 12 | 1.50 | 2.25 | < 6 |" in out.read_text()
    assert out.read_text() == capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "reason"), [("metrics=cidr", "cider"), ("metric=gqa", "metrics"), ("x", "setting")]
)
def test_a_wrong_setting_is_one_message(override, reason):
    with pytest.raises(UserError, match=reason):
        bench_scorers.main([override])
