"""The log of methods whose mask changes: how much is selected where, and how fast that changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from methods.masks import shares

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.shards import Shard, Shards


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
