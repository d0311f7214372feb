"""Fisher merging (Matena and Raffel, 2022, Eq. 4), float64 numpy, on one flat vector of all weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def diagonal(gradients: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over samples of the squared gradient."""
    return np.mean(np.stack(gradients) ** 2, axis=0)


def merge(
    pretrained: np.ndarray, finetuned: np.ndarray, base: np.ndarray, tuned: np.ndarray, alpha: float
) -> np.ndarray:
    """(alpha F w + (1 - alpha) F* w*) / (alpha F + (1 - alpha) F*), with each Fisher over its rms, plus 1e-6."""
    new = tuned / np.sqrt(np.mean(tuned**2)) + 1e-6
    old = base / np.sqrt(np.mean(base**2)) + 1e-6
    return (alpha * new * finetuned + (1 - alpha) * old * pretrained) / (alpha * new + (1 - alpha) * old)


def mergelm(
    weights: Sequence[np.ndarray], fishers: Sequence[np.ndarray], coefficients: Sequence[float], floor: float = 1e-6
) -> np.ndarray:
    """MergeLM's merging_with_fisher_weights with normalize_fisher_weight: the floor is added before the division."""
    inverse = [1 / (np.linalg.norm(fisher) + floor) for fisher in fishers]
    scales = [c * one / sum(inverse) for c, one in zip(coefficients, inverse, strict=True)]
    raised = [scale * (fisher + floor) for scale, fisher in zip(scales, fishers, strict=True)]
    return sum(r * w for r, w in zip(raised, weights, strict=True)) / sum(raised)
