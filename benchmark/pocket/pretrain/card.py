"""The model card of a shipped model: data, recipe, digest, held-out scores, baselines and the acceptance check."""

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

MIN_SCORE, MIN_LEAD = 75.0, 25.0
"""Required zero-shot accuracy on every source set, and required lead over every baseline that sees no image."""


def score(loaded: LoadedModel, specs: Sequence[DatasetSpec], root: Path, split: str) -> Report:
    """Answer a split with and without the images and return the rows of the audit."""
    return audit(specs, root, {"base": answerer(loaded, 125)}, split)


def check(report: Report, upstream: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each source set's score, its best baseline and whether it meets both conditions.

    Args:
        report: from `score`.
        upstream: ids of the source sets, all of which must pass.
    """
    verdict = {}
    for row in report.questions:
        if row["dataset"] in upstream and row["items"] == "all":
            seen, blind = row["bases"]["base"]["sighted"], row["bases"]["base"]["blind"]
            best = max(row["majority"], row["lookup"] or 0.0, blind)
            verdict[row["dataset"]] = {
                "score": seen,
                "best_baseline": best,
                "passed": seen >= MIN_SCORE and seen - best >= MIN_LEAD,
            }
    return verdict


def write(
    loaded: LoadedModel, name: str, specs: Mapping[str, DatasetSpec], root: Path, training: Mapping[str, Any],
    batches: tuple[int, int, int],
) -> str:
    """Score a finished checkpoint, write README.md and the scores next to it, and return the verdict.

    The test splits are scored only if the acceptance check passes on validation.

    Args:
        loaded: the checkpoint as users load it.
        name: model id.
        specs: dataset id -> protocol.
        root: data folder.
        training: content of training.json.
        batches: pictures per step of the tower stage, of those with transcripts and of those with conversations.
    """
    upstream = [spec.id for spec in specs.values() if spec.role == "upstream"]
    reports = {"validation": score(loaded, list(specs.values()), root, "validation")}
    verdict = check(reports["validation"], upstream)
    if _passed(verdict, upstream):
        reports["test"] = score(loaded, list(specs.values()), root, "test")
        verdict = check(reports["test"], upstream)
    split, word = list(reports)[-1], "PASSED" if _passed(verdict, upstream) else "FAILED"
    digest = benchmark.models.digest(loaded.path)
    rows: dict[str, Any] = {"digest": digest, "gate": {"split": split, **verdict}}
    rows |= {kind: _rows(report) for kind, report in reports.items()}
    write_atomic(loaded.path / "training.json", json.dumps({**training, **rows}, indent=1, sort_keys=True))
    outcome = f"{word} on {split}: {_scores(verdict)}"
    write_atomic(loaded.path / "README.md", _text(name, digest, training, batches, reports, outcome))
    return f"acceptance check {outcome}"


def _passed(verdict: Mapping[str, Mapping[str, Any]], upstream: Sequence[str]) -> bool:
    return len(verdict) == len(upstream) and all(row["passed"] for row in verdict.values())


def _scores(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{k} {r['score']:.1f} (best baseline {r['best_baseline']:.1f})" for k, r in rows.items())


def _rows(report: Report) -> list[dict[str, Any]]:
    return [*report.questions, *report.captions]


def _recipe(training: Mapping[str, Any], batches: tuple[int, int, int]) -> list[str]:
    """Return the stages as a numbered list."""
    steps = {name.removesuffix("_steps"): value for name, value in training["recipe"].items()}
    pictures, listed, rows = batches
    covers = authors = cells = again = ""
    if steps.get("covers"):  # the shipped records of LLaVA and VILA are older than this stage and the next two
        covers = f", and {steps['covers']} with covers for the most part"
    if steps.get("authors"):
        authors = f" Then {steps['authors']} of {listed} pictures, most of them covers, with two questions each."
    if steps.get("cells"):
        cells = (
            f" Then {steps['cells']} steps of {rows} pictures with look-ups of places and questions, in which inner "
            "labels teach which cell each image token shows."
        )
    if steps["more_choices"]:
        again = f", and {steps['more_choices']} more that start again at the full learning rate"
    return [
        f"1. Language: {steps['language']} steps of 64 texts of 96 tokens. 45 % are generated sentences, 55 %",
        "   random runs of tokens, so that every row of the output layer is trained (fine-tuning freezes it).",
        f"2. Vision tower: {steps['tower']} steps of {pictures} drawn pictures with dense labels (icon and colour",
        "   per cell, words, names, year, shapes). Learned queries predict the labels and are then discarded.",
        f"3. Alignment: {steps['alignment']} steps of {listed} pictures with transcripts (the content of each grid",
        f"   cell, in reading order), then {steps['reading']} steps with more signs and covers{covers}. The projector",
        "   starts from the statistics of the tower's features. Projector and language model train, not the tower.",
        f"4. Matching: {steps['matching']} steps of {rows} pictures with short look-ups (a name and its colour, a",
        "   colour and its sign, a cell and its content, whether something is there).",
        f"5. Quiz: {steps['quiz']} steps with questions of the source sets and their answers in one text.",
        f"6. Letters: {steps['letters']} steps with lettered options, listed again in another order, then",
        f"   {steps['choices']} steps with keys that mean an option (a fact, a synonym, a place){again}.",
        f"7. Instruction: {steps['instruction']} steps of {rows} pictures with all their questions, descriptions",
        "   (some in synonyms) and transcripts. Sources of the pictures in percent:",
        f"   {_percent(training['mixture'])}.{authors}",
        f"8. Pointing: {steps['pointing']} steps with lettered options, answered from the text or the picture.",
        "   Letters weigh as much as all other words. Inner labels (docs/pocket.md) teach blocks below the last which",
        f"   option a letter stands for and where that option is. Starts from the float16 weights of stage 7.{cells}",
        f"9. Final: {steps['final']} steps like stage 7, with inner labels and more to read. Sources in",
        "   percent:",
        f"   {_percent(training['final'])}.",
    ]


def _percent(mixture: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {share}" for name, share in mixture.items())


def _text(
    name: str, digest: str, training: Mapping[str, Any], batches: tuple[int, int, int], reports: Mapping[str, Report],
    outcome: str,
) -> str:
    recipe = training["recipe"]
    seen = {
        split: {(row["dataset"], row.get("items")): row["bases"]["base"]["sighted"] for row in _rows(report)}
        for split, report in reports.items()
    }
    last = list(reports.values())[-1]
    lines = [
        f"# {name}",
        "",
        f"A tiny {recipe['family']}-shaped multimodal model for the pocket scale of SpiderBench. It knows the drawn",
        "source sets and nothing about the real world. Weights are float16 safetensors.",
        "",
        f"Made by `make pretrain MODELS={name}` (seed {recipe['seed']}); content digest `{digest[:16]}`.",
        "",
        "## Recipe",
        "",
        *_recipe(training, batches),
        "",
        "All pictures show train contents of the source sets. They share no content with a validation or test split or",
        "with a target (`python -m benchmark audit data`). No prompt or reference of a target occurs in pretraining.",
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
        "Blind: this model on the images' mean colour. Majority: the most common training answer per question template",
        "(captions: the most common caption). Lookup: the most common training answer to the same question.",
        "",
        f"Acceptance check (every source set scores at least {MIN_SCORE:.0f}, and at least {MIN_LEAD:.0f} points above",
        f"every baseline; the test splits are scored only after validation passes): {outcome}.",
        "",
        "Icons in the drawn pictures: Font Awesome Free 6 (CC BY 4.0). This repository does not contain the font.",
        "",
    ]
    return "\n".join(lines)
