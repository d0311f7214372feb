"""The uniform soup (Wortsman et al., 2022) on the line from the base model, float64 numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def average(pretrained: np.ndarray, finetuned: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """(1 - alpha) w* + alpha (w_1 + ... + w_n) / n."""
    return (1 - alpha) * pretrained + alpha * sum(finetuned) / len(finetuned)


def mergekit_linear(finetuned: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """mergekit's `linear` with normalize: sum_i c_i w_i / sum_i c_i."""
    return sum(c * w for c, w in zip(weights, finetuned, strict=True)) / sum(weights)
