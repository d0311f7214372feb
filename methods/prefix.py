"""Prefix tuning: learned keys and values that every token attends to. They cannot be merged into weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from methods.adapter import AdapterMethod, check_targets, load_adapter, wrap
from methods.attention import check_kernel, register
from methods.peft import check_positive

if TYPE_CHECKING:
    from benchmark.training.adapters import Samples

NAME = ".prefix"


@dataclass(frozen=True)
class PrefixParams:
    """targets: regular expression for the names of the layers below a decoder block that compute keys and values;
    tokens: length of the prefix; std: standard deviation of the first keys."""

    targets: str = r".*attn\.(k|v)_proj"
    tokens: int = 20
    std: float = 0.02

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(tokens=self.tokens, std=self.std)


class Prefixed(nn.Module):
    """A layer that computes keys or values, with those of the prefix beside it.

    Args:
        base_layer: the layer, which computes as before.
        prefix: (tokens, out_features); attention reads it.
    """

    def __init__(self, base_layer: nn.Linear, prefix: Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prefix = nn.Parameter(prefix.to(base_layer.weight))

    def get_base_layer(self) -> nn.Linear:
        """Return the layer."""
        return self.base_layer

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x)


def load(model: nn.Module, folder: Path | str) -> nn.Module:
    """Put an exported prefix and its projector into their base model, for use with transformers alone.

    Args:
        model: the base, changed in place; it must use sdpa attention.
        folder: from `python -m benchmark export`, with adapter_model.safetensors.

    Returns:
        The model.

    Raises:
        ValueError: the prefix is not one for this model.
    """
    register()
    return load_adapter(model, folder, NAME, lambda layer, prefix: wrap(model, layer, Prefixed, prefix))


class Prefix(AdapterMethod):
    """Prefix tuning: o = softmax(q [P_k; K]^T / sqrt(d) + mask) [P_v; V], with P_k and P_v visible to every token.

    Granularity: layer. Tensors: P_k and P_v of every attention of the tuned blocks, and the whole projector. Acts:
    never; a prefix is no weight, so it stays in the model and is not merged. Extra memory: tokens (out_k + out_v) per
    block, far below 1 |M|.
    Source: Li and Liang, ACL 2021; 20 tokens, peft's usual number.
    Disagreements: the paper gives every block a prefix and computes it by a small network while it trains; here the
    tuned blocks have one, as for every adapter, and it trains directly. P_k begins near 0 and P_v at 0, which takes a
    part of the attention from the first step on; the paper begins at activations of real words. Keys of a prefix have
    no position; in peft's cache they stand before the first token, which is the same function with rotated P_k.
    Variants: none; prefix is the class as it is.
    """

    Params = PrefixParams
    merges = False

    def refuses(self, engine: str) -> str | None:
        if engine != "zero3":
            return None
        return (
            "attention reads the prefix outside of the layer that holds it, and ZeRO-3 gathers tensors layer by layer. "
            "Train on engine=zero2."
        )

    def insert(self, model: nn.Module, layers: Sequence[str], calibration: Samples | None) -> None:
        check_kernel("prefix", model)
        register()
        generator = torch.Generator().manual_seed(self.seed)
        for path in layers:
            size = model.get_submodule(path).get_parameter("weight").shape[0]
            keys = self.params.std * torch.randn(self.params.tokens, size, generator=generator)
            wrap(model, path, Prefixed, keys if path.endswith("k_proj") else torch.zeros_like(keys))
