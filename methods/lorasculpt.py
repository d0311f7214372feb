"""LoRASculpt: LoRA whose A and B become sparse, and whose product stays small where W is large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from methods.adapter import NAME, check_targets
from methods.blocks import split_layer
from methods.peft import Peft, check_positive, rank_fault
from methods.threshold import largest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmark.training.adapters import Samples
    from methods.shards import Shard, Shards

DOWN, UP = f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight"
ATTENTION = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class LoraSculptParams:
    """targets, r, lora_alpha: as LoRA's; keep: share of each A and of each B that stays; prune_after: optimizer steps
    before the rest becomes 0; strength: lambda of the regulariser; omega: inside its tanh; regularise: all adapted
    layers, or queries, keys and values; lag: mask the weights only right before the next step, so that forward passes
    and the saved adapter see them unmasked."""

    targets: str = ".*"
    r: int = 32
    lora_alpha: int = 64
    keep: float = 0.1
    prune_after: int = 100
    strength: float = 1e-3
    omega: float = 1.0
    regularise: Literal["all", "qkv"] = "all"
    lag: bool = False

    def __post_init__(self) -> None:
        check_targets(self.targets)
        check_positive(r=self.r, lora_alpha=self.lora_alpha, prune_after=self.prune_after, omega=self.omega)
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} must be above 0 and at most 1.")
        if self.strength < 0:
            raise ValueError(f"strength={self.strength} must be at least 0.")


class LoraSculpt(Peft):
    """LoRASculpt: LoRA, with a regulariser lambda mean_l ||M_l * (B_l A_l)||_F, M = tanh(omega |1 / log(|W| / ||W||_F
    + 1e-15)|), and from step `prune_after` on A <- A * m_A, B <- B * m_B, the masks of the int(keep n) largest |A| and
    |B|.

    Granularity: element; the masks are chosen once, for every A and B by itself. Tensors: as LoRA's; the projector
    trains as a whole. Acts: `before_step` adds the regulariser's gradient to the clipped gradient, `after_step` masks.
    Extra memory: LoRA's and a byte per element of A and B, far below 1 |M|; M is computed anew in every step.
    Source: Liang et al., CVPR 2025.
    Disagreements: the released code differs from the paper in five points: (1) it prunes once, after an absolute
    number of steps (100), not a share of the training; (2) it masks at the start of a step the float32 masters alone,
    so forward passes lag one step behind, and the adapter that it saves is not sparse; (3) its masks are not in its
    checkpoints, so a resumed run goes on without; (4) it regularises queries, keys and values only, and the projector,
    to which the paper gives a sparse LoRA of its own, trains as a whole, without regulariser; (5) the regulariser
    leaves out LoRA's scale.
    With train.projector=lora it adapts the projector's layers, too: (4) as in the paper, L + lambda mean_llm + lambda
    mean_connector, with A and B of both parts masked.
    Variants: lorasculpt: masks on the weights after every step, the last one included, saved and resumed; all adapted
    layers are regularised; (1), (5) and the whole projector are as released. lorasculpt_code: as released but for (3),
    because a cell must not depend on interruptions.
    """

    Params = LoraSculptParams
    type = "LORA"
    stateless = False
    adapts_projector = True

    def options(self, layers: Sequence[str]) -> dict[str, Any]:
        return {"r": self.params.r, "lora_alpha": self.params.lora_alpha}

    def fault(self, shape: Sequence[int]) -> str | None:
        return rank_fault(self.params.r, shape)

    def refuses(self, engine: str) -> str | None:
        if engine != "zero3":
            return None
        return (
            "the regulariser needs a layer's A and B together, and ZeRO-3 may step them in several pieces "
            "(zero_optimization.sub_group_size). Train on engine=zero2."
        )

    def insert(self, model: nn.Module, layers: Sequence[str], calibration: Samples | None) -> None:
        super().insert(model, layers, calibration)
        wanted = [path for path in layers if self.params.regularise == "all" or path.endswith(ATTENTION)]
        # The mean is over the layers of a layer's part: the language model or the projector.
        outside = {path: split_layer(f"{path}.weight") is None for path in wanted}
        parts = Counter(outside.values())
        self._regularised = {path: parts[outside[path]] for path in wanted}
        # A function, because the weights are the model's: they are no state of this method and cost it no memory.
        self._weight = lambda path: _whole(model.get_parameter(f"{path}.base_layer.weight"))

    def start(self, shards: Shards) -> None:
        self._steps = {shard.name: 0 for shard in shards if shard.name.endswith((DOWN, UP))}
        self._masks: dict[str, Tensor] = {}

    def before_step(self, shards: Shards) -> None:
        self._regularise(shards)
        if self.params.lag:
            self._mask(shards)

    def after_step(self, shards: Shards) -> None:
        for shard in shards:
            if shard.name in self._steps:
                self._steps[shard.name] += 1
        if not self.params.lag:
            self._mask(shards)

    def _mask(self, shards: Shards) -> None:
        """Set the elements outside the masks to 0; choose the masks first if it is time."""
        mine = shards.where(lambda shard: shard.name in self._steps)
        due = mine.where(
            lambda shard: shard.name not in self._masks and self._steps[shard.name] >= self.params.prune_after
        )
        if any(True for _ in due):
            chosen = largest(due, lambda shard: shard.weight, lambda size: int(size * self.params.keep))
            self._masks |= {shard.name: chosen[shard.name].mask(shard.weight) for shard in due}
        for shard in mine:
            if shard.name in self._masks:
                shard.weight.mul_(self._masks[shard.name])

    def _regularise(self, shards: Shards) -> None:
        """Add the regulariser's gradient: B^T P / ||M * (B A)||_F to A's and P A^T / ||M * (B A)||_F to B's, with
        P = M^2 * (B A)."""
        if not self.params.strength or not self._regularised:
            return
        mine = {shard.name: shard for shard in shards}
        pairs = [path for path in self._regularised if f"{path}{DOWN}" in mine and f"{path}{UP}" in mine]
        if not pairs:  # another parameter group's call
            return
        whole = gathered(shards, [mine[f"{path}{end}"] for path in pairs for end in (DOWN, UP)])
        for path in pairs:
            down, up = whole[f"{path}{DOWN}"], whole[f"{path}{UP}"]
            weighted = importance(self._weight(path).to(down), self.params.omega).square_().mul_(up @ down)
            norm = (weighted * (up @ down)).sum().sqrt()
            # At B = 0 the norm has no gradient; PyTorch's is 0.
            factor = torch.where(norm > 0, self.params.strength / self._regularised[path] / norm, 0.0)
            for name, gradient in ((DOWN, up.T @ weighted), (UP, weighted @ down.T)):
                shard = mine[f"{path}{name}"]
                part = gradient.flatten()[shard.offset : shard.offset + shard.grad.numel()]
                shard.grad.add_((factor * part).to(shard.grad))

    def state_dict(self) -> dict[str, Any]:
        steps = {f"steps/{name}": count for name, count in self._steps.items()}
        return steps | {f"mask/{name}": mask for name, mask in self._masks.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = {shard.name: shard.weight.device for shard in self.shards}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "steps":
                self._steps[name] = value
            else:
                self._masks[name] = value.to(device[name])

    def diagnostics(self) -> dict[str, float]:
        """Return the share of the elements of A and B that are not 0."""
        mine = self.shards.where(lambda shard: shard.name in self._steps)
        counts = mine.sums(lambda shard: shard.weight.count_nonzero().double()[None])
        return {"adapter_density": sum(count for count, in counts.values()) / sum(shard.numel for shard in mine)}


def _whole(weight: Any) -> Tensor:
    """Return a weight that FSDP2 may have cut into rows, with the rows of all processes."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def importance(weight: Tensor, omega: float) -> Tensor:
    """Return M = tanh(omega |1 / log(|W| / ||W||_F + 1e-15)|), which is near 1 where |W| is large."""
    return (weight.abs().div_(weight.norm()).add_(1e-15).log_().reciprocal_().abs_() * omega).tanh_()


def gathered(shards: Shards, parts: Sequence[Shard]) -> dict[str, Tensor]:
    """Return whole tensors by name, from all processes, in one reduction. Every process must call it.

    Args:
        shards: the tensors of the hook call.
        parts: those to gather, in the same order in every process.
    """
    flat = torch.zeros(sum(part.numel for part in parts), dtype=torch.float64, device=parts[0].weight.device)
    starts, start = {}, 0
    for part in parts:
        starts[part.name] = start
        flat[start + part.offset : start + part.offset + part.weight.numel()] = part.weight
        start += part.numel
    flat = shards.reduce_sum(flat)
    return {
        part.name: flat[starts[part.name] : starts[part.name] + part.numel].view(part.shape).to(part.weight.dtype)
        for part in parts
    }
