"""SPIDER, Eqs. 2-8 and Algorithm 1 of the paper, line by line in float64 numpy."""

from __future__ import annotations

import numpy as np

from tests.reference.adamw import AdamW, Arrays


def importance(x: np.ndarray) -> np.ndarray:
    """Eqs. 2a-2c and 4; all-zero tensors rank 0, constant and one-element tensors 1/2 (z = 0)."""
    x = np.abs(x)  # (2a)
    if not x.any():
        return np.zeros_like(x)
    if x.size == 1 or np.ptp(x) == 0:
        return np.full_like(x, 0.5)
    x = (x - x.mean()) / x.std(ddof=1)  # (2b)
    return 1 / (1 + np.exp(-x))  # (2c)


def mask(G: np.ndarray, I: np.ndarray) -> np.ndarray:  # noqa: E741 - the paper's letters
    """Eqs. 5, 7 and 8."""
    M = np.zeros_like(G)
    selected = G > I  # (5)
    M[selected] = G[selected] / (G[selected] + I[selected])  # (7)
    if selected.any():
        M[selected] = np.minimum(1, M[selected] / M[M != 0].mean())  # (8)
    return M


def train(pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, momentum: float) -> Arrays:
    """Algorithm 1 on recorded gradients; momentum as A <- momentum A + (1 - momentum) delta (Sec. 3.2.1)."""
    w = {name: value.copy() for name, value in pretrained.items()}
    A = {name: np.zeros_like(value) for name, value in pretrained.items()}
    for delta in gradients:
        M = {}
        for name in w:
            A[name] = momentum * A[name] + (1 - momentum) * delta[name]
            M[name] = mask(importance(A[name]), importance(pretrained[name]))
        w = optimizer.step(w, delta)
        w = {name: w[name] * M[name] + pretrained[name] * (1 - M[name]) for name in w}  # (6)
    return w
