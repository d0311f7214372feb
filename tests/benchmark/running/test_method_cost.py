"""Measured bytes: what a counter sees, and what methods keep on a small model."""

from __future__ import annotations

import pytest
import torch

from benchmark.running.method_cost import Bench, LiveBytes, _tensors
from benchmark.training.attach import attach

SIDE = 64


def test_the_counter_sees_new_tensors_while_they_live_and_no_views_or_arguments():
    given = torch.zeros(1000)
    counter = LiveBytes()
    with counter:
        one = given + 1
        assert counter.now == 4000
        view, _ = one[:10], given.add_(1)
        assert counter.now == 4000
        del one
        assert counter.now == 4000  # the view keeps it alive
        del view
        assert counter.now == 0
        two = (given * 2) + 3
        assert counter.now == 4000 and counter.peak == 8000
    assert two.sum() > 0


class Toy(Bench):
    """A bench over one linear layer; only the steps differ from the real one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(SIDE, SIDE, bias=False)
        self.unit = 4 * SIDE * SIDE

    def steps(self, cell, method, count):
        parameters = {"layer.weight": self.layer.weight}
        base = {"layer.weight": self.layer.weight.detach().clone()}
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
        attachment = attach(optimizer, parameters, base, method)
        for _ in range(count):
            self.layer(torch.randn(8, SIDE)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            yield 0.0
        attachment.remove()


class Cell:
    """As much of a cell as the bench reads."""

    seed = 0

    def __init__(self, method: str) -> None:
        self.method = type("Method", (), {"id": method, "params": {}})


@pytest.mark.parametrize(
    ("method", "memory"),
    # Full FT keeps nothing, a penalty w*, SPIDER w* and its accumulated gradients; its log a byte for 1 in 5 elements.
    [("full_ft", 0.0), ("l2_reg", 1.0), ("grafting", 1.0), ("spider", 2.05)],
)
def test_methods_keep_what_they_need(method, memory):
    found = Toy().bytes_of(Cell(method))
    assert found["memory"] == pytest.approx(memory, abs=0.01)
    assert found["peak"] >= found["memory"] - 1e-9
    assert (found["peak"] == 0) == (method == "full_ft")


def test_tensors_are_found_once_wherever_they_are():
    tensor = torch.zeros(3)
    holder = type("Holder", (), {})()
    holder.inner = {"a": [tensor, (tensor, torch.ones(2))], "self": holder}
    assert len(list(_tensors(vars(holder)))) == 2
