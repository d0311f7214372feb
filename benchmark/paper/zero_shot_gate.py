"""The zero-shot gate: before anything is tuned, the base models must score what the paper says of them.

A base that is off by more than a point has been fed or scored in another way than the paper's, and every number after
it would carry the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmark.config.request import Request
from benchmark.core.errors import UserError
from benchmark.paper import numbers
from benchmark.planning.plan import Planned
from benchmark.spec import CellSpec, MethodSpec, changed_without
from benchmark.store.cells import Store
from benchmark.store.scores import read_scores

Mode = Literal["stop", "warn"]
POINTS = 1.0
ZERO_SHOT = "Zero-shot"
PARTIAL = "Zero-shot gate: not checked, because the run uses only part of the test sets or another split."
UNTUNED = MethodSpec("zero_shot", {})


@dataclass(frozen=True)
class Check:
    """One upstream score of an untuned model beside the paper's.

    Attributes:
        model: its pretty name.
        dataset: id of the upstream set.
        expected: the paper's score, in points.
        got: ours.
    """

    model: str
    dataset: str
    expected: float
    got: float

    @property
    def off(self) -> bool:
        """Whether it is off by more than a point."""
        return round(abs(self.got - self.expected), 6) > POINTS

    @property
    def cause(self) -> str:
        """The likely cause, from what is known of each set; empty if the score is right."""
        return likely_cause(self.dataset, self.got - self.expected) if self.off else ""


def expected(model: str, dataset: str) -> float | None:
    """Return the paper's zero-shot score of a model on an upstream set, or None."""
    for target in ("flickr30k", "coco", "iconqa", "scienceqa"):
        entry = numbers.lookup(model, target, ZERO_SHOT, dataset)
        if entry is not None:
            return entry.value
    return None


def applies(models: Sequence[str], upstream: Sequence[str]) -> bool:
    """Return whether the paper has zero-shot scores of one of these models."""
    return any(expected(model, dataset) is not None for model in models for dataset in upstream)


def first(request: Request) -> Request | None:
    """Return the untuned models that have to score as in the paper before anything of a request is trained.

    Args:
        request: any grid: a table's, a figure's, a sweep's, an element of a Slurm array.

    Returns:
        The request with only these cells: the request's own, or else the same models on the upstream test sets.
        None if there is nothing to check: nothing trains, the paper has no score of the models, or the request uses
        only part of the test sets.
    """
    own = {cell.model.id: cell for cell in request.cells if cell.method == UNTUNED}
    wanted: dict[str, CellSpec] = {}
    trained = [cell for cell in request.cells if cell.train is not None]
    known = [cell for cell in trained if applies([cell.model.id], request.profile.upstream)]
    if any(cell.eval.limit is not None for cell in known):
        print(PARTIAL)
        return None
    for cell in known:
        base = own.get(cell.model.id)
        if base is None or base.eval.split != "test" or base.eval.examples:
            test = replace(cell.eval, split="test", examples=0)
            changed = changed_without(
                cell, "method.", "train.", "eval.split", "eval.examples", f"dataset.{cell.target}."
            )
            base = replace(
                cell, method=UNTUNED, target=None, train=None, datasets=cell.upstream, eval=test, changed=changed
            )
        wanted.setdefault(cell.model.id, base)
    if not wanted:
        return None
    return request.of(wanted.values())


def hold(request: Request, plan: Sequence[Planned], store: Store) -> set[str]:
    """Print how finished untuned cells compare with the paper.

    Args:
        request: the untuned models.
        plan: of it.
        store: the results.

    Returns:
        The models that have scores.

    Raises:
        UserError: a score is off by more than a point and gate=stop.
    """
    scores: dict[str, dict[str, float]] = {}
    for item in plan:
        if item.done:
            datasets = read_scores(store.folder(item.cell))["datasets"]
            scores[item.cell.model.id] = {name: entry["value"] for name, entry in datasets.items()}
    settings = request.cells[0].eval
    if settings.limit is not None or settings.split != "test":
        print(PARTIAL)
    elif scores:
        names = {cell.model.id: cell.model.name for cell in request.cells}
        checks = check(names, scores, request.profile.upstream)
        print(settle(checks, request.gate) if checks else "Zero-shot gate: the paper has no number at this scale.")
    return set(scores)


def likely_cause(dataset: str, difference: float) -> str:
    """Return what most often makes a set differ by so much.

    Args:
        dataset: id of an upstream set.
        difference: ours minus the paper's, in points.

    Returns:
        One line.
    """
    if difference < -30:
        return "answers are garbage or sentences: right instead of left padding, another prompt, wrong weights"
    if dataset == "textvqa" and -25 <= difference < -5:
        return "no OCR tokens in the prompt (protocol.textvqa=ocr)"
    if dataset == "textvqa" and difference < 0:
        return "crop for pad (model.preprocess=pad), or other OCR tokens than Rosetta v0.2"
    if dataset == "okvqa" and difference > 2:
        return "predictions were lemmatised, or protocol.okvqa=official_score; the paper uses neither"
    if dataset == "ocrvqa" and abs(difference) < 3:
        return "another sample of 2,000 questions: its standard error is 1.1 points (data prepare --ids)"
    if dataset == "gqa" and difference < 0:
        return "crop for pad, or answers scored without the final period dropped"
    return "crop for pad (model.preprocess), another prompt (audit protocol), another precision (eval.dtype)"


def check(models: Mapping[str, str], scores: Mapping[str, Mapping[str, float]], upstream: Sequence[str]) -> list[Check]:
    """Hold zero-shot scores against the paper's.

    Args:
        models: id -> pretty name.
        scores: model id -> dataset -> points.
        upstream: ids of the upstream sets.

    Returns:
        A check for each score that the paper has.
    """
    return [
        Check(name, dataset, value, scores[model][dataset])
        for model, name in models.items() for dataset in upstream
        if model in scores and dataset in scores[model] and (value := expected(model, dataset)) is not None
    ]


def table(checks: Sequence[Check]) -> str:
    """Return the checks as text: model, set, expected, got, difference, likely cause."""
    rows = [("model", "set", "paper", "got", "off by", "likely cause")]
    rows += [
        (item.model, item.dataset, f"{item.expected:.2f}", f"{item.got:.2f}", f"{item.got - item.expected:+.2f}",
         item.cause or "ok")
        for item in checks
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join((*(cell.ljust(width) if n < 2 else cell.rjust(width)
                     for n, (cell, width) in enumerate(zip(row, widths, strict=False))), row[5]))
        for row in rows
    )


def settle(checks: Sequence[Check], mode: Mode) -> str:
    """Return what to print about the checks.

    Args:
        checks: see `check`.
        mode: stop, or warn to go on.

    Returns:
        The table, with a line on the outcome.

    Raises:
        UserError: a score is off by more than a point, and mode is stop.
    """
    wrong = [item for item in checks if item.off]
    if not wrong:
        return f"{table(checks)}\nZero-shot gate passed: {len(checks)} scores within {POINTS:g} point of the paper's."
    text = (
        f"{table(checks)}\n{len(wrong)} of {len(checks)} zero-shot scores are off by more than {POINTS:g} point, so "
        "the models get other inputs than in the paper, or are scored differently. "
    )
    if mode == "stop":
        raise UserError(f"the zero-shot gate is shut.\n{text}Correct the cause, or go on with GATE=warn (gate=warn).")
    return f"{text}Going on, since gate=warn."
