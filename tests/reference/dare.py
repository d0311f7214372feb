"""DARE (Yu et al., 2024) and its variants without the rescale, float64 numpy."""

from __future__ import annotations

import numpy as np


def merge(pretrained: np.ndarray, finetuned: np.ndarray, kept: np.ndarray, keep: float) -> np.ndarray:
    """w* + m (w - w*) / (1 - p), with m = 1 where kept and drop rate p = 1 - keep."""
    p = 1 - keep
    return pretrained + kept * (finetuned - pretrained) / (1 - p)


def drop_only(pretrained: np.ndarray, finetuned: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """w* + m (w - w*)."""
    return np.where(kept, finetuned, pretrained)


def magnitude(pretrained: np.ndarray, finetuned: np.ndarray, keep: float) -> np.ndarray:
    """Without the k = int(n (1 - keep)) smallest changes: w* wherever the change is at most the k-th smallest."""
    change = np.abs(finetuned - pretrained)
    k = int(change.size * (1 - keep))
    if k == 0:
        return finetuned
    return np.where(change <= np.sort(change, axis=None)[k - 1], pretrained, finetuned)
