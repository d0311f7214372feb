"""Measured bytes: what a counter sees, and what methods keep on a small model."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch

from benchmark.running.method_cost import Bench, LiveBytes, _tensors, kept_bytes
from benchmark.training.attach import attach
from methods.base import Method, NoParams

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


class Holder(Method):
    """Keeps tensors in every kind of container, a view, the weights themselves, and functions."""

    uses_pretrained = False

    def start(self, shards):
        self.weights = [shard.weight for shard in shards]
        self.sets, self.read_only = {torch.zeros(8)}, MappingProxyType({"a": torch.zeros(16)})
        self.view = torch.zeros(32)[:1]  # keeps the whole storage alive
        self.function, self.module = torch.zeros(64).add, torch.nn.Linear(9, 9)


@pytest.mark.parametrize("reads", [False, True])
def test_kept_bytes_are_those_of_whole_storages_in_any_container(reads):
    layer = torch.nn.Linear(SIDE, SIDE, bias=False)
    method = Holder(NoParams(), 0)
    method.uses_pretrained = reads
    named = {"layer.weight": layer.weight}
    base = {"layer.weight": layer.weight.detach().clone()}
    attach(torch.optim.AdamW(named.values()), named, base, method)
    own, weights = 4 * (8 + 16 + 32), 4 * SIDE * SIDE
    assert kept_bytes(method) == own + weights + reads * weights  # w* counts if the method reads it
    assert kept_bytes(method, [layer.weight]) == own + reads * weights
