"""A user's own method, examples/my_method.py, works on several processes with nothing else written."""

from __future__ import annotations

import torch

from tests.multiprocess.launch import launch
from tests.multiprocess.parity import FLIPPED, TOLERANCE, results
from tests.multiprocess.training import STEPS

NAME = "examples.my_method:TopKGradient"


def test_the_example_under_zero2(folder):
    plain = launch(results, 1, folder, "plain", "float32", 1, (NAME, "full_ft"))[0]
    first, second = (rank[NAME] for rank in launch(results, 2, folder, "zero2", "float32", 1, (NAME,)))
    names = list(plain[NAME].weights)
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in names)

    def far(other: dict[str, torch.Tensor]) -> float:
        """Return the share of weights that differ from those of one plain process."""
        changes = [(other[name] - plain[NAME].weights[name]).abs().flatten() > TOLERANCE for name in names]
        return torch.cat(changes).double().mean().item()

    # A gradient may come out on the other side of the limit by rounding.
    assert far(first.weights) <= FLIPPED
    assert far(plain["full_ft"].weights) > 0.5, "the method does nothing, so this tests little"
    assert len(first.calls) == STEPS
