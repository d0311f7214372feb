"""The model card of a shipped model: data, recipe, digest, held-out scores, baselines, and whether the gate holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmark.models
from benchmark.data.audit import answerer, audit
from benchmark.data.audit_report import Report
from benchmark.files import write_atomic
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
    validation = score(loaded, list(specs.values()), root, "validation")
    found = gate(validation, upstream)
    if not all(row["passed"] for row in found.values()):
        return f"gate FAILED on validation, test not scored: {_scores(found)}"
    test = score(loaded, list(specs.values()), root, "test")
    verdict = gate(test, upstream)
    passed = len(verdict) == len(upstream) and all(row["passed"] for row in verdict.values())
    digest = benchmark.models.digest(loaded.path)
    rows = {"digest": digest, "gate": verdict, "test": _rows(test), "validation": _rows(validation)}
    write_atomic(loaded.path / "training.json", json.dumps({**training, **rows}, indent=1, sort_keys=True))
    write_atomic(loaded.path / "README.md", _text(name, digest, training, validation, test, verdict, passed))
    return f"gate {'PASSED' if passed else 'FAILED'} on test: {_scores(verdict)}"


def _scores(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{k} {r['score']:.1f} (best baseline {r['best_baseline']:.1f})" for k, r in rows.items())


def _rows(report: Report) -> list[dict[str, Any]]:
    return [*report.questions, *report.captions]


def _text(
    name: str,
    digest: str,
    training: Mapping[str, Any],
    validation: Report,
    test: Report,
    verdict: Mapping[str, Mapping[str, Any]],
    passed: bool,
) -> str:
    recipe = training["recipe"]
    held_out = {(row["dataset"], row.get("items")): row["bases"]["base"]["sighted"] for row in _rows(validation)}
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
        f"1. Language: {recipe['language_steps']} steps of 64 texts of 96 tokens; 45 % drawn sentences, 55 % random",
        "   runs of tokens, so that every row of the output layer is trained (it is frozen in fine-tuning).",
        f"2. Vision tower: {recipe['tower_steps']} steps of 128 drawn pictures with dense labels (icon and colour",
        "   per cell, words, names, year, shapes), read out by queries that are thrown away.",
        f"3. Alignment: {recipe['alignment_steps']} steps of 16 pictures with transcripts (what stands where, in",
        f"   reading order), then {recipe['reading_steps']} steps with more signs and covers. The projector starts",
        "   from the statistics of the tower's features; projector and language model train, the tower is frozen.",
        f"4. Instruction: {recipe['instruction_steps']} steps of 16 pictures with all their questions, descriptions",
        f"   and transcripts; pictures in percent: {', '.join(f'{k} {v}' for k, v in training['mixture'].items())};",
        f"   then {recipe['practice_steps']} steps with "
        f"{', '.join(f'{k} {v}' for k, v in training['practice'].items())}.",
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
    for row in test.questions:
        label = row["dataset"] + ("" if row["items"] == "all" else " (image items)")
        base, lookup = row["bases"]["base"], row["lookup"]
        lines.append(
            f"| {label} | {held_out[row['dataset'], row['items']]:.1f} | {base['sighted']:.1f} | {base['blind']:.1f} | "
            f"{row['majority']:.1f} | {'-' if lookup is None else f'{lookup:.1f}'} |"
        )
    for row in test.captions:
        base = row["bases"]["base"]
        lines.append(
            f"| {row['dataset']} (CIDEr) | {held_out[row['dataset'], None]:.1f} | {base['sighted']:.1f} | "
            f"{base['blind']:.1f} | {row['commonest']:.1f} | - |"
        )
    word = "holds" if passed else "does NOT hold"
    lines += [
        "",
        "Blind is this model on the images' mean colour; majority the commonest training answer per question template",
        "(captions: the commonest caption); lookup the commonest training answer to the same question.",
        "",
        f"Gate (every upstream set at least {GATE:.0f} and {MARGIN:.0f} above every baseline) {word}: "
        + ", ".join(f"{key} {row['score']:.1f} vs {row['best_baseline']:.1f}" for key, row in verdict.items())
        + ".",
        "",
        "Icons in the drawn pictures: Font Awesome Free 6 (CC BY 4.0); the font itself is not part of this repository.",
        "",
    ]
    return "\n".join(lines)
