"""The base model's logits without a second model: w* takes the place of the trained tensors for one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmark.core.errors import UserError


class BaseWeights:
    """w* of the trained tensors, as an engine holds them.

    Only pointers are exchanged, so nothing is copied between two passes. One process, ZeRO-1 and ZeRO-2 use the copy of
    w* that every training keeps for its delta. ZeRO-3 needs its part of w* on each process, in the model's dtype.

    Args:
        trained: name -> trained tensor.
        pretrained: name -> its base value, whole. Of an adapter: its value before the first step, at which the model
            computes what the base does.
        rank: number of this process.
        exact: cast every value to the dtype of its tensor. Otherwise only vectors are cast: autocast rounds the
            matrices of linear layers in any case, and those of the base are in that dtype already.

    Raises:
        UserError: the base value of a tensor has been freed.
    """

    def __init__(
        self, trained: Mapping[str, Parameter], pretrained: Mapping[str, Tensor], rank: int = 0, exact: bool = False
    ) -> None:
        for name, parameter in trained.items():
            whole = getattr(parameter, "ds_numel", parameter.numel())
            if name not in pretrained or pretrained[name].numel() != whole:
                raise UserError(
                    f"The loss compares with the base model, but the base value of {name} has been freed. Use "
                    "train.loss=cross_entropy, or a method that keeps it."
                )
        self._trained, self._pretrained, self._rank, self._exact = trained, pretrained, rank, exact
        self._values: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def in_place(self, model: Any) -> Iterator[None]:
        """Compute as the base model inside the block. Nothing inside may need gradients.

        Args:
            model: the model, or the engine around it.
        """
        tensors = {name: getattr(parameter, "ds_tensor", parameter) for name, parameter in self._trained.items()}
        parted = any(tensor is not self._trained[name] for name, tensor in tensors.items())
        values = {name: self._value(name, tensor) for name, tensor in tensors.items()}
        kept = {name: tensor.data for name, tensor in tensors.items()}
        # ZeRO-3 keeps some gathered tensors from one pass for the next.
        forget = model.optimizer.empty_partition_cache if parted else lambda: None
        forget()
        try:
            for name, tensor in tensors.items():
                tensor.data = values[name]
            with torch.no_grad():
                yield
        finally:
            forget()
            for name, tensor in tensors.items():
                tensor.data = kept[name]

    def _value(self, name: str, tensor: Tensor) -> Tensor:
        """Return what replaces a tensor's data, made once."""
        if name not in self._values:
            whole = self._pretrained[name].detach()
            if tensor is not self._trained[name]:
                size = tensor.numel()
                whole = whole.flatten()[self._rank * size : (self._rank + 1) * size]
                whole = torch.cat([whole, whole.new_zeros(size - len(whole))]).to(tensor.device, tensor.dtype)
            elif self._exact or whole.dim() < 2:
                whole = whole.to(tensor.dtype)
            self._values[name] = whole.to(tensor.device)
        return self._values[name]
