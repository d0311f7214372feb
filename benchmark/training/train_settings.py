"""What each loss needs, and which settings of `train` belong to which other one; importing this imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from benchmark.spec import TrainSpec

NEEDS_BASE = frozenset({"lwf", "asft"})  # losses that compare with the base model's logits
TWO_PASSES = NEEDS_BASE | {"talr"}  # losses with a second forward pass, without gradients
# Settings of `train` -> the setting, and its values, without which they do nothing.
OWNER = {
    "lwf_weight": ("loss", ("lwf",)), "lwf_temperature": ("loss", ("lwf",)), "asft_weight": ("loss", ("asft",)),
    "eaft_top": ("loss", ("eaft",)), "eaft_power": ("loss", ("eaft",)), "talr_floor": ("loss", ("talr",)),
    "replay_share": ("replay", ("generic", "source")), "replay_rows": ("replay", ("generic", "source")),
}
QUANTISED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights")


def settled(train: TrainSpec) -> TrainSpec:
    """Return training settings with those that do nothing at their defaults: they change no number, so no name."""
    defaults: dict[str, Any] = {item.name: item.default for item in dataclasses.fields(TrainSpec)}
    return dataclasses.replace(train, **{
        name: defaults[name] for name, (owner, values) in OWNER.items() if getattr(train, owner) not in values
    })


def idle(name: str, trains: Iterable[TrainSpec]) -> str | None:
    """Return why a setting does nothing in any of these trainings, and what to do; None if it does something."""
    owner, values = OWNER.get(name, ("", ()))
    if not owner or any(getattr(train, owner) in values for train in trains):
        return None
    return (
        f"it belongs to train.{owner}={' or '.join(values)}, which no cell of this request has. Leave it out, or set "
        f"train.{owner}."
    )


def freed(train: TrainSpec, zero: Mapping[str, object]) -> str | None:
    """Return why a loss cannot compare with the base model, whose weights an engine does not keep; else None.

    Args:
        train: the training settings.
        zero: DeepSpeed's section zero_optimization; empty for engine=single.
    """
    wrong = [name for name in QUANTISED if zero.get(name)]
    if train.loss not in NEEDS_BASE or not wrong:
        return None
    return (
        f"train.loss={train.loss} compares with the base model, whose weights engine.zero_optimization.{wrong[0]} "
        "frees and keeps only in 8 bits. Switch it off, or use train.loss=cross_entropy."
    )
