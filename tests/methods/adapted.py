"""A tiny decoder block with every kind of layer that adapters reach, and how to adapt and train it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.training.adapters import Adapter, adapted_layers, projector_layers
from methods.registry import METHODS, build

BLOCK, UP, DOWN, VALUE = "layers.0.", "layers.0.mlp.up_proj", "layers.0.mlp.down_proj", "layers.0.self_attn.v_proj"
# What fits the block's layers, which have 8 and 12 inputs.
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"r": 3}, "rslora": {"r": 3}, "dora": {"r": 3}, "pissa": {"r": 3, "lora_alpha": 6},
    "olora": {"r": 3, "lora_alpha": 6}, "mica": {"r": 3}, "corda": {"r": 3, "lora_alpha": 6, "samples": 4},
    "vera": {"r": 10}, "oft": {"oft_block_size": 4}, "boft": {"boft_block_size": 2}, "osf": {}, "ia3": {},
    "shira": {"r": 1}, "shira_magnitude": {"r": 1}, "shira_gradient": {"r": 1, "samples": 4},
    "supertuning": {"sparsity": 0.75}, "supertuning_bottom": {"sparsity": 0.75}, "ln_tuning": {},
    "milora": {"r": 3, "lora_alpha": 6}, "lora_null": {"r": 3, "lora_alpha": 6, "samples": 4},
    "oplora": {"r": 3, "k": 4}, "lorasculpt": {"r": 3, "prune_after": 3, "strength": 0.3, "keep": 0.4},
    "lorasculpt_code": {"r": 3, "prune_after": 3, "strength": 0.3, "keep": 0.4},
    "houlsby": {"size": 3, "targets": r"self_attn\.v_proj|mlp\.down_proj"},
    "prefix": {"tokens": 3, "targets": r"self_attn\.(k|v)_proj"},
}
ADAPTERS = [  # prompt tuning needs a whole decoder: test_prompt_tuning.py
    name for name, entry in METHODS.items() if entry.kind == "adapter" and name != "prompt_tuning"
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(8)
        self.self_attn = nn.ModuleDict({name: nn.Linear(8, 8, bias=False) for name in ("k_proj", "v_proj")})
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(8, 12, bias=False), "down_proj": nn.Linear(12, 8, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.input_layernorm(x)
        x = x + self.self_attn["v_proj"](y) * torch.sigmoid(self.self_attn["k_proj"](y))
        return x + self.mlp["down_proj"](torch.tanh(self.mlp["up_proj"](x)))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Linear(8, 8)
        self.layers = nn.ModuleList([Block()])
        self.vision_tower = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projector(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Calibration:
    """Four samples of seven tokens each, in place of `benchmark.training.adapters.Samples`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        dtype = next(model.parameters()).dtype
        self.samples = [draw(50 + i, 7, 8, dtype=dtype) for i in range(4)]

    @torch.no_grad()
    def run(self) -> None:
        for sample in self.samples:
            self.model(sample[None])

    def gradient(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        self.model.requires_grad_(True)
        loss = sum(self.model(sample[None]).square().mean() for sample in self.samples)
        found = torch.autograd.grad(loss, [self.model.get_parameter(name) for name in weights])
        self.model.requires_grad_(False)
        return dict(zip(weights, found, strict=True))


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def decoder(dtype: torch.dtype = torch.float32) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Decoder()
    with torch.no_grad():
        model.layers[0].input_layernorm.weight.add_(0.1 * draw(3, 8))
    return model.to(dtype)


@dataclass
class Adapted:
    """An adapted decoder: `base` are its weights before, as numpy, `inputs` those of a layer for the calibration."""

    model: Decoder
    method: Any
    adapter: Adapter
    base: dict[str, np.ndarray]

    def value(self, name: str) -> np.ndarray:
        """Return a tensor of the model as numpy."""
        return numpy(dict([*self.model.named_parameters(), *self.model.named_buffers(remove_duplicate=False)])[name])

    def perturb(self) -> dict[str, Tensor]:
        """Move every trained tensor, and return them."""
        with torch.no_grad():
            for i, name in enumerate(self.adapter.trained):
                parameter = self.model.get_parameter(name)
                parameter.add_(0.1 * draw(20 + i, *parameter.shape).to(parameter))
        return {name: self.model.get_parameter(name).detach().clone() for name in self.adapter.trained}

    def weight(self, layer: str) -> np.ndarray:
        """Return a layer's base weight."""
        return self.base[f"{layer}.weight"]


def adapt(
    method: str, dtype: torch.dtype = torch.float32, load: Any = None, method_object: Any = None,
    projector: bool = False, **params: Any,
) -> Adapted:
    """Put a method's adapter into a new decoder. `load` gives a module of another copy of `methods`.

    `projector` adapts the projector with it, as train.projector=lora does if the method can.
    """
    model = decoder(dtype)
    base = {name: numpy(value) for name, value in model.named_parameters()}
    built = method_object or build(method, SMALL[method] | params, seed=0)
    if load is not None:
        module, _, cls = METHODS[method].cls.partition(":")
        built = getattr(load(module.removeprefix("methods.")), cls)(built.params, 0)
    names = [name for name in base if name.startswith((BLOCK, "projector."))]
    loaded: Any = SimpleNamespace(model=model, projector_prefix="projector.", block_prefixes=[BLOCK])
    layers = adapted_layers(loaded, names, built) + (projector_layers(loaded, names) if projector else [])
    calibration: Any = Calibration(model) if built.calibration_samples else None
    return Adapted(model, built, Adapter(loaded, [(built, layers)], names, calibration), base)


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().copy()


def inputs_of(layer: str) -> list[np.ndarray]:
    """Return the inputs of a layer for every calibration sample."""
    model, found = decoder(), []
    model.get_submodule(layer).register_forward_pre_hook(lambda module, inputs: found.append(numpy(inputs[0][0])))
    Calibration(model).run()
    return found
