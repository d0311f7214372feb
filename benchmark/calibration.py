"""Second moments of the inputs of tuned linear layers, measured on a few training samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from methods.blocks import split_layer


class Calibration:
    """Calibration data for post-hoc methods.

    Args:
        model: maps a batch's keyword arguments to its output; its own weights are never changed.
        batches: keyword arguments of forward passes; each has `attention_mask` (batch, tokens), 0 for
            padding. `labels` are dropped: no loss is needed.
        names: trained tensors; those that are no weight of a linear layer are ignored.

    Attributes:
        blocks: names of linear weights, the projector's first, then one list per decoder layer in order.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], names: Iterable[str]
    ) -> None:
        self._model = model
        self._batches = batches
        self._modules = {f"{path}.weight": module for path, module in model.named_modules()}
        wanted = set(names)
        blocks: dict[str, list[str]] = {"": []}
        for name, module in self._modules.items():  # registration order, which is layer order
            if name in wanted and isinstance(module, nn.Linear):
                layer, _ = split_layer(name) or ("", "")
                blocks.setdefault(layer, []).append(name)
        self.blocks = [block for block in blocks.values() if block]

    @torch.no_grad()
    def gram(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """Measure 2 X^T X / n of each layer's inputs X (n, d_in), over tokens that are not padding.

        Args:
            weights: values to run the model with, by name; the rest of the model stays as it is.
            names: linear weights of decoder layers, from `blocks`.

        Returns:
            float64 (d_in, d_in) by name.

        Raises:
            ValueError: a layer sees other positions than the batch's attention mask describes.
        """
        if not names:
            return {}
        totals: dict[str, Tensor] = {}
        mask = torch.empty(0)

        def hook(name: str) -> Callable:
            def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                seen = inputs[0].shape[:2]
                if seen != mask.shape:
                    raise ValueError(f"{name} sees {tuple(seen)} positions, the mask is {tuple(mask.shape)}.")
                tokens = inputs[0][mask].double()
                totals[name] = totals.get(name, 0) + tokens.T @ tokens

            return add

        own = {name: tensor for name, tensor in self._model.named_parameters() if name in weights}
        loaded = {name: weights[name].to(tensor) for name, tensor in own.items()}
        training = self._model.training
        self._model.eval()
        handles = [self._modules[name].register_forward_pre_hook(hook(name)) for name in names]
        try:
            count = 0
            for batch in self._batches:
                inputs = {key: value for key, value in batch.items() if key != "labels"}
                mask = inputs["attention_mask"].bool()
                count += int(mask.sum())
                functional_call(self._model, loaded, args=(), kwargs=inputs)
        finally:
            for handle in handles:
                handle.remove()
            self._model.train(training)
        return {name: 2 * total / count for name, total in totals.items()}
