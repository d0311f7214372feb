"""Measurements of post-hoc methods on a few training samples: inputs of tuned layers, gradients of the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmark.models.prompt import IGNORE
from methods.blocks import split_layer


class Calibration:
    """Calibration data for post-hoc methods.

    Args:
        model: maps a batch's keyword arguments to an output; its own weights are never changed.
        batches: keyword arguments of forward passes. Each has `attention_mask` (batch, tokens), 0 for padding, and
            `labels` (batch, tokens), -100 where nothing is supervised; only `gradient` reads the labels.
        names: trained tensors; those that are not weights of a linear layer are ignored.

    Attributes:
        blocks: lists of names of linear weights: the projector's first, then one list per decoder layer in order.
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
        """Measure 2 X^T X / n of each layer's inputs X (tokens, d_in), where n is the number of samples.

        X has the tokens that are not padding. n counts samples, not tokens, as in SparseGPT and Tailor's released code.
        The scale matters where an input is never active, because such a diagonal element becomes 1.

        Args:
            weights: name -> value to run the model with; other tensors stay as they are.
            names: linear weights of decoder layers, from `blocks`.

        Returns:
            Name -> float64 (d_in, d_in).

        Raises:
            ValueError: the positions that a layer sees differ from those of the batch's attention mask.
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

        handles = [self._modules[name].register_forward_pre_hook(hook(name)) for name in names]
        try:
            count = 0
            with self._at(weights) as loaded:
                for batch in self._batches:
                    mask = batch["attention_mask"].bool()
                    count += len(mask)
                    self._forward(loaded, batch)
        finally:
            for handle in handles:
                handle.remove()
        return {name: 2 * total / count for name, total in totals.items()}

    def gradient(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradient of the loss: the mean over batches of the mean cross-entropy of supervised tokens.

        Args:
            weights: name -> value to run the model with; other tensors stay as they are.

        Returns:
            Name -> float32 tensor (float64 if the model's is); zeros for a tensor that the loss does not depend on.
        """
        with self._at(weights) as loaded:
            leaves = [tensor.detach().requires_grad_() for tensor in loaded.values()]
            found = {name: torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
                     for name, tensor in loaded.items()}
            for batch in self._batches:
                outputs = self._forward(dict(zip(loaded, leaves, strict=True)), batch)
                logits, labels = outputs.logits[:, :-1], batch["labels"][:, 1:]
                supervised = labels != IGNORE
                loss = F.cross_entropy(logits[supervised].float(), labels[supervised]) / len(self._batches)
                for name, part in zip(loaded, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
                    if part is not None:
                        found[name] += part
        return found

    @contextlib.contextmanager
    def _at(self, weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield values in the model's dtype, with the model in evaluation mode and its weights outside the graph."""
        own = dict(self._model.named_parameters())
        training, needed = self._model.training, [tensor for tensor in own.values() if tensor.requires_grad]
        self._model.eval().requires_grad_(False)
        try:
            yield {name: weights[name].to(own[name]) for name in own if name in weights}
        finally:
            for tensor in needed:
                tensor.requires_grad_()
            self._model.train(training)

    def _forward(self, weights: dict[str, Tensor], batch: Mapping[str, Tensor]) -> Any:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return functional_call(self._model, weights, args=(), kwargs=inputs)
