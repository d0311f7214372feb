"""LoRA kept away from what W or its inputs do already: MiLoRA, LoRA-Null and OPLoRA, which the peft library lacks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.adapter import NAME, check_targets
from methods.peft import Peft, check_positive, rank_fault

if TYPE_CHECKING:
    from benchmark.training.adapters import Samples


@dataclass(frozen=True)
class SplitParams:
    """targets, r, lora_alpha: as LoRA's."""

    targets: str = ".*"
    r: int = 32
    lora_alpha: int = 32

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(r=self.r, lora_alpha=self.lora_alpha)


class _Lora(Peft):
    """What the three have in common: LoRA's layers, from the library."""

    type = "LORA"
    ours = ("targets", "samples", "k")

    def fault(self, shape: Sequence[int]) -> str | None:
        return rank_fault(self.params.r, shape)


class Split(_Lora):
    """LoRA that begins as a part of W; the base keeps the rest."""

    def insert(self, model: nn.Module, layers: Sequence[str], calibration: Samples | None) -> None:
        moments = {} if calibration is None else input_moments(model, layers, calibration)
        super().insert(model, layers, calibration)
        for path in layers:
            layer: Any = model.get_submodule(path)
            base = layer.get_base_layer().weight
            down, up = self.factors(base.detach().float(), moments.get(path))
            share = layer.scaling[NAME] ** -0.5
            layer.lora_A[NAME].weight.data = (share * up).to(base.dtype).contiguous()
            layer.lora_B[NAME].weight.data = (share * down).to(base.dtype).contiguous()
            base.data = (base.detach().float() - self.change(layer)).to(base.dtype)

    @abstractmethod
    def factors(self, weight: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return B (out, r) and A (r, in), whose product is taken from W.

        Args:
            weight: W (out, in), in float32.
            moments: of the layer's inputs, (in, in), in float64; None without calibration.
        """


def split_in_two(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return U sqrt(S) and sqrt(S) V^T."""
    roots = values.sqrt()
    return left * roots, roots[:, None] * right


class MiLora(Split):
    """MiLoRA: with U S V^T = svd(W), the r smallest triples begin as B = U sqrt(S), A = sqrt(S) V^T; the base keeps
    W - B A, that is W's principal part.

    Granularity: layer. Tensors: A and B of the linear layers of the tuned blocks, and the whole projector. Acts: before
    training. Extra memory: r (in + out) per layer, far below 1 |M|.
    Source: Wang et al., NAACL 2025 (arXiv 2406.09044). The scale lora_alpha / r is divided out, so that the model
    starts unchanged.
    Disagreements: none.
    Variants: none; milora is the class as it is.
    """

    Params = SplitParams

    def factors(self, weight: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = self.params.r
        return split_in_two(left[:, -rank:], values[-rank:], right[-rank:])


@dataclass(frozen=True)
class LoraNullParams(SplitParams):
    """targets, r, lora_alpha: as LoRA's; samples: training samples of the source sets, for the layers' inputs."""

    samples: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(samples=self.samples)


class LoraNull(Split):
    """LoRA-Null (its v1): with N the r directions in which a layer's inputs vary least, U S V^T = svd(W N N^T) begins
    as B = U sqrt(S), A = sqrt(S) V^T; the base keeps W - B A.

    Granularity: layer. Tensors: A and B of the linear layers of the tuned blocks, and the whole projector. Acts:
    before training; a pass over `samples` training samples of the source sets gives the inputs, so its rows see data
    of these sets. Extra memory: r (in + out) per layer; in^2 in float64 per layer while it is prepared; afterwards far
    below 1 |M|.
    Source: Tang et al., AAAI 2026, and its released code: each sample's inputs are divided by their largest value.
    Disagreements: the code takes N from the covariance in float32; here it is float64, because the smallest directions
    drown in rounding. The paper's inputs are text (NQ open); here they are images with questions and answers. Its v2,
    which freezes A, is not here.
    Variants: none; lora_null is the class as it is.
    """

    Params = LoraNullParams
    calibrates_on = "sources"

    def factors(self, weight: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        assert moments is not None
        least = torch.linalg.eigh(moments).eigenvectors[:, : self.params.r]  # eigenvalues ascend
        part = weight.double() @ least @ least.T
        left, values, right = (tensor.float() for tensor in torch.linalg.svd(part, full_matrices=False))
        rank = self.params.r
        return split_in_two(left[:, :rank], values[:rank], right[:rank])


@torch.no_grad()
def input_moments(model: nn.Module, layers: Sequence[str], calibration: Samples) -> Mapping[str, Tensor]:
    """Return the mean over samples of X^T X for each layer's inputs X (tokens, in), divided by |max X| per sample.

    Args:
        model: the model.
        layers: names of linear layers.
        calibration: the samples, run one at a time and so without padding.

    Returns:
        Layer -> float64 (in, in).
    """
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def hook(path: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens = inputs[0].flatten(0, -2).double()
            tokens = tokens / tokens.max().abs()
            totals[path] = totals.get(path, 0) + tokens.T @ tokens
            counts[path] += 1

        return add

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in layers]
    try:
        calibration.run()
    finally:
        for handle in handles:
            handle.remove()
    return {path: total / counts[path] for path, total in totals.items()}


@dataclass(frozen=True)
class OpLoraParams:
    """targets, r, lora_alpha: as LoRA's; k: singular directions of W that stay untouched on both sides."""

    targets: str = ".*"
    r: int = 32
    lora_alpha: int = 64
    k: int = 32

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(r=self.r, lora_alpha=self.lora_alpha, k=self.k)


class Without(nn.Module):
    """Removes directions from a weight: from its columns, W <- (I - D D^T) W, or from its rows, W <- W (I - D D^T)."""

    def __init__(self, directions: Tensor, rows: bool) -> None:
        super().__init__()
        self.register_buffer("directions", directions)
        self.rows = rows

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight without the directions."""
        away: Tensor = self.directions.to(weight.dtype)  # type: ignore[assignment]  # a buffer is a tensor
        return weight - (weight @ away) @ away.T if self.rows else weight - away @ (away.T @ weight)


class OpLora(_Lora):
    """OPLoRA: W' = W + (lora_alpha / r) (I - U_k U_k^T) B A (I - V_k V_k^T), with the k largest singular triples of W,
    which W' therefore has too.

    Granularity: layer. Tensors: A and B of the linear layers of the tuned blocks, and the whole projector. Acts: in
    every forward pass, on A and B. Extra memory: (r + k) (in + out) per layer, far below 1 |M|.
    Source: Xiong and Xie, AAAI 2026 (arXiv 2510.13003), of which the abstract was read: k 32 is ours, equal to r.
    Disagreements: none known.
    Variants: none; oplora is the class as it is.
    """

    Params = OpLoraParams

    def insert(self, model: nn.Module, layers: Sequence[str], calibration: Samples | None) -> None:
        super().insert(model, layers, calibration)
        for path in layers:
            layer: Any = model.get_submodule(path)
            weight = layer.get_base_layer().weight.detach()
            left, _, right = torch.linalg.svd(weight.float(), full_matrices=False)
            largest = left[:, : self.params.k].contiguous(), right[: self.params.k].T.contiguous()
            parametrize.register_parametrization(layer.lora_B[NAME], "weight", Without(largest[0], rows=False))
            parametrize.register_parametrization(layer.lora_A[NAME], "weight", Without(largest[1], rows=True))

    def fault(self, shape: Sequence[int]) -> str | None:
        if self.params.k < min(shape):
            return super().fault(shape)
        return f"k={self.params.k} leaves no direction of its {min(shape)}. Choose k from 1 to {min(shape) - 1}"
