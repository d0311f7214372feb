"""Half FT with given sets of frozen tensors, float64 numpy."""

from __future__ import annotations

import numpy as np

from tests.reference.adamw import AdamW, Arrays


def train(pretrained: Arrays, gradients: list[Arrays], optimizer: AdamW, draws: list[set[str]]) -> Arrays:
    """A step's frozen tensors keep the value that they have; the optimizer sees zeros for them."""
    w = {name: value.copy() for name, value in pretrained.items()}
    for g, frozen in zip(gradients, draws, strict=True):
        g = {name: np.zeros_like(value) if name in frozen else value for name, value in g.items()}
        updated = optimizer.step(w, g)
        w = {name: w[name] if name in frozen else updated[name] for name in w}
    return w


def trained_per_layer(layers: int) -> dict[str, list[int]]:
    """How many matrices of each category train, over layers, sorted (Hui et al., category level)."""
    two = (layers + 1) // 2  # layers in which 2 of 3 feed-forward matrices train
    wide = [1] * (layers - two) + [2] * two
    return {"attention": [2] * layers, "feed_forward": wide, "norms": [1] * layers}
