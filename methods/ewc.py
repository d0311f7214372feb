"""EWC: keep the weights close to the pretrained ones, most of all those that matter for what the model knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from methods.importance import ImportanceMethod
from methods.restore import restore

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shards


@dataclass(frozen=True)
class EwcParams:
    """strength: lambda; samples: that the Fisher information is measured on."""

    strength: float = 1.0
    samples: int = 256

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength={self.strength} must be at least 0.")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1.")


class Ewc(ImportanceMethod):
    """EWC: loss + lambda / 2 * sum_i F_i (w_i - w*_i)^2, so g <- g + lambda F (w - w*).

    F_i is the mean over samples of the squared gradient of the sample's loss at w*: the diagonal of the empirical
    Fisher information. It is divided by its mean over all trained weights, so that lambda means the same for every
    model and set of samples: with equal importances, ewc is l2_reg with half the strength.

    Granularity: element. Tensors: all trainable. Acts: `before_step`, on the clipped gradient (the same in every
    engine; the penalty needs no graph). Extra memory: 1 |M| for F and 1 |M| for w* (half if 16 bits hold it exactly).
    Source: Kirkpatrick et al., PNAS 2017, Eq. 3.
    Disagreements: the paper takes F on the old task's data and draws the labels from the model; here the data are
    generic descriptions, because the source sets must not be seen, with their own answers as labels, as in most code.
    Implementations differ in whether a sample's loss is the sum or the mean over its tokens; here it is the mean, as in
    training.
    Variants: none.
    """

    Params = EwcParams

    def measure(self, gradients: Iterable[dict[str, Tensor]]) -> None:
        squares: dict[str, Tensor] = {}
        for sample in gradients:
            for name, gradient in sample.items():
                squares[name] = squares[name] + gradient.square() if name in squares else gradient.square()
        total = sum(float(values.double().sum()) for values in squares.values())
        if not total > 0:
            raise UserError(
                "EWC cannot tell which weights matter: no weight that trains has a gradient on the generic data. Use "
                "data with images and answers (generic=), or method=l2_reg."
            )
        mean = total / sum(values.numel() for values in squares.values())
        self._measured = {name: values / mean for name, values in squares.items()}

    def start(self, shards: Shards) -> None:
        measured = getattr(self, "_measured", None)
        if measured is None:
            raise UserError(
                "EWC has no importances: they are measured on generic data before the first step, which only "
                "`python -m benchmark run method=ewc` does. Use l2_reg here."
            )
        self.importance = {
            shard.name: measured[shard.name].flatten()[shard.offset : shard.offset + shard.weight.numel()]
            .to(shard.weight).clone()
            for shard in shards
        }
        del self._measured  # whole tensors; this process needs its parts alone

    def before_step(self, shards: Shards) -> None:
        for shard in shards:
            change = shard.weight - shard.pretrained
            shard.grad.add_(change.mul_(self.importance[shard.name]), alpha=self.params.strength)

    def state_dict(self) -> dict[str, Any]:
        return {f"importance/{name}": values for name, values in self.importance.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self.importance, state, "importance/")
