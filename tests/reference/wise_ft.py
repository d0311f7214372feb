"""WiSE-FT (Wortsman et al., 2022, Eq. 1), and with an alpha for each tensor, float64 numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Gradient = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def interpolate(pretrained: np.ndarray, finetuned: np.ndarray, alpha: float) -> np.ndarray:
    """(1 - alpha) w* + alpha w."""
    return (1 - alpha) * pretrained + alpha * finetuned


def per_tensor(
    pretrained: dict[str, np.ndarray], finetuned: dict[str, np.ndarray], target: Gradient, generic: Gradient,
    share: float, steps: int, rate: float,
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Learn alpha_t = 1 / (1 + exp(-a_t)) by gradient descent from a_t = 0; return the weights and the alphas.

    The first step has the root mean square `rate`, the others the same factor. Losses are given by their gradients.
    """
    names = list(pretrained)
    a = np.zeros(len(names))
    eta = None
    for _ in range(steps):
        alpha = 1 / (1 + np.exp(-a))
        at = {n: interpolate(pretrained[n], finetuned[n], x) for n, x in zip(names, alpha, strict=True)}
        one, two = target(at), generic(at)
        slope = np.array([
            ((share * one[n] + (1 - share) * two[n]) * (finetuned[n] - pretrained[n])).sum() for n in names
        ]) * alpha * (1 - alpha)
        eta = rate / np.sqrt(np.mean(slope**2)) if eta is None else eta
        a = a - eta * slope
    alpha = 1 / (1 + np.exp(-a))
    return {n: interpolate(pretrained[n], finetuned[n], x) for n, x in zip(names, alpha, strict=True)}, list(alpha)
