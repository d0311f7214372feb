"""Scores that the official scripts gave thousands of nasty answers; ours are the same, item by item.

The scripts, run once and not part of this repository: VQAEval of GT-Vision-Lab, its LAVIS copy and the M4C evaluator as
LoRASculpt has them, its OCR-VQA script (IconQA's is the same rule) and GQA conversion (GQA's eval.py then compares for
equality), LLaVA's eval_science_qa.py, pycocoevalcap's PTBTokenizer and Cider.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmark.core.errors import UserError
from eval import caption, exact, scienceqa, textvqa, vqa
from eval.score import score, value
from tests.eval import nasty
from tests.eval.records import record


@cache
def reference() -> dict[str, Any]:
    path = Path(__file__).with_name("reference.json.gz")
    return json.loads(gzip.decompress(path.read_bytes()))


def test_the_inputs_are_those_that_the_generator_draws():
    assert reference()["inputs"] == json.loads(json.dumps(nasty.everything(reference()["seed"])))


RULES = {
    "vqa_lavis": ("vqa", lambda item: vqa.lavis(item["prediction"], item["references"])),
    "vqa_official": ("vqa", lambda item: vqa.official(item["prediction"], item["references"])),
    "textvqa": ("vqa", lambda item: textvqa.score(item["prediction"], item["references"])),
    "exact_lower": ("exact", lambda item: exact.lower(item["prediction"], item["references"][0])),
    "gqa": ("exact", lambda item: exact.gqa(item["prediction"], item["references"][0])),
    "scienceqa": ("option", lambda item: scienceqa.score(item["prediction"], "ABCDE"[item["gold"]], item["options"])),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_score_is_the_scripts(rule):
    kind, ours = RULES[rule]
    items, theirs = reference()["inputs"][kind], reference()["scores"][rule]
    assert len(items) == len(theirs) >= 2000
    # Right, wrong and (for soft scores) partly right answers all occur, so that agreement means something.
    assert len({round(given, 6) for given in theirs}) == (5 if kind == "vqa" else 2)
    different = [(item, given) for item, given in zip(items, theirs, strict=True) if abs(ours(item) - given) > 1e-9]
    assert different == []


@pytest.mark.slow
def test_every_cider_is_pycocoevalcaps():
    items, theirs = reference()["inputs"]["caption"], reference()["scores"]["cider"]
    ours = caption.cider([item["prediction"] for item in items], [item["references"] for item in items])
    assert ours == pytest.approx(theirs, abs=1e-9) and len(theirs) == 400


def test_scienceqa_is_reported_in_total_and_for_items_with_an_image():
    from eval.score import by_type

    items = reference()["inputs"]["option"]
    records = [
        record(str(n), ("ABCDE"[item["gold"]],), options=("x",) * item["options"], **({"image": None} if n % 3 else {}))
        for n, item in enumerate(items)
    ]
    scored = score("scienceqa", records, {str(n): item["prediction"] for n, item in enumerate(items)})
    theirs = reference()["scores"]["scienceqa"]
    assert value(scored) == pytest.approx(100 * sum(theirs) / len(theirs))
    shown = [given for n, given in enumerate(theirs) if n % 3 == 0]
    assert by_type(scored)["image"] == {"value": pytest.approx(100 * sum(shown) / len(shown)), "n": len(shown)}


@pytest.mark.parametrize("metric", ["vqa_lavis", "vqa_official", "textvqa", "exact_lower", "gqa", "scienceqa", "cider"])
def test_a_partial_set_of_answers_is_refused(metric):
    records = [record(str(n), ("A",) * 10, options=("x", "y")) for n in range(3)]
    with pytest.raises(UserError, match="1 of 3 items of some_set have no answer"):
        score(metric, records, {"0": "A", "2": "A"})
