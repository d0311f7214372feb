"""Which losses there are, what each needs, and which settings of `train` belong to it; importing this imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from benchmark.spec import TrainSpec

# Losses that compare with the base model's logits, which takes a second forward pass.
NEEDS_BASE = frozenset({"lwf", "asft"})
# Settings of `train` -> the loss without which they do nothing.
OWNER = {
    "lwf_weight": "lwf", "lwf_temperature": "lwf", "asft_weight": "asft", "eaft_top": "eaft", "eaft_power": "eaft",
    "talr_floor": "talr",
}
QUANTISED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights")


def settled(train: TrainSpec) -> TrainSpec:
    """Return training settings with those of other losses at their defaults: they change no number, so no name."""
    defaults = {item.name: item.default for item in dataclasses.fields(TrainSpec)}
    return dataclasses.replace(train, **{
        name: defaults[name] for name, loss in OWNER.items() if loss != train.loss
    })


def idle(name: str, trains: Iterable[TrainSpec]) -> str | None:
    """Return why a setting does nothing in any of these trainings, and what to do; None if it does something."""
    loss = OWNER.get(name)
    if loss is None or any(train.loss == loss for train in trains):
        return None
    return f"it belongs to train.loss={loss}, which no cell of this request has. Leave it out, or set train.loss={loss}."


def freed(train: TrainSpec, zero: Mapping[str, object]) -> str | None:
    """Return why a loss cannot compare with the base model because an engine does not keep its weights; else None.

    Args:
        train: the training settings.
        zero: DeepSpeed's section zero_optimization; empty for engine=single.
    """
    wrong = [name for name in QUANTISED if zero.get(name)]
    if train.loss not in NEEDS_BASE or not wrong:
        return None
    return (
        f"train.loss={train.loss} compares with the base model, whose weights engine.zero_optimization.{wrong[0]} frees "
        "and keeps only in 8 bits. Switch it off, or use train.loss=cross_entropy."
    )
