"""Half FT: train half of the parameter blocks of every transformer layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmark.core.errors import UserError
from methods.base import Method
from methods.blocks import split_layer
from methods.masks import shares
from methods.ops import generator

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shards

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
BLOCKS = frozenset(ATTENTION + FEED_FORWARD + NORMS)


@dataclass(frozen=True)
class HalfFTParams:
    """redraw: draw new tensors at every optimizer step instead of once per run."""

    redraw: bool = False


def draw_frozen(names: Iterable[str], seed: int, step: int | None = None) -> list[str]:
    """Draw the tensors that a run, or one of its steps, freezes.

    Per layer 2 of 4 attention matrices and 1 of 2 norms are trained; 2 of 3 feed-forward matrices in a
    random half of the layers (the larger half of an odd number) and 1 of 3 in the others. Where train.scope leaves
    fewer matrices of a kind, half of them: rounded up in that half of the layers, rounded down in the others.

    Args:
        names: all trainable tensors; those outside decoder layers are never frozen.
        seed: the run's seed.
        step: number of the optimizer step, or None for the single draw of a run.

    Returns:
        Sorted names of the frozen tensors.

    Raises:
        UserError: no matrix or norm of a decoder layer is among the names.
    """
    layers: dict[str, dict[str, list[str]]] = {}
    for name in names:
        layer, module = split_layer(name) or ("", "")
        if module in BLOCKS:
            layers.setdefault(layer, {}).setdefault(module, []).append(name)
    if not layers:
        raise UserError(
            "half_ft found no matrix or norm of a decoder layer among the trainable tensors. "
            "Train layers (train.scope=last_layers, train.last_layers>=1)."
        )
    source = generator(seed, "half_ft" if step is None else f"half_ft/{step}")
    ordered = sorted(layers)
    order = torch.randperm(len(ordered), generator=source).tolist()
    generous = {ordered[i] for i in order[: (len(ordered) + 1) // 2]}
    frozen = []
    for layer in ordered:
        for kind in (ATTENTION, FEED_FORWARD, NORMS):
            modules = [module for module in kind if module in layers[layer]]
            trained = (len(modules) + (layer in generous)) // 2
            for i in torch.randperm(len(modules), generator=source).tolist()[trained:]:
                frozen += layers[layer][modules[i]]
    return sorted(frozen)


class HalfFT(Method):
    """Half FT (HFT): w_t <- w_t for frozen tensors, AdamW for the others; one draw per run.

    Granularity: whole matrices and norms, by category within each layer. Tensors: those of the tuned
    decoder layers; the projector is always trained (HFT does the same with embeddings and head).
    Acts: `before_step` sets the frozen gradients to 0, so Adam's moments see zeros, and saves the frozen
    weights; `after_step` restores them bit for bit, because momentum and weight decay would move them.
    Extra memory: 0 |M| between steps, 0.5 |M| during a step.
    Source: Hui et al., arXiv 2404.18466 (category level, its best variant).
    Disagreements: SPIDER's App. B says "at each iteration", but its Table 5 row equals Table 3's Rand_gamma, which is
    a static elementwise mask in the authors' code. HFT draws once per fine-tuning run, as we do. In HFT frozen tensors
    have no gradient; here their gradients count towards the norm by which all gradients are clipped.
    Variants: half_ft_step: App. B's wording, a new draw for every optimizer step; a tensor that is frozen keeps its
    current value and does not return to w*. half_ft_elements: Rand_gamma, see methods/select.py.
    """

    Params = HalfFTParams
    uses_pretrained = False

    def start(self, shards: Shards) -> None:
        self._sizes = {shard.name: shard.numel for shard in shards}
        self._steps: Counter[str] = Counter()
        self._kept: dict[str, Tensor] = {}
        self._logged: frozenset[str] | None = None
        self._drawn = -1
        self._draw(0)

    def before_step(self, shards: Shards) -> None:
        for shard in shards:
            if self.params.redraw:
                self._draw(self._steps[shard.name])
            self._steps[shard.name] += 1
            if shard.name in self.frozen:
                self._kept[shard.name] = shard.weight.clone()
                shard.grad.zero_()

    def after_step(self, shards: Shards) -> None:
        for shard in shards:
            if shard.name in self._kept:
                shard.weight.copy_(self._kept.pop(shard.name))

    def _draw(self, step: int) -> None:
        """Set the frozen tensors of a step, unless they are already set."""
        if step != self._drawn:
            drawn = draw_frozen(self._sizes, self.seed, step if self.params.redraw else None)
            self.frozen, self._drawn = frozenset(drawn), step

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"frozen": sorted(self.frozen)}
        if self._logged is not None:
            state["logged"] = sorted(self._logged)
        return state | ({"steps": max(self._steps.values(), default=0)} if self.params.redraw else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        steps = state.get("steps", 0)
        self._steps = Counter(dict.fromkeys(self._sizes, steps))
        self._draw(max(steps - 1, 0))
        if set(state["frozen"]) != self.frozen:
            raise UserError(
                "half_ft cannot resume: the checkpoint froze other tensors than this seed and scope draw. "
                "Resume with the run's own seed and train.scope, or delete its checkpoint folder."
            )
        self._logged = frozenset(state["logged"]) if "logged" in state else None

    def diagnostics(self) -> dict[str, float]:
        """Return shares of all elements: in trained tensors, and in tensors frozen or released since the last call."""
        before = self.frozen if self._logged is None else self._logged
        counts = {}
        for name, size in self._sizes.items():
            trained, changed = name not in self.frozen, name in self.frozen ^ before
            counts[name] = [size * trained, size * trained, size * changed]
        result = shares(counts, self._sizes)
        if self._logged is None:
            del result["mask_flips"]
        self._logged = self.frozen
        return result
