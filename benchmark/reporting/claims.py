"""Verdicts on the paper's claims, by the rules of docs/claims.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from benchmark.core.errors import UserError
from benchmark.reporting.tables import RowResult, resampled, whole_seeds
from eval import stats

DRAWS = 10_000
ERROR = 0.05
HOLDS, CONTRADICTED, NOT_SHOWN, NOT_RUN = "holds", "contradicted", "not shown", "not run"
OTHERS = ("full_ft", "l2_reg", "grafting", "half_ft", "dare", "tailor")
SELECTIONS = ("half_ft_elements", "spider_magnitude", "spider_gradient")
Point = tuple[str, float] | None
Place = tuple[str, str, str, Point]  # model, target, method, point of a sweep


@dataclass(frozen=True)
class Difference:
    """A difference whose sign a claim predicts: positive if the claim is right."""

    label: str
    value: float
    draws: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """The verdict of the cells on a claim.

    Attributes:
        id: as in docs/claims.md.
        claim: one sentence.
        where: in the paper.
        verdict: holds, contradicted, not shown or not run.
        text: counts, and the difference furthest from the claim.
        lines: label, value, low and high (corrected interval) of every difference.
    """

    id: str
    claim: str
    where: str
    verdict: str
    text: str
    lines: tuple[tuple[str, float, float, float], ...] = ()


@dataclass
class Evidence:
    """Finished rows by position, with bootstrap samples that are drawn on first use.

    Args:
        rows: model, target, method, point -> row.
        upstream: ids of the upstream sets.
        groups: the models and targets that the claims are about, finished or not.
        points: swept key -> its values, in order.
        swept: methods of the sweeps.
        sweep_groups: swept key -> models and targets of its sweep.
        pid: PID of the sets, see `benchmark.studies.discrepancy.measure`, by model.
        names: id -> printed name, of models, targets and methods.
    """

    rows: Mapping[Place, RowResult]
    upstream: Sequence[str]
    groups: Sequence[tuple[str, str]]
    points: Mapping[str, Sequence[float]] = field(default_factory=dict)
    swept: Sequence[str] = ()
    sweep_groups: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    pid: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    _samples: dict[tuple[Place, tuple[int, ...]], stats.Sample] = field(default_factory=dict)

    def seeds(self, place: Place) -> set[int]:
        """Return the seeds of a row that have all test sets."""
        row = self.rows.get(place)
        if row is None:
            return set()
        return whole_seeds(row, self.upstream)

    def pair(self, one: Place, other: Place) -> tuple[stats.Sample, stats.Sample] | None:
        """Return the bootstrap samples of two rows over their common seeds; None if they have none.

        An untuned row has no seed and pairs with any.
        """
        ours, theirs = self.seeds(one), self.seeds(other)
        if ours and theirs and self.rows[one].tuned and self.rows[other].tuned:
            ours = theirs = ours & theirs
        return (self.sample(one, ours), self.sample(other, theirs)) if ours and theirs else None

    def sample(self, place: Place, seeds: set[int]) -> stats.Sample:
        """Return the bootstrap sample of a row over some of its seeds."""
        key = (place, tuple(sorted(seeds)))
        if key not in self._samples:
            self._samples[key] = resampled(self.rows[place], seeds, self.upstream, DRAWS)
        return self._samples[key]

    def label(self, *ids: str) -> str:
        """Return printed names, joined."""
        return ", ".join(self.names.get(name, name) for name in ids)

    def above(
        self, metric: str, model: str, target: str, higher: str, lower: str, at: tuple[Point, Point] = (None, None),
        label: str = "",
    ) -> Difference | None:
        """Return metric(higher) - metric(lower), each at a point of a sweep; None if one of them is missing."""
        found = self.pair((model, target, higher, at[0]), (model, target, lower, at[1]))
        if found is None:
            return None
        one, other = found
        if one.shapes != other.shapes:
            raise UserError(f"{self.label(model, target)}: {higher} and {lower} were scored on different items.")
        text = label or f"{self.label(higher)} above {self.label(lower)}"
        value = one.values[metric] - other.values[metric]
        return Difference(f"{self.label(model, target)}: {text}", value, one.draws[metric] - other.draws[metric])


Differences = Iterable[Difference | None]


def judge(identity: str, claim: str, where: str, differences: Differences) -> Verdict:
    """Return the verdict on a list of differences, by the rule of docs/claims.md.

    Args:
        identity: of the claim.
        claim: one sentence.
        where: in the paper.
        differences: None for each one without finished cells.
    """
    everything = list(differences)
    found = [item for item in everything if item is not None]
    missing = len(everything) - len(found)
    if not found:
        return Verdict(identity, claim, where, NOT_RUN, f"none of the {len(everything)} differences has finished cells")
    tail = ERROR / len(everything) / 2
    lines = []
    for item in found:
        low, high = np.quantile(item.draws, [tail, 1 - tail])
        lines.append((item.label, item.value, float(low), float(high)))
    right, wrong = sum(low > 0 for _, _, low, _ in lines), sum(high < 0 for _, _, _, high in lines)
    verdict = CONTRADICTED if wrong else HOLDS if right == len(everything) else NOT_SHOWN
    label, value, low, high = min(lines, key=lambda line: line[3] if wrong else line[2])
    text = f"{right} of {len(everything)} differences show it, {wrong} show the opposite"
    text += f", {missing} have no finished cells" if missing else ""
    text += f"; furthest from it: {label}, {value:+.2f} ({low:+.2f} to {high:+.2f})"
    return Verdict(identity, claim, where, verdict, text, tuple(lines))


# ---------------------------------------------------------------------------------------------------------------
# The claims


def _groups(metric: str, higher: str, lower: str) -> Callable[[Evidence], Differences]:
    return lambda e: (e.above(metric, *group, higher, lower) for group in e.groups)


def _against(metric: str, method: str, others: Sequence[str]) -> Callable[[Evidence], Differences]:
    return lambda e: (e.above(metric, *group, method, other) for group in e.groups for other in others)


def _below(metric: str, methods: Sequence[str], other: str) -> Callable[[Evidence], Differences]:
    return lambda e: (e.above(metric, *group, other, method) for group in e.groups for method in methods)


def _in_table(metric: str, method: str, others: Sequence[str]) -> Callable[[Evidence], Differences]:
    """Compare within the table's groups: Tables 3 and 4 have fewer models and targets than 5 and 6."""

    def differences(e: Evidence) -> Differences:
        groups = dict.fromkeys(place[:2] for place in e.rows if place[2] in others)
        return [e.above(metric, *group, method, other) for group in groups or [("", "")] for other in others]

    return differences


