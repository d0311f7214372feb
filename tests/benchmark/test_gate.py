"""The zero-shot gate: who it is for, what it says, when it stops."""

from __future__ import annotations

import pytest

from benchmark import gate
from benchmark.errors import UserError

UPSTREAM = ("okvqa", "textvqa", "ocrvqa", "gqa")
NAMES = {"llava15_7b": "LLaVA-1.5-7B", "vila15_3b": "VILA1.5-3B"}
PAPER = {"llava15_7b": (58.00, 58.25, 66.20, 61.93), "vila15_3b": (55.60, 60.30, 68.20, 61.47)}


def scores(**changes: float) -> dict[str, dict[str, float]]:
    found = {model: dict(zip(UPSTREAM, values, strict=True)) for model, values in PAPER.items()}
    found["llava15_7b"] |= changes
    return found


def test_the_papers_own_scores_pass():
    text = gate.settle(gate.check(NAMES, scores(), UPSTREAM), "stop")
    assert "Zero-shot gate passed: 8 scores" in text and "LLaVA-1.5-7B" in text and text.count("  ok\n") == 8


def test_a_point_is_the_limit():
    assert not any(item.off for item in gate.check(NAMES, scores(gqa=60.93, okvqa=59.00), UPSTREAM))
    assert [item.dataset for item in gate.check(NAMES, scores(gqa=60.92), UPSTREAM) if item.off] == ["gqa"]


@pytest.mark.parametrize(("changes", "cause"), [
    ({"textvqa": 46.0}, "no OCR tokens"), ({"okvqa": 0.5}, "right instead of left padding"),
    ({"ocrvqa": 64.5}, "another sample of 2,000"), ({"okvqa": 62.0}, "lemmatised"), ({"gqa": 58.0}, "crop for pad"),
    ({"textvqa": 56.0}, "crop for pad"),
])
def test_it_stops_with_a_table_and_a_cause(changes, cause):
    checks = gate.check(NAMES, scores(**changes), UPSTREAM)
    with pytest.raises(UserError, match="1 of 8 zero-shot scores are off by more than 1 point") as caught:
        gate.settle(checks, "stop")
    assert cause in str(caught.value) and "GATE=warn" in str(caught.value)
    assert f"{next(iter(changes.values())):.2f}" in str(caught.value)
    assert "Going on, since gate=warn." in gate.settle(checks, "warn")


def test_it_is_for_the_papers_models_only():
    assert gate.applies(["llava15_7b"], UPSTREAM) and not gate.applies(["llava_pocket", "mine"], UPSTREAM)
    assert gate.check({"mine": "Mine"}, {"mine": {"gqa": 1.0}}, UPSTREAM) == []
