"""Verdicts follow the rule of docs/claims.md, whatever the numbers are."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from benchmark.reporting import claims
from benchmark.reporting.claims import CONTRADICTED, HOLDS, NOT_RUN, NOT_SHOWN, Difference, Evidence, judge
from benchmark.spec import ROOT
from tests.benchmark.table_rows import UPSTREAM, row


def difference(mean: float, error: float = 1.0) -> Difference:
    return Difference("x", mean, np.random.default_rng(0).normal(mean, error, 4000))


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ([9, 9], HOLDS), ([9, 0], NOT_SHOWN), ([9, -9], CONTRADICTED), ([0, -9], CONTRADICTED), ([], NOT_RUN),
        ([None, None], NOT_RUN), ([9, None], NOT_SHOWN), ([-9, None], CONTRADICTED),
    ],
)
def test_verdicts(means, verdict):
    found = judge("a", "b", "c", [None if mean is None else difference(mean) for mean in means])
    assert found.verdict == verdict
    assert len(found.lines) == sum(mean is not None for mean in means)


def test_intervals_are_corrected_for_the_number_of_differences():
    # 2.4 standard errors are enough alone (two-sided 5 %), not among twenty (0.25 %).
    assert judge("a", "b", "c", [difference(2.4)]).verdict == HOLDS
    many = judge("a", "b", "c", [difference(2.4)] * 20)
    assert many.verdict == NOT_SHOWN and "0 of 20" in many.text
    assert judge("a", "b", "c", [difference(4.0)] * 20).verdict == HOLDS
    # A missing difference is a comparison that was planned: it counts.
    alone, among = judge("a", "b", "c", [difference(2.4)]), judge("a", "b", "c", [difference(2.4), *[None] * 19])
    assert among.lines[0][2] < alone.lines[0][2] and among.verdict == NOT_SHOWN


def test_every_claim_of_the_document_has_a_verdict_and_no_other():
    text = (ROOT / "docs" / "claims.md").read_text()
    listed = [pair for pair in re.findall(r"^\| (\w+) \| (.+?) \(", text, re.MULTILINE) if pair[0] != "id"]
    controls = re.findall(r"one control that is not in the paper: \*\*(\w+)\*\*", text)
    ids = [name for name, *_ in claims.CLAIMS]
    assert [name for name, _ in listed] + controls == ids
    assert [claim for name, claim, *_ in claims.CLAIMS][: len(listed)] == [claim for _, claim in listed]


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    methods = ("zero_shot", "full_ft", "l2_reg", "grafting", "half_ft", "dare", "tailor", "spider")
    rows = {
        ("llava", target, method, None): row(method, target=target, n=300)
        for target in ("flickr30k", "coco") for method in methods
    }
    shards = " ".join(f"{2 + 0.01 * k:.3f}" for k in range(20))
    pid = pd.DataFrame([
        {"dataset": name, "role": role, "part": "tuned", "value": value, "by_shard": shards.replace("2.", digit)}
        for name, role, value, digit in (
            ("okvqa", "upstream", 2.1, "2."), ("flickr30k", "target", 4.1, "4."), ("coco", "target", 3.1, "3.")
        )
    ])
    return Evidence(rows, list(UPSTREAM), [("llava", "flickr30k"), ("llava", "coco")], pid={"llava": pid})


@pytest.mark.slow
def test_claims_read_the_right_rows_and_directions(evidence):
    found = {item.id: item for item in claims.verdicts(evidence)}
    # table_rows: Full FT 0.4 upstream and 0.9 on the target, zero-shot 0.9 and 0.3, SPIDER 0.85 on both.
    assert found["forgetting"].verdict == HOLDS and len(found["forgetting"].lines) == 2
    assert found["forgetting"].lines[0][1] > 30
    assert found["learning"].verdict == HOLDS and found["keeps"].verdict == HOLDS
    assert found["best_h"].verdict == HOLDS and len(found["best_h"].lines) == 12
    assert found["best_target"].verdict == CONTRADICTED
    assert found["second"].verdict == NOT_SHOWN and len(found["second"].lines) == 10
    assert found["pid"].verdict == HOLDS and found["pid"].lines[0][1] == pytest.approx(1.5)
    assert found["shift"].verdict == NOT_SHOWN  # the rows forget alike on both targets
    assert found["epochs"].verdict == found["layers"].verdict == found["interpolation"].verdict == NOT_RUN


def test_differences_pair_the_seeds_that_both_sides_have():
    places = {name: ("llava", "coco", name, None) for name in ("zero_shot", "full_ft", "half_ft", "spider")}
    seeds = {"zero_shot": (0,), "full_ft": (0, 1, 2), "half_ft": (3,), "spider": (1, 2)}
    found = Evidence({place: row(name, target="coco", seeds=seeds[name]) for name, place in places.items()},
                     list(UPSTREAM), [("llava", "coco")])
    one, other = found.pair(places["spider"], places["full_ft"])
    assert set(one.by_seed) == set(other.by_seed) == {1, 2}
    one, other = found.pair(places["zero_shot"], places["spider"])  # an untuned model goes with any seed
    assert set(one.by_seed) == {0} and set(other.by_seed) == {1, 2}
    assert found.pair(places["half_ft"], places["spider"]) is None
    assert found.above("H", "llava", "coco", "spider", "half_ft") is None


def test_rows_on_other_items_are_refused(evidence):
    rows = {**evidence.rows, ("llava", "coco", "spider", None): row("spider", target="coco", n=100)}
    with pytest.raises(claims.UserError, match="different items"):
        claims.verdicts(Evidence(rows, evidence.upstream, evidence.groups))


def test_sweeps_are_judged_at_every_point():
    rows = {
        ("llava", "flickr30k", method, ("train.epochs", value)): row(method, n=300)
        for method in ("full_ft", "spider") for value in (5, 10)
    }
    groups = [("llava", "flickr30k")]
    evidence = Evidence(
        rows, list(UPSTREAM), groups, points={"train.epochs": [5, 10]}, swept=["full_ft", "spider"],
        sweep_groups={"train.epochs": groups},
    )
    found = {item.id: item for item in claims.verdicts(evidence)}
    assert found["epochs"].verdict == HOLDS and len(found["epochs"].lines) == 2
    assert found["epochs_forget"].verdict == NOT_SHOWN and found["epochs_forget"].lines[0][1] == 0
