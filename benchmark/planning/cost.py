"""The time and disk space that unfinished cells need, from what finished cells took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from benchmark.config.compose import usual
from benchmark.spec import CellSpec, ProfileSpec, samples
from benchmark.store.cells import Store


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
                seconds /= about.get("samples") or 1 if kind == "train" else 1
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
        own = (samples(cell) or 1) if kind == "train" else 1
        for key in ((kind, cell.model.id), (kind, "")):
            if key in self._measured:
                return self._measured[key] * own
        guess = self._profile.seconds.get(kind.partition("/")[0], 0.0)
        if kind != "train" or cell.target is None or cell.train is None:
            return guess
        rows = cell.dataset(cell.target).counts.get("train")  # the guess is for all of them
        return guess * own / (rows * self._epochs) if rows else guess


def _kind(stage: str, posthoc: bool) -> str:
    """Return the kind of a stage; stages of one kind cost the same."""
    return "posthoc" if stage == "train" and posthoc else stage
