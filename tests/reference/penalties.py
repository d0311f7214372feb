"""L2-Reg and Grafting: gradients of the penalties, added to recorded (clipped) gradients, float64 numpy."""

from __future__ import annotations

import numpy as np

from tests.reference.adamw import AdamW, Arrays


def l2_gradient(change: np.ndarray, strength: float) -> np.ndarray:
    """Derivative of strength * sum(change^2)."""
    return strength * 2 * change


def l1_gradient(change: np.ndarray, strength: float) -> np.ndarray:
    """Derivative of strength * sum(|change|); 0 where the change is 0."""
    result = np.zeros_like(change)
    result[change > 0] = strength
    result[change < 0] = -strength
    return result


def train(pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, penalty, strength: float) -> Arrays:
    """AdamW on task gradient plus penalty gradient."""
    w = {name: value.copy() for name, value in pretrained.items()}
    for g in gradients:
        w = optimizer.step(w, {name: g[name] + penalty(w[name] - pretrained[name], strength) for name in w})
    return w


def train_mean(
    pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, penalty, strength: float, two_step: bool
) -> Arrays:
    """The penalty is strength * mean over tensors of mean over elements; two_step: it has its own AdamW step first."""
    w = {name: value.copy() for name, value in pretrained.items()}
    for g in gradients:
        means = {
            name: penalty(w[name] - pretrained[name], 1.0) / value.size / len(w) for name, value in w.items()
        }
        if two_step:
            w = optimizer.step(w, {name: strength * means[name] for name in w})
            w = optimizer.step(w, g)
        else:
            w = optimizer.step(w, {name: g[name] + strength * means[name] for name in w})
    return w
