"""SPIDER in a float64 loop, its mask from the paper's equations in numpy: what every example must give to 1e-6."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.spider import masks

MOMENTUM = 0.85  # Sec. 3.2.1
STEPS, TOLERANCE = 20, 1e-6


def spider(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor], rates: Callable[[int], float],
    clip: float | None = None, decay: float = 0.0, eps: float = 1e-6,
) -> dict[str, Tensor]:
    """Train a copy of a model on batches in float64; return its trained weights.

    Args:
        model: with the base weights.
        batches: one per step.
        loss: of (model, batch).
        rates: learning rate of a step.
        clip: largest norm of the gradient.
        decay: AdamW's weight decay.
        eps: AdamW's.
    """
    net = copy.deepcopy(model).double()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    base = {name: p.detach().clone() for name, p in trained.items()}
    arrays = {name: value.numpy() for name, value in base.items()}
    average = {name: torch.zeros_like(value) for name, value in base.items()}
    optimizer = torch.optim.AdamW(trained.values(), eps=eps, weight_decay=decay)
    for step, batch in enumerate(batches):
        loss(net, batch).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(trained.values(), clip)
        for name, p in trained.items():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            average[name] = MOMENTUM * average[name] + (1 - MOMENTUM) * p.grad
        optimizer.param_groups[0]["lr"] = rates(step)
        optimizer.step()
        optimizer.zero_grad()
        M = masks({name: value.numpy() for name, value in average.items()}, arrays, False, [[name] for name in base])
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(p * torch.from_numpy(M[name]) + base[name] * (1 - torch.from_numpy(M[name])))
    return {name: p.detach() for name, p in trained.items()}


def agrees(weights: dict[str, Tensor], expected: dict[str, Tensor], base: dict[str, Tensor]) -> None:
    """Assert that weights are those of the reference, and that these left the base by far more than the tolerance."""
    assert weights.keys() == expected.keys()
    far = max((weights[name].double() - value).abs().max().item() for name, value in expected.items())
    moved = max((base[name].double() - value).abs().max().item() for name, value in expected.items())
    assert far < TOLERANCE < 1e-3 < moved, (far, moved)
    print(f"largest difference {far:.1e}, largest change {moved:.1e}")


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's trained weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def recorded(trainer: Any) -> list[Any]:
    """Make a trainer keep its batches; return the list that they are put into, tensors of floats in float64."""
    kept, collate = [], trainer.data_collator

    def keep(rows: list[Any]) -> Any:
        batch = collate(rows)
        kept.append({
            name: value.double() if value.is_floating_point() else value.clone() for name, value in batch.items()
        })
        return batch

    trainer.data_collator = keep
    return kept
