"""Candidate selection, the paper's Table 3: train a share of each tensor's elements, chosen by one criterion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from methods import ops
from methods.base import Method
from methods.mask_log import MaskLog
from methods.masks import load_accumulated, save_accumulated
from methods.threshold import Largest, largest

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shard, Shards


@dataclass(frozen=True)
class SelectParams:
    """by: which elements are trained: random ones, those with small |w*|, or those with a large accumulated |gradient|;
    share: gamma, the share of each tensor's elements; momentum: share of the old gradient average that a step keeps
    (gradient only)."""

    by: Literal["random", "magnitude", "gradient"] = "random"
    share: float = 0.5
    momentum: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must be between 0 and 1.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1.")


class Select(Method):
    """Selection: w <- w where an element is selected, else w*, after every optimizer step.

    half_ft_elements (Rand_gamma): m ~ Bernoulli(gamma), drawn once. spider_magnitude (I_gamma): all but the
    int(n (1 - gamma)) largest |w*| of each tensor, chosen once. spider_gradient (G_gamma): the int(n gamma) largest |A|
    of each tensor, A <- .85 A + .15 g as in SPIDER, chosen at every step. These counts are exact. Of equal magnitudes,
    the first in the flattened tensor count as larger, so I_gamma freezes the first half of a constant tensor and trains
    the rest. In a 16-bit checkpoint thousands of elements of a matrix share the magnitude at the limit. A tensor of one
    element is trained under I_gamma and not under G_gamma.
    The rank of Eqs. 2c and 4 grows with the magnitude, so choosing by rank would choose the same elements.

    Granularity: element; the limit is the exact n-th largest magnitude of a tensor, found over all parts of a sharded
    tensor with 32 reductions of a few counts per tensor (methods/threshold.py). Tensors: all trainable.
    Acts: `before_step` sets the gradients of elements that never train to 0, so Adam's moments see zeros, and
    accumulates A; `after_step` resets unselected elements to w*, bit for bit. Where the selection changes (G_gamma),
    Adam's moments are left alone.
    Extra memory: 1 |M| (w*; half if 16 bits hold it exactly), plus 1/4 |M| for Rand_gamma (a byte per element) or 1 |M|
    for G_gamma (A).
    Source: SPIDER paper, Table 3 and Sec. 4.2, gamma 50 %; RandomMask.py and MagnitudeMask.py of the released code and
    its sibling NRCA. No G_gamma has been released: the accumulation of Eq. 4 and a new choice per step are our reading.
    Disagreements: the paper's Half FT row equals Rand_gamma's, see methods/half_ft.py. The released masks reach only
    the float32 masters (see spider_lag), draw from the global generator, and do not hide gradients from Adam (the
    weights are the same, because AdamW treats each element separately). There and here, the gradients of frozen
    elements count towards the norm by which all gradients are clipped. The released I_gamma uses torch.topk, which
    breaks ties by position on a GPU, where that code runs, and in no documented order on a CPU. We break them by
    position everywhere.
    Variants: G > I, the table's last row, is spider_idm.
    """

    Params: ClassVar[type] = SelectParams

    def start(self, shards: Shards) -> None:
        share = self.params.share
        self._log = MaskLog()
        self._drawn: dict[str, Tensor] = {}
        self._largest: dict[str, Largest] = {}
        self.accumulated: dict[str, Tensor] = {}
        if self.params.by == "magnitude":
            frozen = 1 - ops.exact(share)
            self._largest = largest(shards, lambda shard: shard.pretrained, lambda size: int(size * frozen))
        for shard in shards:
            if self.params.by == "random":
                whole = torch.rand(shard.numel, generator=ops.generator(self.seed, shard.name)) < share
                part = whole.narrow(0, shard.offset, shard.weight.numel())
                self._drawn[shard.name] = part.clone().to(shard.weight.device)
            elif self.params.by == "gradient":
                self.accumulated[shard.name] = torch.zeros_like(shard.weight)

    def before_step(self, shards: Shards) -> None:
        for shard in shards:
            if self.params.by == "gradient":
                self.accumulated[shard.name].lerp_(shard.grad, 1 - self.params.momentum)
            else:
                shard.grad.masked_fill_(~self.mask(shard), 0.0)

    def after_step(self, shards: Shards) -> None:
        if self.params.by == "gradient":
            share = ops.exact(self.params.share)
            self._largest |= largest(
                shards, lambda shard: self.accumulated[shard.name], lambda size: int(size * share)
            )
        for shard in shards:
            shard.weight.copy_(torch.where(self.mask(shard), shard.weight, shard.pretrained))

    def mask(self, shard: Shard) -> Tensor:
        """Return which elements of a shard are selected."""
        if self.params.by == "random":
            return self._drawn[shard.name]
        if self.params.by == "magnitude":
            return ~self._largest[shard.name].mask(shard.pretrained)
        return self._largest[shard.name].mask(self.accumulated[shard.name])

    def state_dict(self) -> dict[str, Any]:
        return save_accumulated(self.accumulated) | self._log.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_accumulated(self.accumulated, state)
        self._log.load_state_dict(state, {shard.name: shard.weight.device for shard in self.shards})

    def diagnostics(self) -> dict[str, float]:
        """Return shares of selected elements, see methods/masks.py."""
        if self.params.by == "gradient" and not self._largest:
            return {}
        return self._log.measure(self.shards, lambda shard: self.mask(shard).to(shard.weight))
