"""The first step's gradients do not depend on processes, micro-batches or gradient checkpointing (train.loss_group)."""

from __future__ import annotations

import pytest
import torch

from benchmark.models import trainable_names
from benchmark.models.prompt import IGNORE
from benchmark.training.objective import batch_loss, training_batch
from benchmark.training.order import Order, Share
from benchmark.training.train import _checkpointing
from tests.benchmark.models import tiny
from tests.benchmark.models.test_models import item

ANSWERS = ["red", "a blue dog", "B", "a red cat red cat blue dog", "blue", "a single word", "dog dog dog", "A"]
# (processes, micro-batch): 8x2 is the paper's, 16x1 two nodes; the last are one process with 8 and 2 micro-batches.
LAYOUTS = [(8, 2), (4, 4), (2, 8), (1, 16), (16, 1), (1, 2), (1, 8)]


@pytest.fixture(scope="module", params=["llava", "vila"])
def world(request, tmp_path_factory):
    """A model with 20 items of unequal answers, every fifth without an image."""
    loaded = tiny.load(request.param, tiny.write(request.param, tmp_path_factory.mktemp(request.param)))
    loaded.model.requires_grad_(False).train()
    for name in trainable_names(loaded, "last_layers", 2):
        loaded.model.get_parameter(name).requires_grad_(True)
    items = [
        item(loaded, f"item{i}", f"what is {i} ?", ANSWERS[i * 3 % len(ANSWERS)], None if i % 5 == 4 else i)
        for i in range(20)
    ]
    size = loaded.image_processor.height
    blank = torch.zeros(3, size, size, dtype=torch.uint8)
    return loaded, items, blank


def gradients(world, processes, micro, loss_group=2, share=True):
    """Return the gradients of the first step, summed over all processes as an engine does."""
    loaded, items, blank = world
    tokens = [sum(label != IGNORE for label in one.labels) for one in items]
    order = Order(0, tokens, 16, loss_group)
    loaded.model.zero_grad()
    total = 0.0
    for rank in range(processes):
        mine = list(Share(order, micro, rank, processes))[: 16 // processes]
        for start in range(0, len(mine), micro):
            pairs = [(items[index], weight) for index, weight in mine[start : start + micro]]
            batch = training_batch(loaded, pairs, blank, share)
            del batch["item_ids"]
            loss, _ = batch_loss(loaded.model, batch, autocast=False)
            loss.backward()
            total += loss.item()
    return total, {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}


def difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.slow
def test_every_layout_has_the_gradients_of_the_papers(world):
    loss, expected = gradients(world, *LAYOUTS[0])
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-2
    for layout in LAYOUTS[1:]:
        other, found = gradients(world, *layout)
        assert other == pytest.approx(loss, abs=1e-6)
        assert difference(expected, found) < 1e-6, layout


def test_another_loss_group_is_another_loss(world):
    _, expected = gradients(world, 8, 2)
    _, found = gradients(world, 8, 2, loss_group=16)
    assert difference(expected, found) > 1e-3


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
def test_checkpointing_changes_no_gradient(world):
    model = world[0].model
    loss, expected = gradients(world, 1, 4)
    assert difference(expected, gradients(world, 1, 4, share=False)[1]) < 1e-6
    _checkpointing(model, "enable", {"use_reentrant": False})
    try:
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        other, found = gradients(world, 1, 4, share=False)
    finally:
        _checkpointing(model, "disable")
    assert other == pytest.approx(loss, abs=1e-6) and difference(expected, found) < 1e-6
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
