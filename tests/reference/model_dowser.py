"""Model-Dowser's selection by sorting, float64 numpy."""

from __future__ import annotations

import numpy as np

from tests.reference.adamw import Arrays
from tests.reference.select import largest


def chosen(pretrained: Arrays, samples: list[Arrays], share: float) -> Arrays:
    """Which elements train: the smallest |w*| times the mean sensitivity of their tensor."""
    result = {}
    for name, w in pretrained.items():
        if name in samples[0]:
            score = np.abs(w) * sum(np.abs(sample[name]) for sample in samples) / len(samples)
            result[name] = ~largest(score, w.size - int(round(share * w.size, 6)))
        else:
            result[name] = np.zeros(w.shape, bool)
    return result
