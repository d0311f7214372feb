"""LiNeS: after training, scale the change of each layer by its depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from methods.base import Method
from methods.blocks import split_layer

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration


@dataclass(frozen=True)
class LinesParams:
    """alpha: scale of the first layer and of everything outside the layers; the last layer's scale is 1."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must be between 0 and 1.")


def depths(names: Iterable[str]) -> dict[str, float]:
    """Return the depth of each tensor, from 0 to 1.

    Args:
        names: of all tensors that changed. Only layers with such a tensor count. Each stack of layers (a model may have
            a tower and a decoder) has a first and a last layer of its own.

    Returns:
        Name -> l / (L - 1) for layer l = 0 ... L - 1 of its stack, 1 if the stack has one layer, and 0 outside layers.
    """
    stacks: dict[str, set[int]] = {}
    places: dict[str, tuple[str, int] | None] = {}
    for name in names:
        layer = split_layer(name)
        places[name] = None
        if layer:
            stack, _, index = layer[0].rpartition(".")
            stacks.setdefault(stack, set()).add(int(index))
            places[name] = stack, int(index)
    order = {stack: sorted(indices) for stack, indices in stacks.items()}
    result = {}
    for name, place in places.items():
        if place is None:
            result[name] = 0.0
        else:
            layers = order[place[0]]
            result[name] = layers.index(place[1]) / (len(layers) - 1) if len(layers) > 1 else 1.0
    return result


def scaled(pretrained: Tensor, finetuned: Tensor, depth: float, params: LinesParams) -> Tensor:
    """Return one tensor with its change scaled, in float32 on the device of `finetuned`."""
    scale = params.alpha + (1 - params.alpha) * depth
    return torch.lerp(pretrained.float().to(finetuned.device), finetuned.float(), scale)


class Lines(Method):
    """LiNeS: w = w* + (alpha + (1 - alpha) l / (L - 1)) (w_ft - w*) in layer l = 0 ... L - 1 of the tuned layers, and
    w = w* + alpha (w_ft - w*) outside them; w_ft at alpha 1, bit for bit.

    Granularity: layer. Tensors: all trained; the projector is outside the layers. Acts: once, on a finished Full FT
    checkpoint. Extra memory: 0 |M| in training; at the end all of w*, w_ft and the new weights.
    Source: Wang et al., ICLR 2025 (arXiv 2410.17146), and the released notebook: scale alpha + beta l / (L - 1), alpha
    outside the residual blocks.
    Disagreements: the paper tunes alpha and beta; for one task the released default is that the last block keeps its
    change, so beta = 1 - alpha here. The paper counts every block of a model that is tuned as a whole. Here the tuned
    layers count, because the last 2 of 32 would all have a scale near 1. With one tuned layer only the projector is
    scaled.
    Variants: lines alone.
    """

    Params = LinesParams
    posthoc = True

    def finish(
        self,
        finetuned: dict[str, Tensor],
        pretrained: dict[str, Tensor],
        calibration: Calibration | None = None,
    ) -> dict[str, Tensor]:
        depth = depths(finetuned)
        return {
            name: scaled(pretrained[name], weight, depth[name], self.params) for name, weight in finetuned.items()
        }
