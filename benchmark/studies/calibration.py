"""How hard the targets are: the untuned models and Full FT beside the paper's rows (docs/calibration.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmark.config.compose import AXES
from benchmark.config.overrides import without
from benchmark.config.request import Request, request
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.paper import numbers
from benchmark.running import runner
from benchmark.spec import CellSpec
from benchmark.store.cells import Store
from benchmark.store.scores import read_scores

START = 15.0   # points by which an untuned model may miss the paper's row
FACTOR = 2.0   # Full FT loses between 1/2 and 2 times what it loses in the paper
SEED = 100     # that of the learning rates: no table has it
FIXED = {"targets": "the targets", "methods": "the methods", "seeds": f"seed {SEED}"}


@dataclass(frozen=True)
class Line:
    """One demand of the rule and what was measured.

    Attributes:
        rule: "start", A^T of the untuned model, or "forgetting", the A^S that Full FT loses.
        model: printed name.
        target: printed name.
        paper: the paper's number, in points.
        low: smallest value that the rule allows.
        high: largest.
        got: ours, on validation.
    """

    rule: str
    model: str
    target: str
    paper: float
    low: float
    high: float
    got: float

    @property
    def met(self) -> bool:
        """Whether the number lies where the rule wants it."""
        return self.low <= self.got <= self.high


def run(overrides: Sequence[str]) -> int:
    """Run what is missing, print the calibration and write rates/calibration.md.

    Args:
        overrides: of `benchmark.config.request.request`; models= narrows it.

    Returns:
        The runner's exit code.

    Raises:
        UserError: wrong overrides, or no model of the profile has a counterpart in the paper.
    """
    given = [name for item in overrides if (name := AXES.get(item.partition("=")[0], "")) in FIXED]
    if given:
        fixed = " and ".join(FIXED[name] for name in given)
        raise UserError(f"The rule fixes {fixed} (docs/calibration.md). Leave it out.")
    asked = cells_of(overrides)
    code = runner.run(asked)
    if code:
        return code
    text = table(asked, lines(asked.cells, Store(asked.results)))
    write_atomic(asked.results / "rates" / "calibration.md", text)
    print(text)
    return 0


def cells_of(overrides: Sequence[str]) -> Request:
    """Return the cells that the rule needs: validation, and only the targets that the paper tunes the model's like on.

    Raises:
        UserError: see `run`.
    """
    base, parts = request(["table=table5", *overrides]), []
    for model in base.models:
        like = numbers.LIKE.get(model.family)
        targets = [name for name in base.profile.targets if like and numbers.lookup(like, name, "Full FT", "A_S")]
        if targets:
            kept = without(overrides, ("model", "models"))
            parts.append(request([
                *kept, f"models={model.id}", f"targets={','.join(targets)}", "methods=zero_shot,full_ft",
                f"seeds={SEED}", "eval.split=validation",
            ]))
    if not parts:
        raise UserError(f"None of {', '.join(model.id for model in base.models)} is like a model of the paper.")
    return parts[0].of(cell for part in parts for cell in part.cells)


def lines(cells: Iterable[CellSpec], store: Store) -> list[Line]:
    """Return every demand of the rule with what finished cells measured."""
    cells = list(cells)
    base = {cell.model.id: read_scores(store.folder(cell))["averages"] for cell in cells if cell.train is None}
    found = []
    for cell in cells:
        if cell.train is None:
            continue
        assert cell.target is not None
        like, target = numbers.LIKE[cell.model.family], cell.dataset(cell.target)
        start = _paper(like, target.id, "Zero-shot", "A_T")
        untuned = base[cell.model.id][target.id]
        loss = _paper(like, target.id, "Zero-shot", "A_S") - _paper(like, target.id, "Full FT", "A_S")
        tuned = read_scores(store.folder(cell))["averages"][target.id]
        names = (cell.model.name, target.name)
        found.append(Line("start", *names, start, start - START, start + START, untuned["A_T"]["value"]))
        lost = untuned["A_S"]["value"] - tuned["A_S"]["value"]
        found.append(Line("forgetting", *names, loss, loss / FACTOR, loss * FACTOR, lost))
    return sorted(found, key=lambda line: line.rule != "start")


def _paper(model: str, target: str, method: str, metric: str) -> float:
    entry = numbers.lookup(model, target, method, metric)
    assert entry is not None
    return entry.value


def table(asked: Request, found: Sequence[Line]) -> str:
    """Return the calibration as Markdown."""
    rates = {cell.model.name: cell.train.learning_rate for cell in asked.cells if cell.train}
    rows = [
        f"| {line.rule} | {line.model} | {line.target} | {line.paper:.1f} | {line.low:.1f} to {line.high:.1f} | "
        f"{line.got:.1f} | {'yes' if line.met else 'no'} |" for line in found
    ]
    return "\n".join([
        f"# Calibration of {asked.profile.id}",
        "",
        "The rule of docs/calibration.md, on *validation*. Start: A^T of the untuned model. Forgetting: points of A^S",
        f"that Full FT loses, seed {SEED}, rate {', '.join(f'{rate:g} ({name})' for name, rate in rates.items())}.",
        "",
        "| rule | model | target | paper | allowed | got | met |",
        "| --- | --- | --- | --: | --: | --: | --- |",
        *rows,
        "",
        f"Met: {sum(line.met for line in found)} of {len(found)}.",
        "",
    ])
