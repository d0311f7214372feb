"""Put saved tensors back into a method's own, after a check that they are those of this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def restore(tensors: Mapping[str, Tensor], state: Mapping[str, Any], prefix: str) -> None:
    """Copy what a checkpoint holds under `prefix` into these tensors.

    Args:
        tensors: by name; they are overwritten.
        state: a method's saved state, with one tensor <prefix><name> for each of them.
        prefix: of the keys, for example "importance/".

    Raises:
        UserError: the state has other names or shapes. Nothing has been overwritten then.
    """
    saved = {key: value.shape for key, value in state.items() if key.startswith(prefix)}
    if saved != {f"{prefix}{name}": tensor.shape for name, tensor in tensors.items()}:
        raise UserError(
            "The method cannot resume: the checkpoint holds other tensors than this run trains. Resume with "
            "the run's own model, train.scope and number of processes, or delete its checkpoint folder."
        )
    for name, tensor in tensors.items():
        tensor.copy_(state[f"{prefix}{name}"])
