"""Table 3's selections with their share gamma, by sorting, float64 numpy."""

from __future__ import annotations

import numpy as np

from tests.reference.adamw import AdamW, Arrays


def largest(x: np.ndarray, count: int) -> np.ndarray:
    """Which elements are the `count` largest magnitudes; of equal ones the first in the flattened tensor."""
    chosen = np.zeros(x.size, bool)
    chosen[np.argsort(-np.abs(x), axis=None, kind="stable")[:count]] = True
    return chosen.reshape(x.shape)


def small(x: np.ndarray, frozen: int) -> np.ndarray:
    """Which elements train when the `frozen` largest magnitudes do not."""
    return ~largest(x, frozen)


def train_static(pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, selected: Arrays) -> Arrays:
    """Elements that are not selected keep w*; the optimizer sees zeros for them."""
    w = {name: value.copy() for name, value in pretrained.items()}
    for g in gradients:
        w = optimizer.step(w, {name: g[name] * selected[name] for name in g})
        w = {name: np.where(selected[name], w[name], pretrained[name]) for name in w}
    return w


def train_gradient(
    pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, share: float, momentum: float
) -> Arrays:
    """At every step, the largest accumulated gradients are selected anew."""
    w = {name: value.copy() for name, value in pretrained.items()}
    A = {name: np.zeros_like(value) for name, value in pretrained.items()}
    for g in gradients:
        A = {name: momentum * A[name] + (1 - momentum) * g[name] for name in A}
        w = optimizer.step(w, g)
        w = {
            name: np.where(largest(A[name], int(share * A[name].size)), w[name], pretrained[name])
            for name in w
        }
    return w
