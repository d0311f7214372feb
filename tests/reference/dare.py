"""DARE (Yu et al., 2024): drop and rescale, float64 numpy."""

from __future__ import annotations

import numpy as np


def merge(pretrained: np.ndarray, finetuned: np.ndarray, kept: np.ndarray, keep: float) -> np.ndarray:
    """w* + m (w - w*) / (1 - p), with m = 1 where kept and drop rate p = 1 - keep."""
    p = 1 - keep
    return pretrained + kept * (finetuned - pretrained) / (1 - p)
