"""Sparse training by gradients or magnitudes: GPS, SPU, GMT, MoFO, and a mask of the largest pretrained weights."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmark.core.errors import UserError
from methods.base import Method
from methods.blocks import split_layer
from methods.mask_log import MaskLog
from methods.masks import load_accumulated, save_accumulated
from methods.ops import exact
from methods.row_threshold import largest_per_row
from methods.select import Select, SelectParams
from methods.threshold import Largest, largest

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shard, Shards

FIRST_MATRICES = ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.fc1", "mlp.c_fc", "feed_forward.w1")


class FirstGradients(Method):
    """What GPS and SPU share: the gradients of the first steps choose, once, which elements train.

    The gradients of the first `steps` steps are added up; until the last of them the weights stay w*, so all are
    gradients at w*. That step is the first that moves the chosen elements. Elements that are not chosen have gradient 0
    from then on, so Adam's moments never see them, and are w* after every step, bit for bit.
    """

    def start(self, shards: Shards) -> None:
        self._log = MaskLog()
        self.accumulated = {shard.name: torch.zeros_like(shard.weight) for shard in shards}
        self._chosen: dict[str, Tensor] = {}
        self._steps: Counter[str] = Counter()

    @abstractmethod
    def choose(self, shards: Shards) -> dict[str, Tensor]:
        """Return which elements of each shard train, from `accumulated`; bool."""

    def before_step(self, shards: Shards) -> None:
        names = [shard.name for shard in shards if shard.name not in self._chosen]
        for shard in shards:
            if shard.name in names:
                self.accumulated[shard.name].add_(shard.grad)
                self._steps[shard.name] += 1
        if any(self._steps[name] >= self.params.steps for name in names):
            self._chosen |= self.choose(shards)
            for name in names:
                del self.accumulated[name]
        for shard in shards:
            shard.grad.masked_fill_(~self.mask(shard), 0.0)

    def after_step(self, shards: Shards) -> None:
        for shard in shards:
            shard.weight.copy_(torch.where(self.mask(shard), shard.weight, shard.pretrained))

    def mask(self, shard: Shard) -> Tensor:
        """Return which elements of a shard train; none until they are chosen."""
        if shard.name in self._chosen:
            return self._chosen[shard.name]
        return torch.zeros_like(shard.weight, dtype=torch.bool)

    def state_dict(self) -> dict[str, Any]:
        chosen = {f"chosen/{name}": mask for name, mask in self._chosen.items()}
        return save_accumulated(self.accumulated) | chosen | self._log.state_dict() | {"steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for shard in self.shards:
            saved = state.get(f"chosen/{shard.name}")
            if saved is not None and saved.shape == shard.weight.shape:
                self._chosen[shard.name] = saved.to(shard.weight.device)
                del self.accumulated[shard.name]
        load_accumulated(self.accumulated, state)
        self._steps = Counter(state["steps"])
        self._log.load_state_dict(state, {shard.name: shard.weight.device for shard in self.shards})

    def diagnostics(self) -> dict[str, float]:
        """Return shares of the elements that train, see methods/masks.py; nothing until they are chosen."""
        if not self._chosen:
            return {}
        return self._log.measure(self.shards, lambda shard: self.mask(shard).to(shard.weight))


@dataclass(frozen=True)
class GpsParams:
    """count: inputs of each neuron that train; steps: first steps whose gradients are added up."""

    count: int = 1
    steps: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.steps < 1:
            raise ValueError(f"count={self.count} and steps={self.steps} must be at least 1.")


class Gps(FirstGradients):
    """GPS: w <- w where |sum_t g_t| is among the `count` largest of its row (a neuron's inputs), else w*; chosen once.

    Granularity: element; the largest of each row of a matrix, exactly `count`, of equal ones the first. Tensors: all
    matrices; biases train whole; norms and other vectors keep w*.
    Acts: `before_step` chooses, then sets the gradients of all other elements to 0; `after_step` resets them to w*.
    Extra memory: 1 |M| until the choice (the sum of gradients), then 1/4 |M| (a byte per element), beside w*.
    Source: Zhang et al., CVPR 2024 (Gradient-based Parameter Selection), one connection per neuron.
    Disagreements: the paper takes the gradient of a contrastive loss over the training images, because its head is new.
    Here no head is new, so it is the training loss, of the first batch (`steps`). The projector counts as a matrix.
    Variants: gps, with the settings of its source.
    Decided: a row of zero gradients trains its first `count` elements; a row shorter than `count` trains whole.
    """

    Params = GpsParams

    def choose(self, shards: Shards) -> dict[str, Tensor]:
        matrices = shards.where(lambda shard: len(shard.shape) > 1)
        masks = largest_per_row(matrices, lambda shard: self.accumulated[shard.name], self.params.count)
        for shard in shards:
            if shard.name not in masks:
                trains = shard.name.endswith(".bias")
                masks[shard.name] = torch.full_like(shard.weight, trains, dtype=torch.bool)
        return masks


@dataclass(frozen=True)
class SpuParams:
    """share: of each matrix that trains; steps: first steps whose gradients are added up."""

    share: float = 0.1
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1.")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1.")


class Spu(FirstGradients):
    """SPU: in the first matrices of each feed-forward block, w <- w where |sum_t g_t| is among the int(n share) largest
    of its tensor, else w*; everything else stays w*.

    Granularity: element; the limit is the exact n-th largest of a tensor. Tensors: gate and up projections (both are
    first matrices of a gated block) train in part, their biases whole; all others, the projector too, keep w*.
    Acts: `before_step` chooses, then sets the gradients of all other elements to 0; `after_step` resets them to w*.
    Source: Zhang et al., CVPR 2024 (Overcoming Generic Knowledge Loss with Selective Parameter Update), top 10 %.
    Extra memory: 1 |M| until the choice, then 1/4 |M| (a byte per element), beside w*.
    Disagreements: the paper sums over a quarter of the batches before it trains, and its code takes the gradient of the
    squared norm of the logits. Here it is the training loss, of the first batch (`steps`). Its transformers have
    one first matrix per block; LLaMA's gated blocks have two.
    Variants: spu, with the settings of its source.
    Decided: of equal sums the first train.
    """

    Params = SpuParams

    def start(self, shards: Shards) -> None:
        super().start(shards)
        if not any(_is_first(shard.name) for shard in shards):
            raise UserError(
                "spu trains the first matrices of feed-forward blocks (gate_proj, up_proj), and none of them is among "
                "the trained tensors. Choose a train.scope with them, for example last_layers, mlp or gate_up."
            )

    def choose(self, shards: Shards) -> dict[str, Tensor]:
        matrices = shards.where(lambda shard: _is_first(shard.name) and len(shard.shape) > 1)
        share = exact(self.params.share)
        limits: dict[str, Largest] = {}
        if list(matrices):
            limits = largest(matrices, lambda shard: self.accumulated[shard.name], lambda size: int(size * share))
        return {
            shard.name: limits[shard.name].mask(self.accumulated[shard.name]) if shard.name in limits
            else torch.full_like(shard.weight, _is_first(shard.name), dtype=torch.bool)
            for shard in shards
        }


def _is_first(name: str) -> bool:
    """Return whether a tensor belongs to a first matrix of a decoder layer's feed-forward block."""
    layer = split_layer(name)
    return layer is not None and layer[1] in FIRST_MATRICES


@dataclass(frozen=True)
class GmtParams:
    """share: of each tensor's gradient that a step keeps."""

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1.")


class Gmt(Method):
    """GMT: g <- g where |g| is among the int(n share) largest of its tensor, else 0; at every step, before AdamW.

    Granularity: element; the limit is the exact n-th largest of a tensor. Tensors: all trainable.
    Acts: `before_step`. AdamW's momentum moves an element on for some steps after its gradient was last kept, and
    weight decay moves all.
    Extra memory: 0 |M|.
    Source: Li et al., AAAI 2025 (Gradient-Mask Tuning).
    Disagreements: none in the rule; a port of it steps the optimizer twice. The default share is that port's.
    Variants: gmt, with the settings of its source.
    Decided: of equal magnitudes the first are kept; a tensor with n share below 1 keeps none.
    """

    Params = GmtParams
    stateless = True
    uses_pretrained = False

    def before_step(self, shards: Shards) -> None:
        share = exact(self.params.share)
        limits = largest(shards, lambda shard: shard.grad, lambda size: int(size * share))
        for shard in shards:
            shard.grad.masked_fill_(~limits[shard.name].mask(shard.grad), 0.0)


@dataclass(frozen=True)
class MofoParams:
    """share: of each tensor that a step moves; momentum: Adam's beta_1."""

    share: float = 0.15
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1.")


class Mofo(Method):
    """MoFO: w_t <- w_t where |m_t| is among the int(n share) largest of its tensor, else w_(t-1), with Adam's momentum
    m <- beta_1 m + (1 - beta_1) g.

    Granularity: element; the limit is the exact n-th largest of a tensor. Tensors: all trainable.
    Acts: `before_step` updates m and keeps the weights; `after_step` puts back those that the step must not move, so
    that weight decay does not move them either. AdamW's moments see every gradient, as in the paper.
    Extra memory: 1 |M| (m, beside AdamW's own), and 1 |M| during a step.
    Source: Chen et al., TMLR 2025 (Momentum-Filtered Optimizer); its blocks are the model's tensors.
    Disagreements: the released code also decays the weights that it does not move, moves all that equal the limit, and
    moves norms and biases whole. The share is that of its commands (15 %; it recommends 5 to 20 %, and its optimizer's
    own default, 3 %, is used in none of them).
    Variants: mofo, with the settings of its source.
    Decided: of equal magnitudes the first move; a tensor with n share below 1 never moves.
    """

    Params = MofoParams
    uses_pretrained = False

    def start(self, shards: Shards) -> None:
        self.accumulated = {shard.name: torch.zeros_like(shard.weight) for shard in shards}
        self._before: dict[str, Tensor] = {}

    def before_step(self, shards: Shards) -> None:
        for shard in shards:
            self.accumulated[shard.name].lerp_(shard.grad, 1 - self.params.momentum)
            self._before[shard.name] = shard.weight.clone()

    def after_step(self, shards: Shards) -> None:
        share = exact(self.params.share)
        limits = largest(shards, lambda shard: self.accumulated[shard.name], lambda size: int(size * share))
        for shard in shards:
            moved = limits[shard.name].mask(self.accumulated[shard.name])
            shard.weight.copy_(torch.where(moved, shard.weight, self._before.pop(shard.name)))

    def state_dict(self) -> dict[str, Any]:
        return save_accumulated(self.accumulated)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_accumulated(self.accumulated, state)
        self._before = {}


@dataclass(frozen=True)
class LargestWeightsParams:
    """share: of each tensor's elements that train."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must be between 0 and 1.")


class LargestWeights(Select):
    """Largest weights: w <- w where |w*| is among the int(n share) largest of its tensor, else w*, after every step.

    Granularity: element; the limit is the exact n-th largest of a tensor. Tensors: all trainable.
    Acts: as `Select`: gradients of all other elements are 0, and these are w*, bit for bit.
    Extra memory: 1 |M| (w*; half if 16 bits hold it exactly).
    Source: magnitude masks of sparse fine-tuning, for example Super-Tuning (arXiv 2607.09287) and SHiRA's WM, here on
    every trained tensor; its opposite, the smallest weights, is spider_magnitude.
    Disagreements: none.
    Variants: largest_weights; this is itself the control of spider_magnitude.
    Decided: of equal magnitudes the first train; a tensor of one element trains only with share 1.
    """

    Params = LargestWeightsParams

    def __init__(self, params: LargestWeightsParams, seed: int) -> None:
        super().__init__(SelectParams(by="magnitude", share=params.share), seed)

    def start(self, shards: Shards) -> None:
        super().start(shards)
        share = exact(self.params.share)
        self._largest = largest(shards, lambda shard: shard.pretrained, lambda size: int(size * share))

    def mask(self, shard: Shard) -> Tensor:
        return self._largest[shard.name].mask(shard.pretrained)
