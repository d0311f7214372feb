"""The same method under every engine: how far its weights are from those of one plain process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmark.core.errors import UserError
from methods import ops
from methods.base import Method
from methods.grafting import Grafting
from methods.registry import METHODS, build
from methods.select import Select
from methods.shards import Shard
from methods.spider import Spider
from tests.multiprocess.launch import launch
from tests.multiprocess.training import EPS, MAX_NORM, STEPS, Data, Training

TOLERANCE = 1e-6  # of a weight, after STEPS steps
FLIPPED = 1e-4  # share of elements whose decision a rounding error may turn around,
MARGIN = 1e-5  # if they were so close to the threshold
# Penalties so strong that leaving one out would be seen.
STRENGTHS = {
    "ewc": 1.0, "l2_reg": 1.0, "l2_reg_mean": 1e4, "l2_reg_scaled": 5e-5,
    "grafting": 1e-4, "grafting_mean": 3.0, "grafting_scaled": 5e-9,
}
TRAINED = tuple(name for name, entry in METHODS.items() if entry.kind == "training")
PLACES = (
    ("ddp", 2), ("zero1", 1), ("zero1", 2), ("zero2", 1), ("zero2", 2), ("zero3", 1), ("zero3", 2), ("zero3", 3),
    ("fsdp2", 2), ("fsdp2", 3),
)
BF16_PLACES = (("zero1", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 2))
UNMASKED = " has elements with M = 0 that are not pretrained"  # in the weights of a forward pass
# One of each class, and the one that draws at every step.
FEW = (*{METHODS[name].cls: name for name in reversed(TRAINED)}.values(), "half_ft_step")


def methods_at(engine: str, processes: int) -> tuple[str, ...]:
    """Return the methods that are run in a place. FSDP2's layout is tested with all of them in test_fsdp.py."""
    return FEW if processes == 3 or engine == "fsdp2" else TRAINED


@dataclass(frozen=True)
class Result:
    """A training of one method.

    Attributes:
        weights: whole float32 masters.
        margins: by tensor, the smallest |G - I| that each element ever had (one process only).
        diagnostics: after the last step.
        calls: tensors of every hook call, by step.
        faults: what was wrong with the weights of the next forward pass (bfloat16 only).
    """

    weights: dict[str, Tensor]
    margins: dict[str, Tensor]
    diagnostics: dict[str, float]
    calls: list[list[list[str]]]
    faults: list[str]


@dataclass(frozen=True)
class Difference:
    """What became of a method: its refusal; or the largest difference of a weight, elements whose decision came out
    otherwise left aside, their number, and the largest distance that one of them had from the threshold."""

    refused: str = ""
    largest: float = 0.0
    flipped: int = 0
    margin: float = 0.0
    elements: int = 0

    @property
    def fine(self) -> bool:
        """Whether this is what rounding explains."""
        return self.largest <= TOLERANCE and self.flipped <= FLIPPED * self.elements and self.margin < MARGIN

    def __str__(self) -> str:
        if self.refused:
            return "refused"
        return f"{self.largest:.1e}" + f" +{self.flipped}" * bool(self.flipped)


def results(
    folder: Path, engine: str, dtype: str = "float32", processes: int = 1, methods: Iterable[str] = TRAINED,
    eps: float = EPS, share: bool = True,
) -> dict[str, Result | str]:
    """Train every method in turn; run it in every process.

    Returns:
        A result for each method, or what it says when it refuses.
    """
    data, made = Data.read(folder), {}
    for name in methods:
        method = build(name, {"strength": STRENGTHS[name]} if name in STRENGTHS else {}, 0)
        try:
            training = Training(data, engine, method, dtype, processes, eps, share)
            margins: dict[str, Tensor] = {}
            faults: list[str] = []
            for number in range(STEPS):
                training.step(number)
                diagnostics = training.attachment.diagnostics()
                if dtype == "bfloat16":
                    faults += forward_faults(training)
                if engine == "plain":
                    for shard in method.shards:
                        margin = decision_margin(method, shard)
                        margins[shard.name] = torch.minimum(margins.get(shard.name, margin), margin)
            assert engine != "plain" or min(training.norms) > MAX_NORM, "no step is clipped"
        except UserError as error:
            made[name] = str(error)
            continue
        made[name] = Result(training.masters(), margins, diagnostics, training.calls, faults)
        training.close()
    return made


