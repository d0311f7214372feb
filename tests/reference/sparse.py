"""GPS, SPU, GMT, MoFO and static magnitude masks by sorting, float64 numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.reference.adamw import AdamW, Arrays
from tests.reference.select import largest


def gps(total: Arrays, count: int) -> Arrays:
    """Which elements train: the largest of each row of a matrix, biases, and no other vector."""
    return {
        name: np.stack([largest(row, count) for row in g]) if g.ndim > 1 else np.full(g.shape, name.endswith("bias"))
        for name, g in total.items()
    }


def spu(total: Arrays, share: float) -> Arrays:
    """Which elements train: the largest of the gate and up projections."""
    return {
        name: largest(g, int(round(share * g.size, 6)))
        if name.endswith(("mlp.gate_proj.weight", "mlp.up_proj.weight")) else np.zeros(g.shape, bool)
        for name, g in total.items()
    }


def train_first(
    pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, steps: int, choose: Callable[[Arrays], Arrays]
) -> Arrays:
    """Sum the gradients of the first steps at w*, choose with them, and train what was chosen."""
    w = {name: value.copy() for name, value in pretrained.items()}
    total = {name: np.zeros_like(value) for name, value in w.items()}
    chosen = {name: np.zeros(value.shape, bool) for name, value in w.items()}
    for number, g in enumerate(gradients, 1):
        if number <= steps:
            total = {name: total[name] + g[name] for name in g}
        if number == steps:
            chosen = choose(total)
        w = optimizer.step(w, {name: g[name] * chosen[name] for name in g})
        w = {name: np.where(chosen[name], w[name], pretrained[name]) for name in w}
    return w


def train_gmt(pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, share: float) -> Arrays:
    """AdamW on the largest gradients of every tensor and step."""
    w = {name: value.copy() for name, value in pretrained.items()}
    for g in gradients:
        w = optimizer.step(w, {name: g[name] * largest(g[name], int(round(share * g[name].size, 6))) for name in g})
    return w


def train_mofo(pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, share: float) -> Arrays:
    """AdamW, of whose step only the elements with the largest momentum take part."""
    w = {name: value.copy() for name, value in pretrained.items()}
    for g in gradients:
        stepped = optimizer.step(w, g)
        w = {
            name: np.where(largest(optimizer.first[name], int(round(share * w[name].size, 6))), stepped[name], w[name])
            for name in w
        }
    return w