def _shift(e: Evidence) -> Differences:
    for model in dict.fromkeys(model for model, _ in e.groups):
        frame = e.pid.get(model)
        if frame is None:
            yield None
            continue
        whole = frame[(frame["part"] == "tuned") & (frame["role"] == "target")].set_index("dataset")["value"]
        far, near = whole.idxmax(), whole.idxmin()
        found = e.pair((model, far, "full_ft", None), (model, near, "full_ft", None))
        if found is None:
            yield None
            continue
        one, other = found
        # Both start from the same untuned model, so the larger loss is the lower A^S.
        label = f"{e.label(model)}: loss after {e.label(far)} (PID {whole[far]:.2f}) above that after "
        label += f"{e.label(near)} ({whole[near]:.2f})"
        yield Difference(label, other.values["A_S"] - one.values["A_S"], other.draws["A_S"] - one.draws["A_S"])


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


def _pid(e: Evidence) -> Differences:
    for model in dict.fromkeys(model for model, _ in e.groups):
        frame = e.pid.get(model)
        if frame is None:
            yield None
            continue
        whole = frame[frame["part"] == "tuned"]
        shards = {
            role: np.mean([_numbers(text) for text in whole.loc[whole["role"] == role, "by_shard"]], 0)
            for role in ("upstream", "target")
        }
        difference = shards["target"] - shards["upstream"]
        drawn = np.random.default_rng(0).integers(0, len(difference), size=(DRAWS, len(difference)))
        yield Difference(f"{e.label(model)}: unseen above seen", float(difference.mean()), difference[drawn].mean(1))