def by_hand(folder: Path, processes: int, fsdp2: bool) -> dict[str, Result | str]:
    """Return what one plain process gets that keeps float32 masters of a bfloat16 model by hand.

    Args:
        folder: with model and images.
        processes: cut the batches as for so many.
        fsdp2: to compare with FSDP2, not with ZeRO: with its methods, and without tokens that run only once.
    """
    methods = methods_at("fsdp2", processes) if fsdp2 else TRAINED
    return launch(results, 1, folder, "plain", "bfloat16", processes, methods, EPS, not fsdp2)[0]


def forward_faults(training: Training) -> list[str]:
    """Check the weights of the next forward pass of this process; every process calls it, after diagnostics.

    They must be the masters in bfloat16, bit for bit, and where the method's mask is 0 the base checkpoint's.
    """
    forward, faults = training.forward_weights(), []
    for name, master in training.masters().items():
        if not torch.equal(forward[name], master.bfloat16()):
            faults.append(f"{name} is not the master in bfloat16")
    for shard in training.method.shards:
        if hasattr(training.method, "mask"):
            restored = training.method.mask(shard) == 0
            seen = forward[shard.name].flatten().narrow(0, shard.offset, len(restored))
            if not torch.equal(seen[restored], shard.pretrained.bfloat16()[restored]):
                faults.append(f"{shard.name}{UNMASKED}")
    return faults


def decision_margin(method: Method, shard: Shard) -> Tensor:
    """Return how far each element is from the threshold of the method's mask, as a difference of importances."""
    name = shard.name
    if isinstance(method, Spider):
        special = ops.rank(method.accumulated[name], method._special[name])
        return (special - ops.rank(shard.pretrained, method._generic[name])).abs()
    if isinstance(method, Select) and method.params.by == "gradient":
        values = method.accumulated[name]
        moments = ops.moments(ops.abs_sums(values))
        limit = torch.full_like(values, method._largest[name].limit.item())
        return (ops.rank(values, moments) - ops.rank(limit, moments)).abs()
    if isinstance(method, Grafting):  # the sign of the change
        return (shard.weight - shard.pretrained).abs()
    return torch.full_like(shard.weight, torch.inf)


def compare(expected: Result | str, found: Result | str, tolerance: float = TOLERANCE) -> Difference:
    """Compare a method's training with that of one plain process.

    Args:
        expected: of one process.
        found: of another engine.
        tolerance: a larger difference of an element with a decision counts as a flip of it.
    """
    if isinstance(found, str):
        return Difference(refused=found)
    assert isinstance(expected, Result)
    differences = {name: (found.weights[name] - value).abs().flatten() for name, value in expected.weights.items()}
    assert found.weights.keys() == expected.weights.keys()
    both = torch.cat(list(differences.values()))
    margins = torch.cat([expected.margins[name] for name in differences])
    flipped = (both > tolerance) & margins.isfinite()
    return Difference(
        largest=both[~flipped].max().item() if not both.isnan().any() else torch.inf,
        flipped=int(flipped.sum()),
        margin=margins[flipped].max().item() if flipped.any() else 0.0,
        elements=len(both),
    )


def table(columns: Mapping[str, Mapping[str, object]]) -> str:
    """Return a Markdown table of methods (rows) and places (columns)."""
    lines = [f"| method | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for method in TRAINED:
        lines.append(f"| {method} | {' | '.join(str(column.get(method, '')) for column in columns.values())} |")
    return "\n".join(lines)
