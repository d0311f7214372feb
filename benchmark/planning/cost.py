"""The time and disk space that unfinished cells need, from what finished cells took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from benchmark.config.compose import usual
from benchmark.spec import CellSpec, ProfileSpec, samples
from benchmark.store.cells import Store

SAMPLE = "train a sample"


class Costs:
    """Seconds per stage: the mean over cells of the results folder that ran the stage, else the profile's guess.

    Training takes time in proportion to its samples, rows times epochs.

    Args:
        store: finished cells.
        profile: holds the guesses.
    """

    def __init__(self, store: Store, profile: ProfileSpec) -> None:
        self._profile = profile
        self._epochs = usual(profile.id)["train"]["epochs"]
        measured: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for folder in store.cells.glob("*/"):
            about = store.status(folder).get("about") or {}
            for stage, seconds in store.seconds(folder).items():
                kind = _kind(stage, about.get("posthoc", False))
                if kind == "train" and about.get("samples"):
                    kind, seconds = SAMPLE, seconds / about["samples"]
                for model in (about.get("model", ""), ""):
                    measured[kind, model].append(seconds)
        self._measured = {key: mean(values) for key, values in measured.items()}

    @property
    def measured(self) -> bool:
        """Whether any stage was measured."""
        return bool(self._measured)

    def seconds(self, cell: CellSpec, stages: Sequence[str]) -> float:
        """Return the expected time of some stages of a cell."""
        return sum(self._stage(cell, _kind(stage, cell.method.posthoc)) for stage in stages)

    def megabytes(self, missing: Sequence[Sequence[str]]) -> float:
        """Return the space that unfinished cells need."""
        return self._profile.megabytes * sum(1 for stages in missing if stages)

    def _stage(self, cell: CellSpec, kind: str) -> float:
        count = samples(cell) if kind == "train" else None
        measured, units = (SAMPLE, count) if count else (kind, 1)
        for key in ((measured, cell.model.id), (measured, "")):
            if key in self._measured:
                return self._measured[key] * units
        guess = self._profile.seconds.get(kind.partition("/")[0], 0.0)
        rows = cell.dataset(cell.target).counts.get("train") if count and cell.target else None
        return guess * units / (rows * self._epochs) if rows else guess  # a guess is for all rows


def _kind(stage: str, posthoc: bool) -> str:
    """Return the kind of a stage; stages of one kind cost the same."""
    return "posthoc" if stage == "train" and posthoc else stage
