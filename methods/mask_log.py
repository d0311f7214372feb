"""Log of methods with a changing mask: how much of each tensor is selected, and how fast the selection changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from methods.masks import shares

if TYPE_CHECKING:
    from torch import Tensor

    from methods.shards import Shard, Shards


SAMPLED = 1024  # the selection of at most this many elements of a tensor is remembered


def sample_step(shape: Sequence[int]) -> int:
    """Return the distance between the remembered elements of a tensor, chosen so that they cover all its columns.

    Args:
        shape: of the tensor; the last dimension is a row's length.
    """
    step = math.ceil(math.prod(shape) / SAMPLED) | 1  # an even step would hit few columns of most matrices,
    width = shape[-1]
    if step > width > 1:  # and a multiple of the row length only one
        step = (step // width + 1) * width + int(0.618 * width)
    return step


class MaskLog:
    """Counts selected elements, and remembers the selection for the next call.

    Remembering every element would cost one byte per element, a sixth of what SPIDER keeps. The flip rate needs only a
    sample: every k-th element of the whole tensor, however the tensor is sharded.
    """

    def __init__(self) -> None:
        self._selected: dict[str, Tensor] = {}

    def measure(self, shards: Shards, mask: Callable[[Shard], Tensor]) -> dict[str, float]:
        """Count a mask over all tensors, in one reduction.

        Args:
            shards: every trainable tensor.
            mask: maps a shard to its M, 0 where not selected.

        Returns:
            See `shares`. mask_flips appears from the second call on. For a tensor of more than SAMPLED elements it is
            an estimate: the share of flips in the sample, times the tensor's size.
        """
        before, self._selected = self._selected, {}
        sizes = {shard.name: shard.numel for shard in shards}
        steps = {shard.name: sample_step(shard.shape) for shard in shards}

        def count(shard: Shard) -> Tensor:
            values, step = mask(shard), steps[shard.name]
            selected = values != 0
            # Cloned, because a view would keep the whole mask alive.
            sample = self._selected[shard.name] = selected[-shard.offset % step :: step].clone()
            changed = sample ^ before.get(shard.name, sample)
            return torch.stack([selected.sum(), (values == 1).sum(), changed.sum()]).double()

        counts = shards.sums(count)
        for name, row in counts.items():
            row[2] *= sizes[name] / math.ceil(sizes[name] / steps[name])
        result = shares(counts, sizes)
        if not before:
            del result["mask_flips"]
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the last selection, which the first flip rate after a resume needs."""
        return {f"selected/{name}": tensor for name, tensor in self._selected.items()}

    def load_state_dict(self, state: Mapping[str, Any], devices: Mapping[str, torch.device]) -> None:
        """Restore what `state_dict` returned, each tensor on its device."""
        keys = {name: f"selected/{name}" for name in devices}
        self._selected = {name: state[key].to(devices[name]) for name, key in keys.items() if key in state}
