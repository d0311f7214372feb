"""Form or content: how much of what tuned models lost comes back when they see a solved question first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmark.config.request import Request
from benchmark.core.errors import UserError, counted
from benchmark.reporting import lettering, outputs
from benchmark.spec import CellSpec, is_tuned
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cells import Store
from benchmark.studies.prediction import bounds, other_form
from eval.stats import Sample, resample


@dataclass(frozen=True)
class _Asked:
    """A model's answers to the source questions, asked in one way.

    Attributes:
        sample: A^S with its bootstrap draws.
        other: share of answers in another form, in percent; see `prediction.other_form`.
    """

    sample: Sample
    other: float


def measure(plain: Request, shown: Request, store: Store) -> pd.DataFrame:
    """Compare what models lost when they are asked as usual and after solved questions.

    Args:
        plain: cells that answer as usual, the untuned models among them.
        shown: the same cells with `eval.examples`.
        store: their results.

    Returns:
        A line per model, target and method, over the seeds that are finished in both: model, model_name, target,
        target_name, method, method_name, seeds; A_S, lost (A^S of the untuned model less A_S), other (percent of
        answers in another form), the same with _shown, and back = lost - lost_shown; all but `other` with _low and
        _high, a paired bootstrap. The untuned models come first and have lost nothing.

    Raises:
        UserError: a file of a cell is damaged.
    """
    groups: dict[tuple[str, str, str], list[tuple[CellSpec, CellSpec]]] = {}
    for pair in zip(plain.cells, shown.cells, strict=True):
        cell = pair[0]
        if all((store.folder(one) / "scores.json").is_file() for one in pair):
            target = cell.target if is_tuned(cell) else ""
            own = groups.setdefault((cell.model.id, target, cell.method.id), [])
            if target or not own:  # what we did not tune is in the request once for every target
                own.append(pair)
    lines = []
    for (model, target, method), pairs in sorted(groups.items(), key=lambda group: group[0][1] != ""):
        start = groups.get((model, "", outputs.ZERO_SHOT))
        if start is None:
            continue
        before, after = ([_asked(way, store) for way in zip(*own, strict=True)] for own in (start, pairs))
        cell = pairs[0][0]
        about = {
            "model": model, "model_name": cell.model.name, "target": target,
            "target_name": cell.dataset(target).name if target else "", "method": method,
            "method_name": outputs.name_of(method), "seeds": len(pairs),
        }
        lines.append(about | _line(before, after))
    return pd.DataFrame(lines)


def _asked(cells: Sequence[CellSpec], store: Store) -> _Asked:
    names = [dataset.id for dataset in cells[0].upstream]
    items = {name: {cell.seed: read_items(store.folder(cell), name) for cell in cells} for name in names}
    other = np.mean([other_form(read_answers(store.folder(cell), name).values()) for cell in cells for name in names])
    return _Asked(resample(items, names[0], names), float(other))


def _line(before: Sequence[_Asked], after: Sequence[_Asked]) -> dict[str, float]:
    """Return the numbers of a line; both have the answers as usual, then those after solved questions."""
    found: dict[str, float] = {}
    lost = []
    for end, start, tuned in zip(("", "_shown"), before, after, strict=True):
        kept, first = (np.append(one.sample.values["A_S"], one.sample.draws["A_S"]) for one in (tuned, start))
        lost.append(first - kept)
        found |= bounds(f"A_S{end}", kept) | bounds(f"lost{end}", lost[-1]) | {f"other{end}": tuned.other}
    return found | bounds("back", lost[0] - lost[1])


def markdown(found: pd.DataFrame, title: str, examples: int) -> str:
    """Return the lines of `measure` as a Markdown table.

    Args:
        found: at least one line.
        title: heading.
        examples: solved questions in front of each question.

    Raises:
        UserError: there is no line.
    """
    if found.empty:
        raise UserError("No finished cell to compare: the untuned model is needed too. Run the cells first.")
    rows = [["model", "fine-tuned on", "method", "A^S", "lost", "other form", "A^S, shown", "lost, shown",
             "other form, shown", "back"]]
    for line in found.to_dict("records"):
        tuned = line["method"] != outputs.ZERO_SHOT
        rows.append([
            *(lettering.markdown(str(line[name])) for name in ("model_name", "target_name", "method_name")),
            f"{line['A_S']:.2f}", _text(line, "lost") if tuned else "-", f"{line['other']:.1f} %",
            f"{line['A_S_shown']:.2f}", _text(line, "lost_shown") if tuned else "-", f"{line['other_shown']:.1f} %",
            _text(line, "back") if tuned else "-",
        ])
    below = [
        f"Shown: each question comes after {counted(examples, 'solved question')} of its set, without picture. Lost: "
        "A^S of the untuned model, asked in the same way, less A^S. Back: what is not lost then. Brackets: 95 % "
        "intervals of a paired bootstrap. docs/measurement.md has the definitions.",
    ]
    return "\n".join([f"# {title}", "", *lettering.table(rows), "", *(f"{line}  " for line in below), ""])


def _text(line: Mapping[str, float], name: str) -> str:
    return f"{line[name]:.1f} ({line[f'{name}_low']:.1f} to {line[f'{name}_high']:.1f})"
