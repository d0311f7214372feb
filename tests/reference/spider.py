"""SPIDER, Eqs. 2-8 and Algorithm 1 of the paper, line by line in float64 numpy; and its named variants."""

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


def mask(G: np.ndarray, I: np.ndarray, hard: bool = False) -> np.ndarray:  # noqa: E741 - the paper's letters
    """Eq. 5 alone if hard, else Eqs. 5, 7 and 8."""
    M = np.zeros_like(G)
    selected = G > I  # (5)
    if hard:
        M[selected] = 1
        return M
    M[selected] = G[selected] / (G[selected] + I[selected])  # (7)
    if selected.any():
        M[selected] = np.minimum(1, M[selected] / M[M != 0].mean())  # (8)
    return M


def masks(A: Arrays, pretrained: Arrays, hard: bool, groups: list[list[str]]) -> Arrays:
    """M of every tensor, with the tensors of a group joined to one long vector."""
    M = {}
    for names in groups:
        joined = mask(
            importance(np.concatenate([A[name].ravel() for name in names])),
            importance(np.concatenate([pretrained[name].ravel() for name in names])),
            hard,
        )
        for name in names:
            M[name], joined = joined[: A[name].size].reshape(A[name].shape), joined[A[name].size :]
    return M


def train(
    pretrained: Arrays,
    gradients: list[Arrays],
    optimizer: AdamW,
    momentum: float,
    *,
    total: bool = False,
    absolute: bool = False,
    hard: bool = False,
    groups: list[list[str]] | None = None,
    lag: bool = False,
) -> Arrays:
    """Algorithm 1 on recorded gradients; momentum as A <- momentum A + (1 - momentum) delta (Sec. 3.2.1).

    total: A <- A + delta. absolute: of |delta|. lag: a step's mask is applied at the start of the next step, and the
    gradients of that step are those of the weights before it.
    """
    w = {name: value.copy() for name, value in pretrained.items()}
    A = {name: np.zeros_like(value) for name, value in pretrained.items()}
    M = {name: np.ones_like(value) for name, value in pretrained.items()}

    def blend(w: Arrays) -> Arrays:
        return {name: w[name] * M[name] + pretrained[name] * (1 - M[name]) for name in w}  # (6)

    for delta in gradients:
        if lag:
            w = blend(w)
        for name in w:
            seen = np.abs(delta[name]) if absolute else delta[name]
            A[name] = A[name] + seen if total else momentum * A[name] + (1 - momentum) * seen
        M = masks(A, pretrained, hard, groups or [[name] for name in w])
        w = optimizer.step(w, delta)
        if not lag:
            w = blend(w)
    return w


def posthoc(pretrained: np.ndarray, finetuned: np.ndarray) -> np.ndarray:
    """The mask once, with the total change in place of the accumulated gradient."""
    M = mask(importance(finetuned - pretrained), importance(pretrained))
    return finetuned * M + pretrained * (1 - M)
