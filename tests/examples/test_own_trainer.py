"""The example of a plain loop on a vision model: SPIDER gives the weights of the float64 reference."""

from __future__ import annotations

import copy

import torch
from torch import nn

from examples.own_trainer import make_model, train
from tests.examples import loop


def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(loop.STEPS, 16, 3, 12, 12), torch.randint(10, (loop.STEPS, 16))


def test_spider_gives_the_weights_of_the_reference():
    model, (images, labels) = make_model(), data()
    base = copy.deepcopy(model)
    numbers = train(model, images, labels)
    expected = loop.spider(
        base, zip(images.double(), labels, strict=True),
        lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1]), rates=lambda step: 1e-3, decay=0.01,
    )
    loop.agrees(loop.weights_of(model), expected, loop.weights_of(base))
    assert 0 < numbers["restored_fraction"] < 1


def test_the_method_acts():
    models = {name: make_model() for name in ("full_ft", "spider")}
    numbers = {name: train(model, *data(), method=name) for name, model in models.items()}
    assert numbers["full_ft"]["restored_fraction"] == 0
    assert not torch.equal(models["full_ft"][0].weight, models["spider"][0].weight)
