"""What masked methods share: the mask's numbers in the log, and saving accumulated gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from methods.blocks import split_layer

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = "projector"  # tensors in no decoder layer


def shares(counts: Mapping[str, Sequence[float]], sizes: Mapping[str, int]) -> dict[str, float]:
    """Turn counts of elements into the mask's entries in train.jsonl.

    Args:
        counts: tensor name -> number of elements with M != 0, with M == 1, and whose selection changed.
        sizes: tensor name -> number of elements.

    Returns:
        mask_selected, mask_ones, mask_flips: shares of all elements; selected_in/<layer>: share of a decoder layer's
        elements (<layer> is "projector" for all tensors outside the layers); selected/<tensor>: share of a tensor's.
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
