"""Graft mask training (Panigrahi et al., 2023, Sec. 2), float64 numpy, in the released code's parametrisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def train(
    pretrained: np.ndarray, finetuned: np.ndarray, gradient: Callable[[np.ndarray], np.ndarray],
    share: float, steps: int, rate: float, bias: float,
) -> np.ndarray:
    """Return the grafted weights: gamma = gamma_0 + (1 - 2 gamma_0) sigmoid(S - b), with S from 0 by gradient descent.

    Args:
        pretrained: all elements of the model, flat.
        finetuned: same.
        gradient: of the loss with respect to the weights.
        share: of the base patch gamma_0, the largest changes, and of the result; of equal ones the first.
        steps: of the descent.
        rate: root mean square of the first.
        bias: b.
    """
    change = finetuned - pretrained
    count = int(share * change.size)
    patch = np.zeros(change.size)
    patch[np.argsort(-np.abs(change), kind="stable")[:count]] = 1
    scores, scale = np.zeros(change.size), None
    for _ in range(steps):
        squashed = 0.5 * (1 + np.tanh((scores - bias) / 2))  # the logistic function
        gamma = patch + (1 - 2 * patch) * squashed
        slope = gradient(pretrained + gamma * change) * change * (1 - 2 * patch) * squashed * (1 - squashed)
        scale = np.sqrt(np.mean(slope**2)) if scale is None else scale
        scores = scores - rate * slope / scale
    height = (1 - 2 * patch) * (scores - bias)  # of gamma's logit
    first = np.argsort(-height, kind="stable")[:count]
    result = pretrained.copy()
    result[first] = np.where(height[first] > 0, finetuned[first], pretrained[first])
    return result
