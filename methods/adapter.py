"""The contract of a method that trains added tensors (an adapter) in place of the weights of some layers."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from safetensors.torch import load_file

from methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmark.training.adapters import Samples

FILE = "adapter_model.safetensors"  # as peft names it
NAME = "default"  # of the adapter, as peft names the only one of a model


class AdapterMethod(Method):
    """What every method with an adapter inherits.

    `benchmark.training.adapters` chooses the layers, calls `insert`, trains the tensors that then require gradients
    together with the projector, and merges the adapter into the base weights at the end. An adapted layer is a module
    like peft's: `get_base_layer()` returns the layer that it wraps, and `merge()` changes that layer's weights so that
    it alone computes what both computed. An adapter that cannot be merged stays: a finished cell keeps its tensors, and
    they are inserted again wherever the cell is used.

    Attributes:
        layers: the kind of layers that it adapts: linear layers, norms, or the input embedding alone.
        calibrates_on: the records that `insert` needs: none, those of the target, or training samples of the source
            sets. `calibration_samples` is their number.
        adapts_projector: whether it is the projector's adapter, too, with train.projector=lora. Otherwise LoRA is.
        merges: whether it can be merged; then its layers have `merge()`.
    """

    layers: ClassVar[Literal["linear", "norm", "embedding"]] = "linear"
    calibrates_on: ClassVar[Literal["", "target", "sources"]] = ""
    adapts_projector: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    uses_pretrained = False

    def adapts(self, layer: str) -> bool:
        """Return whether it adapts a layer, by the layer's name below its decoder block."""
        return re.fullmatch(self.params.targets, layer) is not None

    def fault(self, shape: Sequence[int]) -> str | None:
        """Return why a layer whose weight has this shape cannot take the adapter; None if it can."""
        return None

    @abstractmethod
    def insert(self, model: nn.Module, layers: Sequence[str], calibration: Samples | None) -> None:
        """Wrap layers of a model in place. Trained tensors require gradients afterwards, all others do not.

        Args:
            model: with base weights.
            layers: names of the modules to adapt.
            calibration: the calibration data; None if `calibration_samples` is 0.
        """

    def leave(self) -> None:  # noqa: B027  # most wrap layers alone
        """Undo what `insert` did beside wrapping layers."""

    def change(self, layer: Any) -> Tensor:
        """Return what an adapted layer adds to its base weight, in float32 (methods that move a part of it only)."""
        return layer.get_delta_weight(NAME).float()


def wrap(model: nn.Module, path: str, wrapper: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    """Put a wrapper around a layer of a model, in place.

    Args:
        model: the model.
        path: name of the layer.
        wrapper: called as (layer, *arguments).
        arguments: see wrapper.

    Returns:
        What stands in the layer's place now.
    """
    parent, _, child = path.rpartition(".")
    wrapped = wrapper(model.get_submodule(path), *arguments)
    setattr(model.get_submodule(parent), child, wrapped)
    return wrapped


def load_adapter(model: nn.Module, folder: Path | str, mark: str, put: Callable[[str, Tensor], object]) -> nn.Module:
    """Put an exported adapter that is none of peft's, and the projector beside it, into its base model.

    Args:
        model: the base, changed in place.
        folder: with adapter_model.safetensors.
        mark: end of the names of tensors that belong to an adapted layer; before it stands the layer's name.
        put: called as (layer, tensor) for each of them; it wraps the layer.

    Returns:
        The model.

    Raises:
        ValueError: the adapter is not one for this model.
    """
    tensors = load_file(Path(folder) / FILE)
    try:
        for name, tensor in tensors.items():
            if name.endswith(mark):
                put(name.removesuffix(mark), tensor)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors.items():
                parameters[name].copy_(tensor)
    except (AttributeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} is no adapter for this model ({error}). Give the base it was trained on.") from None
    return model


def check_targets(targets: str) -> None:
    """Check a regular expression for names of layers below a decoder block.

    Raises:
        ValueError: it is none.
    """
    try:
        re.compile(targets)
    except re.error as error:
        raise ValueError(f"targets={targets!r} is no regular expression: {error}.") from None
