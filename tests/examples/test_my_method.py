"""The example of an own method: it loads, keeps exactly its share of gradients, and is planned like any other."""

from __future__ import annotations

import pytest
import torch

from benchmark.cli import main
from benchmark.core.errors import UserError
from benchmark.training.attach import attach
from methods.registry import build, entry
from tests.methods import parts

NAME = "examples.my_method:TopKGradient"


def test_the_registry_loads_it():
    item = entry(NAME)
    assert (item.name, item.kind) == ("TopKGradient", "training")
    assert build(NAME, {}, seed=0).params.share == 0.1
    with pytest.raises(UserError, match="Did you mean 'share'"):
        build(NAME, {"shares": 0.2}, seed=0)


@pytest.mark.parametrize("share", [0.1, 0.35, 1.0])
def test_only_the_largest_gradients_reach_the_optimizer(share):
    source = torch.Generator().manual_seed(0)
    weights = {
        name: torch.nn.Parameter(torch.randn(shape, generator=source))
        for name, shape in {"a": (20, 10), "b": (33,)}.items()
    }
    before = {name: value.detach().clone() for name, value in weights.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=1.0)
    attach(optimizer, weights, before, build(NAME, {"share": share}, seed=0))
    gradients = {name: torch.randn(value.shape, generator=source) for name, value in weights.items()}
    for name, value in weights.items():
        value.grad = gradients[name].clone()
    optimizer.step()
    for name, value in weights.items():
        gradient = gradients[name]
        kept = torch.zeros(value.numel(), dtype=torch.bool)
        kept[gradient.abs().flatten().sort(descending=True, stable=True).indices[: int(share * value.numel())]] = True
        kept = kept.view_as(gradient)
        torch.testing.assert_close(value.detach(), before[name] - gradient * kept, rtol=0, atol=1e-6)


def test_a_cut_tensor_gives_the_same_gradients():
    values = torch.randn(40, generator=torch.Generator().manual_seed(1))

    def work(shards):
        method = build(NAME, {}, seed=0)
        method.start(shards)
        method.before_step(shards)
        return torch.cat([shard.grad for shard in shards])

    whole = parts.run(parts.cut({"w": values}, 1, lambda rank, size: size), {"w": 40}, work)
    pieces = parts.run(parts.cut({"w": values}, 3, lambda rank, size: (9, 9)[rank]), {"w": 40}, work)
    assert torch.equal(torch.cat(pieces), whole[0]) and whole[0].count_nonzero() == 4


@pytest.mark.slow
def test_it_is_planned_beside_full_ft(tmp_path, capsys):
    assert main(["plan", "table=smoke", f"methods=full_ft,{NAME}", f"results={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "examples.my_method.TopKGradient" in out and "2 cells" in out
