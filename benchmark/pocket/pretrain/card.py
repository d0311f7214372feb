"""The model card of a shipped model: data, recipe, digest, held-out scores, baselines, and whether the gate holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmark.models
from benchmark.audit.data import answerer, audit
from benchmark.audit.data_report import Report
from benchmark.core.files import write_atomic
from benchmark.models import LoadedModel
from benchmark.spec import DatasetSpec

GATE, MARGIN = 75.0, 25.0
"""Least zero-shot accuracy on every upstream set, and least distance from every baseline that does not look."""


def score(loaded: LoadedModel, specs: Sequence[DatasetSpec], root: Path, split: str) -> Report:
    """Answer a split with and without seeing the images and return the rows of the audit."""
    return audit(specs, root, {"base": answerer(loaded, 125)}, split)


def gate(report: Report, upstream: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return per upstream set the score, the best baseline and whether both conditions hold.

    Args:
        report: of `score`.
        upstream: ids of the sets that must pass.
    """
    found = {}
    for row in report.questions:
        if row["dataset"] in upstream and row["items"] == "all":
            seen, blind = row["bases"]["base"]["sighted"], row["bases"]["base"]["blind"]
            best = max(row["majority"], row["lookup"] or 0.0, blind)
            found[row["dataset"]] = {
                "score": seen,
                "best_baseline": best,
                "passed": seen >= GATE and seen - best >= MARGIN,
            }
    return found


def write(
    loaded: LoadedModel, name: str, specs: Mapping[str, DatasetSpec], root: Path, training: Mapping[str, Any]
) -> str:
    """Score a finished checkpoint, write README.md and the scores beside it, return a verdict.

    The test splits are scored only when the gate holds on validation.

    Args:
        loaded: the checkpoint as users load it.
        name: model id.
        specs: dataset id -> protocol.
        root: data folder.
        training: content of training.json.
    """
    upstream = [spec.id for spec in specs.values() if spec.role == "upstream"]
    reports = {"validation": score(loaded, list(specs.values()), root, "validation")}
    verdict = gate(reports["validation"], upstream)
    if _passed(verdict, upstream):
        reports["test"] = score(loaded, list(specs.values()), root, "test")
        verdict = gate(reports["test"], upstream)
    split, word = list(reports)[-1], "PASSED" if _passed(verdict, upstream) else "FAILED"
    digest = benchmark.models.digest(loaded.path)
    rows: dict[str, Any] = {"digest": digest, "gate": {"split": split, **verdict}}
    rows |= {kind: _rows(report) for kind, report in reports.items()}
    write_atomic(loaded.path / "training.json", json.dumps({**training, **rows}, indent=1, sort_keys=True))
    gate_line = f"{word} on {split}: {_scores(verdict)}"
    write_atomic(loaded.path / "README.md", _text(name, digest, training, reports, gate_line))
    return f"gate {gate_line}"


def _passed(verdict: Mapping[str, Mapping[str, Any]], upstream: Sequence[str]) -> bool:
    return len(verdict) == len(upstream) and all(row["passed"] for row in verdict.values())


def _scores(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{k} {r['score']:.1f} (best baseline {r['best_baseline']:.1f})" for k, r in rows.items())


def _rows(report: Report) -> list[dict[str, Any]]:
    return [*report.questions, *report.captions]


def _recipe(training: Mapping[str, Any]) -> list[str]:
    """Return the stages as a numbered list."""
    recipe = training["recipe"]
    again = f", then {recipe['more_choices_steps']} more from the full learning rate" * bool(
        recipe["more_choices_steps"]
    )
    return [
        f"1. Language: {recipe['language_steps']} steps of 64 texts of 96 tokens; 45 % drawn sentences, 55 % random",
        "   runs of tokens, so that every row of the output layer is trained (it is frozen in fine-tuning).",
        f"2. Vision tower: {recipe['tower_steps']} steps of 128 drawn pictures with dense labels (icon and colour",
        "   per cell, words, names, year, shapes), read out by queries that are thrown away.",
        f"3. Alignment: {recipe['alignment_steps']} steps of 16 pictures with transcripts (what stands where, in",
        f"   reading order), then {recipe['reading_steps']} steps with more signs and covers. The projector starts",
        "   from the statistics of the tower's features; projector and language model train, the tower is frozen.",
        f"4. Matching: {recipe['matching_steps']} steps of 16 pictures with short look-ups (a name and its colour, a",
        "   colour and its sign, a place and what is there, whether something is there).",
        f"5. Quiz: {recipe['quiz_steps']} steps with upstream questions and their answers in one text.",
        f"6. Letters: {recipe['letters_steps']} steps with lettered options, listed again in another order; then",
        f"   {recipe['choices_steps']} steps with keys that mean an option (a fact, a synonym, a place){again}.",
        f"7. Instruction: {recipe['instruction_steps']} steps of 16 pictures with all their questions, descriptions",
        "   (also in synonyms) and transcripts; pictures in percent:",
        f"   {_percent(training['mixture'])}.",
        f"8. Pointing: {recipe['pointing_steps']} steps with lettered options, answered from the text or the picture;",
        "   letters weigh as much as all other words, and blocks below the last are shown what a letter stands for and",
        "   where that option is (inner labels, docs/pocket.md). Starts from the float16 weights of stage 7.",
        f"9. Final: {recipe['final_steps']} steps as in 7 with inner labels and more to read; pictures in percent:",
        f"   {_percent(training['final'])}.",
    ]


def _percent(mixture: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {share}" for name, share in mixture.items())


def _text(name: str, digest: str, training: Mapping[str, Any], reports: Mapping[str, Report], gate_line: str) -> str:
    recipe = training["recipe"]
    seen = {
        split: {(row["dataset"], row.get("items")): row["bases"]["base"]["sighted"] for row in _rows(report)}
        for split, report in reports.items()
    }
    last = list(reports.values())[-1]
    lines = [
        f"# {name}",
        "",
        f"A tiny {recipe['family']}-shaped multimodal model for the pocket scale of SpiderBench: it knows the drawn",
        "upstream sets and nothing of the real world. Weights are float16 safetensors.",
        "",
        f"Made by `make pretrain MODELS={name}` (seed {recipe['seed']}); content digest `{digest[:16]}`.",
        "",
        "## Recipe",
        "",
        *_recipe(training),
        "",
        "Pictures come from the upstream train contents only; no content is shared with any validation or test split",
        "or with a target (`python -m benchmark audit data`).",
        "No prompt or reference of a target occurs in pretraining.",
        "",
        "## Zero-shot scores, 0-100",
        "",
        "| set | validation | test | blind | majority | lookup |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in _rows(last):
        key, base = (row["dataset"], row.get("items")), row["bases"]["base"]
        label = row["dataset"] + {"image": " (image items)", None: " (CIDEr)"}.get(row.get("items"), "")
        scores = [f"{seen[split][key]:.1f}" if split in seen else "-" for split in ("validation", "test")]
        others = [base["blind"], row.get("majority", row.get("commonest")), row.get("lookup")]
        cells = [label, *scores, *("-" if value is None else f"{value:.1f}" for value in others)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Blind is this model on the images' mean colour; majority the commonest training answer per question template",
        "(captions: the commonest caption); lookup the commonest training answer to the same question.",
        "",
        f"Gate (every upstream set at least {GATE:.0f} and {MARGIN:.0f} above every baseline; the test splits are",
        f"scored once it holds on validation): {gate_line}.",
        "",
        "Icons in the drawn pictures: Font Awesome Free 6 (CC BY 4.0); the font itself is not part of this repository.",
        "",
    ]
    return "\n".join(lines)