def _ends(key: str, methods: Sequence[str] | None, metrics: Sequence[str], rising: bool) -> Callable:
    def differences(e: Evidence) -> Differences:
        values = e.points.get(key, ())
        if len(values) < 2:
            return [None]
        first, last = (key, min(values)), (key, max(values))
        at = (last, first) if rising else (first, last)
        return [
            e.above(metric, *group, method, method, at,
                    f"{metric.replace('_', '^')} of {e.label(method)} at {at[0][1]:g} above {at[1][1]:g}")
            for group in e.sweep_groups.get(key, ()) for method in methods or e.swept for metric in metrics
        ]

    return differences


def _leads(key: str) -> Callable[[Evidence], Differences]:
    def differences(e: Evidence) -> Differences:
        found = [
            e.above("H", *group, "spider", other, ((key, value), (key, value)),
                    f"SPIDER above {e.label(other)} at {value:g}")
            for group in e.sweep_groups.get(key, ()) for value in e.points.get(key, ())
            for other in e.swept if other != "spider"
        ]
        return found or [None]

    return differences


def _interpolation(e: Evidence) -> Differences:
    for model, target in e.groups:
        best: tuple[float, float] | None = None
        for alpha in e.points.get("method.alpha", ()):
            place: Place = (model, target, "wise_ft", ("method.alpha", alpha))
            found = e.pair(place, place)
            if found is not None and (best is None or found[0].values["H"] > best[0]):
                best = (found[0].values["H"], alpha)
        if best is None:
            yield None
        else:
            at = (None, ("method.alpha", best[1]))
            yield e.above("H", model, target, "spider", "wise_ft", at, f"SPIDER above WiSE-FT at {best[1]:g}")


CLAIMS: tuple[tuple[str, str, str, Callable[[Evidence], Differences]], ...] = (
    ("forgetting", "Fine-tuning forgets", "section 1", _groups("A_S", "zero_shot", "full_ft")),
    ("learning", "Fine-tuning learns the target", "Tables 5, 6", _groups("A_T", "full_ft", "zero_shot")),
    ("shift", "The larger the shift, the more forgetting", "section 4.3", _shift),
    ("pid", "Unseen sets have a higher PID than seen ones", "Fig. 1", _pid),
    ("best_h", "SPIDER has the best H", "Tables 5, 6", _against("H", "spider", OTHERS)),
    ("best_target", "SPIDER has the best A^T", "Tables 5, 6", _against("A_T", "spider", OTHERS)),
    ("keeps", "SPIDER forgets less than Full FT", "Tables 5, 6", _groups("A_S", "spider", "full_ft")),
    ("second", "Half FT is second in H", "Tables 5, 6",
     _against("H", "half_ft", ("full_ft", "l2_reg", "grafting", "dare", "tailor"))),
    ("penalties", "Penalties do not help", "Tables 5, 6", _below("H", ("l2_reg", "grafting"), "full_ft")),
    ("selection", "G > I is the best selection", "Table 3", _in_table("H", "spider_idm", SELECTIONS)),
    ("modules", "ISM improves on IDM alone", "Table 4", _in_table("H", "spider", ("spider_idm",))),
    ("epochs_forget", "More epochs, more forgetting", "Fig. 5", _ends("train.epochs", ("full_ft",), ("A_S",), False)),
    ("epochs", "SPIDER leads at every number of epochs", "Fig. 5", _leads("train.epochs")),
    ("layers", "SPIDER leads at every number of tuned layers", "Fig. 6", _leads("train.last_layers")),
    ("batch", "SPIDER leads at every batch size", "Fig. 7", _leads("train.batch_size")),
    ("batch_helps", "A larger batch helps", "Fig. 7", _ends("train.batch_size", None, ("A_S", "A_T"), True)),
    ("not_posthoc", "Masking during training beats masking at the end", "section 3.3",
     _in_table("H", "spider", ("spider_posthoc",))),
    ("interpolation", "SPIDER beats interpolation between base and Full FT", "not in the paper: our control",
     _interpolation),
)


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Return a verdict for every claim of docs/claims.md, in its order.

    Raises:
        UserError: rows that are compared were scored on different items.
    """
    return [judge(name, claim, where, differences(evidence)) for name, claim, where, differences in CLAIMS]
