"""What the masked methods share: their log (how much is selected where, how fast that changes) and their state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from benchmark.errors import UserError
from methods.blocks import split_layer

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.shards import Shard, Shards

OUTSIDE = "projector"  # tensors in no decoder layer


class MaskLog:
    """Counts of masks, and the selection at the last call (one byte per element, once anything is logged)."""

    def __init__(self) -> None:
        self._selected: dict[str, Tensor] = {}

    def measure(self, shards: Shards, mask: Callable[[Shard], Tensor]) -> dict[str, float]:
        """Count a mask over all tensors, in one reduction.

        Args:
            shards: every trainable tensor.
            mask: maps a shard to its M, 0 where not selected.

        Returns:
            See `shares`; mask_flips only from the second call on.
        """
        before, self._selected = self._selected, {}

        def count(shard: Shard) -> Tensor:
            values = mask(shard)
            selected = self._selected[shard.name] = values != 0
            changed = selected ^ before.get(shard.name, selected)
            return torch.stack([selected.sum(), (values == 1).sum(), changed.sum()]).double()

        sizes = {shard.name: shard.numel for shard in shards}
        result = shares(shards.sums(count), sizes)
        if not before:
            del result["mask_flips"]
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the selection: the first flip rate after a resume needs it."""
        return {f"selected/{name}": tensor for name, tensor in self._selected.items()}

    def load_state_dict(self, state: Mapping[str, Any], devices: Mapping[str, torch.device]) -> None:
        """Restore `state_dict`'s result, each tensor on its device."""
        keys = {name: f"selected/{name}" for name in devices}
        self._selected = {name: state[key].to(devices[name]) for name, key in keys.items() if key in state}


def shares(counts: Mapping[str, list[float]], sizes: Mapping[str, int]) -> dict[str, float]:
    """Turn counts of elements into what train.jsonl holds about a mask.

    Args:
        counts: tensor name -> number of elements with M != 0, with M == 1, and with another selection than before.
        sizes: tensor name -> number of elements.

    Returns:
        mask_selected, mask_ones, mask_flips: shares of all elements; selected_in/<layer>, or "projector": of a
        decoder layer's elements; selected/<tensor>: of a tensor's.
    """
    layers: dict[str, list[str]] = {}
    for name in counts:
        layers.setdefault((split_layer(name) or (OUTSIDE, ""))[0], []).append(name)

    def share(column: int, names: list[str]) -> float:
        return sum(counts[name][column] for name in names) / sum(sizes[name] for name in names)

    everything = list(counts)
    result = {
        key: share(column, everything)
        for column, key in enumerate(("mask_selected", "mask_ones", "mask_flips"))
    }
    result |= {f"selected_in/{layer}": share(0, names) for layer, names in sorted(layers.items())}
    return result | {f"selected/{name}": share(0, [name]) for name in everything}


def save_accumulated(accumulated: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return accumulated gradients as part of a method's state."""
    return {f"accumulated/{name}": tensor for name, tensor in accumulated.items()}


def load_accumulated(accumulated: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Copy saved accumulated gradients into these tensors.

    Raises:
        UserError: the state belongs to other tensors.
    """
    saved = {key: tensor.shape for key, tensor in state.items() if key.startswith("accumulated/")}
    if saved != {key: tensor.shape for key, tensor in save_accumulated(accumulated).items()}:
        raise UserError(
            "The method cannot resume: the checkpoint holds other tensors than this run trains. Resume with "
            "the run's own model, train.scope and number of processes, or delete its checkpoint folder."
        )
    for name, tensor in accumulated.items():
        tensor.copy_(state[f"accumulated/{name}"])
