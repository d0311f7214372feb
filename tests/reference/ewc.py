"""EWC in float64 numpy: loss + lambda / 2 sum_i F_i (w_i - w*_i)^2 (Kirkpatrick et al., PNAS 2017, Eq. 3)."""

from __future__ import annotations

import numpy as np

from tests.reference.adamw import AdamW, Arrays


def fisher(samples: list[Arrays]) -> Arrays:
    """Mean over samples of squared gradients, divided by the mean of that over all elements of all tensors."""
    mean = {name: np.mean([sample[name] ** 2 for sample in samples], axis=0) for name in samples[0]}
    everything = np.concatenate([value.ravel() for value in mean.values()])
    return {name: value / everything.mean() for name, value in mean.items()}


def train(
    pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, importance: Arrays, strength: float
) -> Arrays:
    """AdamW on the task's gradient plus lambda F (w - w*), the derivative of lambda / 2 F (w - w*)^2."""
    w = {name: value.copy() for name, value in pretrained.items()}
    for g in gradients:
        w = optimizer.step(w, {
            name: g[name] + strength * importance[name] * (w[name] - pretrained[name]) for name in w
        })
    return w
