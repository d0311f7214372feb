"""A tiny decoder with the tensor names of the real models, and a training loop that records gradients."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.training import attach as attaching
from benchmark.training.attach import Attachment
from methods.base import Method

WIDTH = 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in "qkvo":
            setattr(self, f"{name}_proj", nn.Linear(WIDTH, WIDTH, bias=False))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.q_proj(x) @ self.k_proj(x).transpose(1, 2) / WIDTH**0.5
        scores = scores.masked_fill(~mask[:, None].bool(), float("-inf"))
        return self.o_proj(scores.softmax(-1) @ self.v_proj(x))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, WIDTH + 3, bias=False)
        self.up_proj = nn.Linear(WIDTH, WIDTH + 3, bias=False)
        self.down_proj = nn.Linear(WIDTH + 3, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = FeedForward()
        self.input_layernorm = nn.RMSNorm(WIDTH)
        self.post_attention_layernorm = nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Toy(nn.Module):
    """Projector and decoder layers; on purpose also a one-element tensor, an unused tensor, zero biases, a
    constant tensor (norms start at 1), and pretrained values with noise where a real model has noise."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.multi_modal_projector = nn.ModuleDict({"linear_1": nn.Linear(WIDTH, WIDTH)})
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.gate = nn.Parameter(torch.tensor([0.7]))
        self.unused = nn.Parameter(torch.linspace(-1, 2, 7))
        nn.init.zeros_(self.multi_modal_projector["linear_1"].bias)

    def forward(self, inputs: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.multi_modal_projector["linear_1"](inputs)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return x * self.gate


def build(dtype: torch.dtype = torch.float64, layers: int = 2) -> Toy:
    torch.manual_seed(3)
    return Toy(layers).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
    """Return inputs with right padding, and a regression target."""
    source = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(3, 5, WIDTH, generator=source).to(dtype)
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 4:] = 0
    return {"inputs": inputs, "attention_mask": mask}, torch.randn(3, 5, WIDTH, generator=source).to(dtype)


@dataclass
class Run:
    """A trained toy: tensors as float64 numpy; `gradients` are clipped, as the method found them."""

    pretrained: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    gradients: list[dict[str, np.ndarray]]
    moments: dict[str, np.ndarray]
    rates: dict[str, float]
    attachment: Attachment
    optimizer: torch.optim.Optimizer
    model: Toy


def arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy().copy() for name, tensor in tensors.items()}


def sample_gradients(
    pretrained: dict[str, Tensor], samples: int = 3, matrices: bool = False
) -> list[dict[str, Tensor]]:
    """Return what a method that measures importances gets: a gradient of each tensor for each of a few samples.

    With `matrices`, vectors have none, as if they were sensitivities.
    """
    made = []
    for number in range(samples):
        gradients = {}
        for name, value in pretrained.items():
            if matrices and value.ndim < 2:
                continue
            source = torch.Generator().manual_seed(zlib.crc32(f"{name} {number}".encode()))
            gradients[name] = torch.randn(value.shape, generator=source).to(value)
        made.append(gradients)
    return made


def attach(
    optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], pretrained: dict[str, Tensor], method: Method
) -> Attachment:
    """Attach a method, after it has measured what it measures."""
    if hasattr(method, "measure"):
        method.measure(sample_gradients(pretrained, matrices=method.measures == "sensitivities"))
    return attaching.attach(optimizer, named, pretrained, method)


def make_optimizer(model: Toy, decay: float) -> tuple[torch.optim.AdamW, dict[str, float]]:
    """Two groups, the projector ten times slower, as in LLaVA."""
    rates = {name: 2e-3 if "projector" in name else 2e-2 for name, _ in model.named_parameters()}
    named = dict(model.named_parameters())
    groups = [
        {"params": [named[name] for name in named if rates[name] == rate], "lr": rate}
        for rate in (2e-2, 2e-3)
    ]
    return torch.optim.AdamW(groups, weight_decay=decay), rates


def step(model: Toy, optimizer: torch.optim.Optimizer, index: int) -> dict[str, np.ndarray]:
    """Run one clipped optimizer step; return the clipped gradients (zeros where there is none)."""
    inputs, target = batch(index, next(model.parameters()).dtype)
    optimizer.zero_grad()
    (model(**inputs) - target).square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in model.named_parameters()
    }
    recorded = arrays(gradients)
    optimizer.step()
    return recorded


def train(method, steps: int = 8, decay: float = 0.1, dtype: torch.dtype = torch.float64) -> Run:
    model = build(dtype)
    named = dict(model.named_parameters())
    pretrained = {name: value.detach().clone() for name, value in named.items()}
    optimizer, rates = make_optimizer(model, decay)
    attachment = attach(optimizer, named, pretrained, method)
    gradients = [step(model, optimizer, index) for index in range(steps)]
    moments = arrays({name: optimizer.state[value]["exp_avg"] for name, value in named.items()})
    return Run(arrays(pretrained), arrays(named), gradients, moments, rates, attachment, optimizer, model)


class Momenta(Method):
    """A method with memory that it does not save: a dict of tensors, the first thing that one writes."""

    def start(self, shards):
        self.momenta = {shard.name: torch.zeros_like(shard.weight) for shard in shards}

    def before_step(self, shards):
        for shard in shards:
            shard.grad.copy_(self.momenta[shard.name].lerp_(shard.grad, 0.5))
