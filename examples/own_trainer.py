"""A method in a training loop of your own: python examples/own_trainer.py, from the repository's folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # or have the repository on PYTHONPATH

from benchmark.training.attach import attach
from methods.registry import build


def train(model: nn.Module, batches: Tensor, method: str = "spider") -> dict[str, float]:
    """Train a model on batches (steps, samples, features) to return its input; return the method's own numbers."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trained = dict(model.named_parameters())
    base = {name: weight.detach().clone() for name, weight in trained.items()}
    attachment = attach(optimizer, trained, base, build(method, {}, seed=0))  # the method joins here
    for batch in batches:
        (model(batch) - batch).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # the method acts before and after
        optimizer.zero_grad()
    return attachment.diagnostics()


if __name__ == "__main__":
    torch.manual_seed(0)
    print(train(nn.Linear(8, 8), torch.randn(20, 16, 8)))
