"""Model-Dowser: train the weights to which the model's output is least sensitive, as probes measure it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmark.core.errors import UserError
from methods.importance import ImportanceMethod
from methods.mask_log import MaskLog
from methods.ops import exact
from methods.restore import restore
from methods.threshold import largest

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shard, Shards


@dataclass(frozen=True)
class ModelDowserParams:
    """share: of each matrix that trains (rho); samples: that the sensitivities are measured on; probes: random signs of
    the output per sample."""

    share: float = 0.1
    samples: int = 64
    probes: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1.")
        if self.samples < 1 or self.probes < 1:
            raise ValueError(f"samples={self.samples} and probes={self.probes} must be at least 1.")


class ModelDowser(ImportanceMethod):
    """Model-Dowser: S_ij = |w*_ij| mean_x ||J_i|| |h_j|; w <- w where S is among the int(n share) smallest of its
    matrix, else w*. h is the input of a linear layer, z its output, f the logits, and over random signs xi
    ||J_i||^2 = E[(d(xi^T f) / dz_i)^2].

    Granularity: element; the limit is the exact n-th smallest of a matrix; chosen once. The paper's layer l is one
    linear layer with its matrix W^(l), so "the least important rho of each layer" is a share of each matrix, not of a
    decoder block; the released code also masks tensor by tensor. Tensors: weights of linear layers, the projector's
    too; norms, biases and everything without a sensitivity keep w*.
    Acts: before the first step, `probes` backward passes per sample; then as `Select`: the gradients of all other
    elements are 0 and these are w* after every step, bit for bit.
    Extra memory: 1 |M| while it measures; then 1/4 |M| (a byte per element), beside w*.
    Source: Hwang, Son and Kim, ICML 2026 (arXiv 2602.04509), and the released code (6efd4e1): rho 0.1, N 64 samples,
    R 8 probes.
    Disagreements: paper and released code measure on texts alone, up to 64 tokens that the model continues from one to
    five random ones; here it is the generic descriptions that ewc measures on, with their images, which show no source
    set either. The released code probes the logits of the last token, takes mean |d(xi^T f) / dz_i| for ||J_i||, and
    multiplies it by mean |h_j|, both over all tokens of a batch of 4; here f is at the tokens of the answer, the norm
    is the paper's, and the product is taken token by token, as in the paper's formula. The released code freezes the
    projector (train.projector=frozen does so here) and trains norms whole.
    Variants: model_dowser.
    Decided: of equal sensitivities the last of a matrix train.
    """

    Params = ModelDowserParams
    measures = "sensitivities"

    def measure(self, gradients: Iterable[dict[str, Tensor]]) -> None:
        """Add up the sensitivities ||J_i|| |h_j| of each sample (`benchmark.training.sensitivity`), not gradients."""
        total: dict[str, Tensor] = {}
        for sample in gradients:
            for name, values in sample.items():
                total[name] = total[name] + values.abs() if name in total else values.abs()
        if not any(bool(values.any()) for values in total.values()):
            raise UserError(
                "model_dowser cannot tell which weights matter: no trained linear layer has a sensitivity on the "
                "generic data. Use data with images and answers (generic=), or another train.scope."
            )
        self._measured = total

    def start(self, shards: Shards) -> None:
        measured = getattr(self, "_measured", None)
        if measured is None:
            raise UserError(
                "model_dowser has no sensitivities: they are measured on generic data before the first step, which "
                "only `python -m benchmark run method=model_dowser` does. Use spider_magnitude here."
            )
        self._log = MaskLog()
        scores = {
            shard.name: measured[shard.name].flatten()[shard.offset : shard.offset + shard.weight.numel()]
            .to(shard.weight).mul_(shard.pretrained.abs())
            for shard in shards if shard.name in measured
        }
        del self._measured  # whole tensors; this process needs its parts alone
        known, share = shards.where(lambda shard: shard.name in scores), exact(self.params.share)
        frozen = largest(known, lambda shard: scores[shard.name], lambda size: size - int(size * share))
        self.chosen = {
            shard.name: ~frozen[shard.name].mask(scores[shard.name]) if shard.name in scores
            else torch.zeros_like(shard.weight, dtype=torch.bool)
            for shard in shards
        }

    def before_step(self, shards: Shards) -> None:
        for shard in shards:
            shard.grad.masked_fill_(~self.mask(shard), 0.0)

    def after_step(self, shards: Shards) -> None:
        for shard in shards:
            shard.weight.copy_(torch.where(self.mask(shard), shard.weight, shard.pretrained))

    def mask(self, shard: Shard) -> Tensor:
        """Return which elements of a shard train."""
        return self.chosen[shard.name]

    def state_dict(self) -> dict[str, Any]:
        return {f"chosen/{name}": mask for name, mask in self.chosen.items()} | self._log.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self.chosen, state, "chosen/")
        self._log.load_state_dict(state, {shard.name: shard.weight.device for shard in self.shards})

    def diagnostics(self) -> dict[str, float]:
        """Return shares of the elements that train, see methods/masks.py."""
        return self._log.measure(self.shards, lambda shard: self.mask(shard).to(shard.weight))
