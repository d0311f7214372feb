"""WiSE-FT (Wortsman et al., 2022, Eq. 1), float64 numpy."""

from __future__ import annotations

import numpy as np


def interpolate(pretrained: np.ndarray, finetuned: np.ndarray, alpha: float) -> np.ndarray:
    """(1 - alpha) w* + alpha w."""
    return (1 - alpha) * pretrained + alpha * finetuned
