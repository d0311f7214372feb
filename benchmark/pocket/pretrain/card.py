"""The model card of a shipped model: data, recipe, digest, held-out scores, baselines and the acceptance check."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import benchmark.models
from benchmark.audit.data import answerer, audit
from benchmark.audit.data_report import Report
from benchmark.core.files import write_atomic
from benchmark.models import LoadedModel
from benchmark.pocket.pretrain.family import Family
from benchmark.pocket.pretrain.stages import STAGES, Recipe
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
    recipe: Recipe, family: type[Family],
) -> str:
    """Score a finished checkpoint, write README.md and the scores next to it, and return the verdict.

    The test splits are scored only if the acceptance check passes on validation.

    Args:
        loaded: the checkpoint as users load it.
        name: model id.
        specs: dataset id -> protocol.
        root: data folder.
        training: content of training.json.
        recipe: the model's.
        family: its family.
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
    write_atomic(loaded.path / "README.md", _text(name, digest, recipe, family, reports, outcome))
    return f"acceptance check {outcome}"


def _passed(verdict: Mapping[str, Mapping[str, Any]], upstream: Sequence[str]) -> bool:
    return len(verdict) == len(upstream) and all(row["passed"] for row in verdict.values())


def _scores(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{k} {r['score']:.1f} (best baseline {r['best_baseline']:.1f})" for k, r in rows.items())


def _rows(report: Report) -> list[dict[str, Any]]:
    return [*report.questions, *report.captions]


def recipe_lines(recipe: Recipe, family: type[Family]) -> list[str]:
    """Return the stages of a recipe as a numbered list."""
    stages = [
        f"Language: {recipe.language_steps} steps of 64 texts of 96 tokens. 45 % are generated sentences, 55 % random "
        "runs of tokens, so that every row of the output layer is trained (fine-tuning freezes it).",
        f"Tower: {recipe.tower_steps} steps of {family.tower_batch} drawn pictures with dense labels (icon and colour "
        "per cell, words, names, year, shapes). Learned queries predict the labels and are then discarded.",
    ]
    if recipe.names_steps:
        stages.append(
            f"Names: {recipe.names_steps} steps of 96 pictures. The projector alone learns to turn each token towards "
            "the embeddings of the words that it shows."
        )
    for stage in STAGES.values():
        if steps := recipe.steps(stage):
            title = stage.name.replace("_", " ").capitalize()
            shown = "pictures or texts" if "text" in stage.mixture else "pictures"
            sources = ", ".join(f"{name} {share}" for name, share in stage.mixture.items())
            stages.append(
                f"{title}: {steps} steps of {stage.pictures or family.batch} {shown} with {stage.shows}. Sources in "
                f"percent: {sources}."
            )
    return [
        line for number, text in enumerate(stages, 1)
        for line in textwrap.wrap(text, 118, initial_indent=f"{number}. ", subsequent_indent=" " * len(f"{number}. "))
    ]


def _text(
    name: str, digest: str, recipe: Recipe, family: type[Family], reports: Mapping[str, Report], outcome: str
) -> str:
    seen = {
        split: {(row["dataset"], row.get("items")): row["bases"]["base"]["sighted"] for row in _rows(report)}
        for split, report in reports.items()
    }
    last = list(reports.values())[-1]
    lines = [
        f"# {name}",
        "",
        f"A tiny {recipe.family}-shaped multimodal model for the pocket scale of SpiderBench. It knows the drawn",
        "source sets and nothing about the real world. Weights are float16 safetensors.",
        "",
        f"Made by `make pretrain MODELS={name}` (seed {recipe.seed}); content digest `{digest[:16]}`.",
        "",
        "## Recipe",
        "",
        *recipe_lines(recipe, family),
        "",
        "From alignment on, projector and language model train and the tower does not. The projector starts from the",
        "statistics of the tower's features, pointing from the float16 weights of the stage before.",
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
