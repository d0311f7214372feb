"""Houlsby's bottleneck adapters: small networks behind the sublayers of a block. They cannot be merged into weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.adapter import AdapterMethod, check_targets, load_adapter, wrap
from methods.peft import check_positive

if TYPE_CHECKING:
    from benchmark.training.adapters import Samples

DOWN = ".down.weight"


@dataclass(frozen=True)
class HoulsbyParams:
    """targets: regular expression for the names of layers below a decoder block that end a sublayer; size: width of the
    bottleneck."""

    targets: str = r".*attn\.(o|out)_proj|mlp\.(down_proj|fc2)"
    size: int = 64

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(size=self.size)


class Bottleneck(nn.Module):
    """A linear layer with a bottleneck behind it: y = W x + b, then y + U gelu(D y + d) + u.

    Args:
        base_layer: W and b.
        size: rows of D.
    """

    def __init__(self, base_layer: nn.Linear, size: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.out_features, size)
        self.up = nn.Linear(size, base_layer.out_features)
        nn.init.trunc_normal_(self.down.weight, std=0.01, a=-0.02, b=0.02)
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)
        self.down.to(base_layer.weight)  # only now: every device draws the same numbers
        self.up.to(base_layer.weight)

    def get_base_layer(self) -> nn.Linear:
        """Return the layer in front of the bottleneck."""
        return self.base_layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y + self.up(F.gelu(self.down(y)))


def load(model: nn.Module, folder: Path | str) -> nn.Module:
    """Put an exported adapter into its base model, for use with transformers alone.

    Args:
        model: the base, changed in place.
        folder: from `python -m benchmark export`, with adapter_model.safetensors.

    Returns:
        The model.

    Raises:
        ValueError: the adapter is not one for this model.
    """
    return load_adapter(model, folder, DOWN, lambda layer, down: wrap(model, layer, Bottleneck, len(down)))


class Houlsby(AdapterMethod):
    """Bottleneck adapters: h <- h + U gelu(D h + d) + u behind each sublayer of a block, before its residual is added.

    Granularity: layer. Tensors: D, d, U and u behind the attention and the feed-forward network of the tuned blocks,
    and the whole projector. Acts: never; the bottleneck is nonlinear, so it stays in the model and is not merged. Extra
    memory: 2 size out per sublayer, far below 1 |M|.
    Source: Houlsby et al., ICML 2019; size 64 as in its experiments on GLUE.
    Disagreements: the paper draws both matrices from a normal distribution with standard deviation 0.01, cut off at
    two; here D is, and U begins at 0, so that the model begins as the base exactly. The paper trains the norms too;
    here they are frozen, as for every adapter.
    Variants: none; houlsby is the class as it is.
    """

    Params = HoulsbyParams
    merges = False

    def fault(self, shape: Sequence[int]) -> str | None:
        if self.params.size <= shape[0]:
            return None
        return f"size={self.params.size} is no bottleneck of its {shape[0]} outputs. Choose 1 to {shape[0]}"

    def insert(self, model: nn.Module, layers: Sequence[str], calibration: Samples | None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for path in layers:
                wrap(model, path, Bottleneck, self.params.size)
