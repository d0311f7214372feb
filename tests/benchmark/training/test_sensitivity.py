"""Sensitivities are the norms of the output's derivatives times the sizes of the inputs, token by token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmark.training.sensitivity import sensitivities


class Small(nn.Module):
    """Two linear layers without a mixture of tokens: every derivative can be written down."""

    def __init__(self, words: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, words, bias=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, inputs: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.last(torch.tanh(self.first(inputs))))


def batch(tokens: int = 6) -> dict[str, torch.Tensor]:
    """One sample whose last two tokens are the answer, which the two tokens before them each predict."""
    labels = torch.full((1, tokens), -100)
    labels[0, -2:] = 0
    return {"inputs": torch.randn(1, tokens, 4, generator=torch.Generator().manual_seed(1)), "labels": labels}


def exact(model: Small, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the sensitivities with the whole Jacobian, float64."""
    x = inputs[0].double()
    hidden = torch.tanh(x @ model.first.weight.double().T + model.first.bias.double())
    counts = torch.zeros(len(x), 1, dtype=torch.float64)
    counts[-3:-1] = 1  # the positions that predict the answer
    norms = model.last.weight.double().square().sum(0).sqrt() * (1 - hidden**2) * counts
    ones = torch.ones(len(x), model.last.out_features, dtype=torch.float64) * counts
    return {
        "first.weight": norms.T @ x.abs() / len(x), "last.weight": ones.T @ hidden.abs() / len(x),
    }


NAMES = ["first.weight", "first.bias", "last.weight", "unused.weight"]


def test_with_one_output_any_probe_is_exact():
    model = Small(1).requires_grad_(False)
    model.last.weight.requires_grad_()
    model.train()
    one = batch()
    (found,) = sensitivities(model, [one], NAMES, 1, 0)
    expected = exact(model, one["inputs"])
    assert found.keys() == expected.keys(), "biases and layers that do not run have none"
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["last.weight"] and model.training
    assert not model.first._forward_hooks and model.first.weight.grad is None


def test_many_probes_come_near_the_norm_and_one_does_not():
    model, one = Small(3), batch()
    expected = exact(model, one["inputs"])
    few, many = (next(iter(sensitivities(model, [one], NAMES, probes, 0))) for probes in (1, 2000))
    torch.testing.assert_close(many["last.weight"].double(), expected["last.weight"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(many["first.weight"].double(), expected["first.weight"], rtol=0.05, atol=1e-4)
    assert (few["first.weight"].double() - expected["first.weight"]).abs().max() > 0.05 * expected["first.weight"].max()


def test_signs_depend_on_the_seed_and_the_sample_alone():
    model, one = Small(3), batch()
    first, second = sensitivities(model, [one, one], NAMES, 2, 0)
    again = next(iter(sensitivities(model, [one], NAMES, 2, 0)))
    other = next(iter(sensitivities(model, [one], NAMES, 2, 1)))
    assert torch.equal(first["first.weight"], again["first.weight"])
    for different in (second, other):
        assert (different["first.weight"] != first["first.weight"]).any()


def test_an_interrupted_measurement_leaves_the_model_as_it_was():
    model = Small(1).requires_grad_(False)
    with pytest.raises(KeyError):
        list(sensitivities(model, [{"inputs": batch()["inputs"]}], NAMES, 1, 0))
    assert not any(p.requires_grad for p in model.parameters()) and not model.first._forward_hooks


class Twice(Small):
    """Runs its first layer once for each half of the tokens, as a projector runs once for each image."""

    def forward(self, inputs: torch.Tensor) -> SimpleNamespace:
        hidden = torch.cat([self.first(half) for half in inputs.tensor_split([4], 1)], 1)
        return SimpleNamespace(logits=self.last(torch.tanh(hidden)))


def test_every_run_of_a_layer_counts():
    """The halves have different lengths, and tokens of both predict the answer."""
    one = batch()
    (found,) = sensitivities(Twice(1), [one], NAMES, 1, 0)
    for name, value in exact(Small(1), one["inputs"]).items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)
