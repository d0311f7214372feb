"""The learned graft: binary, bounded, better than chance, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmark.core.errors import UserError
from methods.grafting_mask import top_share
from methods.registry import build
from tests.methods.checks import random_weights

SHAPES = {"a": (30, 40), "b": (7,), "same": (50,)}


class Task:
    """A quadratic loss that half of the changes serve and half harm."""

    def __init__(self, pretrained: dict, finetuned: dict) -> None:
        source = torch.Generator().manual_seed(5)
        self.best = {
            name: value + (finetuned[name] - value) * (2 * torch.randint(0, 2, value.shape, generator=source) - 1)
            for name, value in pretrained.items()
        }

    def loss(self, weights: dict) -> float:
        return sum((value - self.best[name]).square().sum().item() for name, value in weights.items())

    def gradient(self, weights: dict) -> dict:
        return {name: 2 * (value - self.best[name]) for name, value in weights.items()}


@pytest.fixture
def world():
    pretrained, finetuned = random_weights(1, SHAPES)
    finetuned["same"] = pretrained["same"].clone()
    return pretrained, finetuned, Task(pretrained, finetuned)


def merged(pretrained: dict, finetuned: dict, chosen: torch.Tensor) -> dict:
    parts = chosen.split([value.numel() for value in pretrained.values()])
    return {
        name: torch.where(part.view_as(value), finetuned[name], value)
        for (name, value), part in zip(pretrained.items(), parts, strict=True)
    }


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4, 1.0])
def test_a_bounded_part_of_the_change_that_serves_better_than_chance_or_size(world, share):
    pretrained, finetuned, task = world
    result = build("grafting_mask", {"share": share}, 0).finish(finetuned, pretrained, task)
    size, grafted = sum(value.numel() for value in pretrained.values()), 0
    for name, value in result.items():
        mask = value != pretrained[name]
        assert torch.equal(value[mask], finetuned[name][mask]) and value.dtype == torch.float32
        grafted += mask.sum().item()
    assert 0 < grafted <= share * size
    again = build("grafting_mask", {"share": share}, 7).finish(finetuned, pretrained, task)
    assert all(torch.equal(again[name], value) for name, value in result.items()), "nothing is drawn"
    change = torch.cat([(finetuned[name] - value).abs().flatten() for name, value in pretrained.items()])
    drawn = torch.zeros(size, dtype=torch.bool)
    drawn[torch.randperm(size, generator=torch.Generator().manual_seed(2))[:grafted]] = True
    largest = torch.zeros(size, dtype=torch.bool)
    largest[change.argsort(descending=True)[:grafted]] = True
    for other in (drawn, largest):
        assert task.loss(result) < task.loss(merged(pretrained, finetuned, other))


def test_a_loss_without_a_gradient_leaves_the_largest_changes(world):
    pretrained, finetuned, task = world
    task.gradient = lambda weights: {name: torch.zeros_like(value) for name, value in weights.items()}
    result = build("grafting_mask", {"share": 0.1}, 0).finish(finetuned, pretrained, task)
    change = {name: (finetuned[name] - value).abs() for name, value in pretrained.items()}
    limit = torch.cat([value.flatten() for value in change.values()]).sort(descending=True).values[125]
    for name, value in result.items():  # no two changes are equal
        assert torch.equal(value, torch.where(change[name] > limit, finetuned[name], pretrained[name]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 3])
def test_a_gradient_that_is_not_finite_is_no_mask(world, value, step):
    """All comparisons with NaN are false: the graft would be the base model, and its score a zero-shot one."""
    pretrained, finetuned, task = world
    right, calls = task.gradient, []

    def gradient(weights):
        calls.append(1)
        found = right(weights)
        if len(calls) > step:
            found["a"][0, 0] = value
        return found

    task.gradient = gradient
    with pytest.raises(UserError, match="gradient .* is not finite"):
        build("grafting_mask", {}, 0).finish(finetuned, pretrained, task)


def taken(share: float, values: dict, count: str = "exact") -> list:
    return torch.cat([mask.flatten() for mask in top_share(share, values, count).values()]).int().tolist()


def test_a_share_is_exact_and_of_equal_elements_the_first_are_in_it():
    values = {"a": torch.tensor([[5.0, 1.0], [3.0, 3.0]]), "b": torch.tensor([0.0])}
    assert [taken(share, values) for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)] == [
        [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1],
    ]
    hundred = {"a": torch.arange(60.0), "b": torch.ones(40)}
    assert [sum(taken(share, hundred)) for share in (0.29, 0.57, 0.58)] == [29, 57, 58], "0.29 * 100 is less than 29"


def released(share: float, changes: list[np.ndarray]) -> np.ndarray:
    """The base patch of src/graft_trainer.py, tensor by tensor."""
    k = int(share * sum(len(change) for change in changes))
    best = np.zeros(k)
    for change in changes:
        best = -np.sort(-np.concatenate([np.abs(change), best]))[:k]
    return np.concatenate([np.abs(change) > best.min() for change in changes])


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
def test_the_released_count_is_the_released_patch(ties):
    """Without ties it has one element less than asked for, with ties fewer still; ours has exactly as many."""
    source, sizes = np.random.RandomState(int(ties)), []
    for _ in range(2500):
        changes = [source.standard_normal(source.randint(5, 60)).astype(np.float32) for _ in range(3)]
        changes = [np.round(change * 2) / 2 if ties else change for change in changes]
        share, n = source.choice([0.1, 0.2, 0.5]), sum(len(change) for change in changes)
        values = {str(i): torch.from_numpy(np.abs(change)) for i, change in enumerate(changes)}
        theirs = released(share, changes)
        assert (np.array(taken(share, values, "released"), bool) == theirs).all()
        assert sum(taken(share, values)) == int(share * n)
        sizes.append(int(share * n) - theirs.sum())
    assert set(sizes) == {1} if not ties else max(sizes) > 5


@pytest.mark.parametrize(
    "params", [{"share": 0.0}, {"share": 1.5}, {"steps": 0}, {"samples": 0}, {"rate": 0.0}, {"bias": -1.0}]
)
def test_mistakes(params):
    (name,) = params
    with pytest.raises(UserError, match=f"grafting_mask: .*{name}="):
        build("grafting_mask", params, 0)
