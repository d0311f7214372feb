"""Intruder dimension reduction as peft (0.21) computes it before it cuts to the adapter's rank, float64 numpy."""

from __future__ import annotations

import numpy as np


def reduce(pretrained: np.ndarray, finetuned: np.ndarray, top: int, threshold: float, scale: float) -> np.ndarray:
    """W_merged + (lambda - 1) B A, where B A is made of the intruders' singular triples of W_merged, one by one."""
    u, s, vt = np.linalg.svd(finetuned, full_matrices=False)
    base = np.linalg.svd(pretrained, full_matrices=False)[0]
    result = finetuned.copy()
    for i in range(min(top, len(s))):
        if max(abs(float(u[:, i] @ base[:, j])) for j in range(base.shape[1])) < threshold:
            result += (scale - 1) * s[i] * np.outer(u[:, i], vt[i])
    return result
