"""The zero-shot gate: who it is for, what it says, when it stops."""

from __future__ import annotations

import pytest

from benchmark import cli
from benchmark.core.errors import UserError
from benchmark.paper import zero_shot_gate
from tests.benchmark import fakes

UPSTREAM = ("okvqa", "textvqa", "ocrvqa", "gqa")
NAMES = {"llava15_7b": "LLaVA-1.5-7B", "vila15_3b": "VILA1.5-3B"}
PAPER = {"llava15_7b": (58.00, 58.25, 66.20, 61.93), "vila15_3b": (55.60, 60.30, 68.20, 61.47)}


def scores(**changes: float) -> dict[str, dict[str, float]]:
    found = {model: dict(zip(UPSTREAM, values, strict=True)) for model, values in PAPER.items()}
    found["llava15_7b"] |= changes
    return found


def test_the_papers_own_scores_pass():
    text = zero_shot_gate.settle(zero_shot_gate.check(NAMES, scores(), UPSTREAM), "stop")
    assert "Zero-shot gate passed: 8 scores" in text and "LLaVA-1.5-7B" in text and text.count("  ok\n") == 8


def test_a_point_is_the_limit():
    assert not any(item.off for item in zero_shot_gate.check(NAMES, scores(gqa=60.93, okvqa=59.00), UPSTREAM))
    assert [item.dataset for item in zero_shot_gate.check(NAMES, scores(gqa=60.92), UPSTREAM) if item.off] == ["gqa"]


@pytest.mark.parametrize(("changes", "cause"), [
    ({"textvqa": 46.0}, "no OCR tokens"), ({"okvqa": 0.5}, "right instead of left padding"),
    ({"ocrvqa": 64.5}, "another sample of 2,000"), ({"okvqa": 62.0}, "lemmatised"), ({"gqa": 58.0}, "crop for pad"),
    ({"textvqa": 56.0}, "crop for pad"),
])
def test_it_stops_with_a_table_and_a_cause(changes, cause):
    checks = zero_shot_gate.check(NAMES, scores(**changes), UPSTREAM)
    with pytest.raises(UserError, match="1 of 8 zero-shot scores are off by more than 1 point") as caught:
        zero_shot_gate.settle(checks, "stop")
    assert cause in str(caught.value) and "GATE=warn" in str(caught.value)
    assert f"{next(iter(changes.values())):.2f}" in str(caught.value)
    assert "Going on, since gate=warn." in zero_shot_gate.settle(checks, "warn")


def test_it_is_for_the_papers_models_only():
    assert zero_shot_gate.applies(["llava15_7b"], UPSTREAM)
    assert not zero_shot_gate.applies(["llava_pocket", "mine"], UPSTREAM)
    assert zero_shot_gate.check({"mine": "Mine"}, {"mine": {"gqa": 1.0}}, UPSTREAM) == []


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Return a world whose models the paper knows, with scores that random numbers do not reach."""
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    monkeypatch.setattr(zero_shot_gate, "expected", lambda model, dataset: 99.0 if dataset == "gqa" else None)
    return fakes.world_in(tmp_path, monkeypatch)


def test_a_shut_gate_trains_nothing(held, capsys):
    own = [*held.overrides("methods=zero_shot,full_ft"), "eval.limit=null"]
    assert cli.main(["run", *own]) == 2
    assert "the zero-shot gate is shut" in capsys.readouterr().err
    assert not [line for line in fakes.calls() if line.startswith("train")]


WAYS = {
    "an element of a Slurm array": ["run", "table=table6", "methods=full_ft", "--cells-only"],
    "run": ["run", "table=table6", "methods=full_ft"],
    "sweep": ["sweep", "train.epochs=1,2", "methods=full_ft"],
    "figure": ["figure", "fig5", "methods=full_ft"],
    "plane": ["figure", "plane", "methods=full_ft"],
    "forgetting": ["figure", "forgetting", "methods=full_ft"],
    "rates": ["rates"],
    "all": ["all"],
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_past_a_shut_gate(way, held, monkeypatch, capsys):
    monkeypatch.setattr("benchmark.studies.everything.TABLES", ("table6",))
    monkeypatch.setattr("benchmark.studies.everything.FIGURES", ("fig5",))
    monkeypatch.setattr("benchmark.studies.learning_rate.TARGETS", "iconqa")
    verb, *more = WAYS[way]
    targets = [] if way in ("all", "rates") else ["targets=iconqa"]
    own = [item for item in held.overrides() if not item.startswith(("table=", "targets=", "methods=", "eval.limit="))]
    assert cli.main([verb, *more, *targets, *own]) == 2
    said = capsys.readouterr()
    assert "the zero-shot gate is shut" in said.err + said.out
    assert not [line for line in fakes.calls() if line.startswith("train")]
    assert [line for line in fakes.calls() if line.startswith("generate")]


def test_a_part_of_the_test_sets_is_not_checked_and_that_is_said(held, capsys):
    assert cli.main(["run", *held.overrides("methods=full_ft", "eval.limit=2"), "--cells-only"]) == 0
    assert "Zero-shot gate: not checked, because the run uses only part of the test sets" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gate_is_about_the_base_and_not_about_a_checkpoint_of_ones_own(held, monkeypatch, capsys):
    own = held.root / "mine"
    own.mkdir()
    (own / "weights").write_text("mine")
    asked = []
    monkeypatch.setattr(zero_shot_gate, "hold", lambda first, *_: asked.append(first) or {"llava_pocket"})
    assert cli.main(["run", *held.overrides("methods=zero_shot,full_ft", f"checkpoints=mine:{own}")]) == 0
    assert [cell.method.id for cell in asked[0].cells] == ["zero_shot"]
    assert "| mine |" in next(held.results.glob("tables/table6*.md")).read_text()


def test_a_model_whose_untuned_cell_fails_is_not_trained(held, monkeypatch, capsys):
    monkeypatch.setenv(fakes.TROUBLE, "generate gqa=fail")
    assert cli.main(["run", *held.overrides("methods=zero_shot,full_ft", "gate=warn")]) == 1
    said = capsys.readouterr().out
    assert "Not trained: LLaVA (pocket)" in said and "the loss exploded" in said
    assert not [line for line in fakes.calls() if line.startswith("train")]


@pytest.mark.slow
def test_the_other_model_goes_on(held, monkeypatch):
    monkeypatch.setattr(zero_shot_gate, "hold", lambda *_: {"vila_pocket"})
    own = [*held.overrides("methods=zero_shot,full_ft"), "models=llava_pocket,vila_pocket"]
    assert cli.main(["run", *own]) == 0
    assert [line.split()[1] for line in fakes.calls() if line.startswith("train")] == ["vila_pocket"]
