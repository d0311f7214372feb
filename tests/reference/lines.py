"""LiNeS (Wang et al., 2025), float64 numpy, as the released notebook scales a task vector."""

from __future__ import annotations

import numpy as np


def scale(pretrained: np.ndarray, finetuned: np.ndarray, block: int | None, blocks: int, alpha: float) -> np.ndarray:
    """w* + (alpha + beta block / (blocks - 1)) (w - w*) with alpha + beta = 1; alpha alone outside the blocks."""
    beta = 1 - alpha
    factor = alpha if block is None else alpha + beta * (block / (blocks - 1))
    return pretrained + factor * (finetuned - pretrained)
