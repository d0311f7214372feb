"""LoRA (Hu et al., 2022) merged into its weight, float64 numpy."""

from __future__ import annotations

import numpy as np


def merged(weight: np.ndarray, down: np.ndarray, up: np.ndarray, alpha: float, rslora: bool = False) -> np.ndarray:
    """W + s B A with s = alpha / r, or alpha / sqrt(r) for rsLoRA; A is (r, in), B is (out, r)."""
    rank = down.shape[0]
    return weight + alpha / (rank**0.5 if rslora else rank) * up @ down
