"""How far a tuned model's outputs have moved from its base: KL on the target's answers, CKA on source inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.data.record import Record
from benchmark.models import LoadedModel
from benchmark.models.batch import Item, Items, collate
from benchmark.training.objective import batch_loss, training_batch

Told = Callable[[int, int], None]


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second) = sum_v p_v (log p_v - log q_v), p = softmax(first), q = softmax(second).

    Args:
        first: logits, (tokens, vocabulary).
        second: logits of the same tokens.

    Returns:
        In nats, one for each token, float64.
    """
    p, q = F.log_softmax(first.double(), -1), F.log_softmax(second.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return linear CKA, ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) with centred columns (Kornblith et al., ICML 2019).

    It is 1 for equal outputs, and ignores rotations and one common scale of either.

    Args:
        first: X, (inputs, width).
        second: Y, of the same inputs, (inputs, any width).

    Returns:
        From 0 to 1; not a number if the outputs of all inputs are equal.
    """
    grams = []
    for values in (first, second):
        centred = values.double() - values.double().mean(0)
        grams.append(centred @ centred.T)  # ||Y^T X||_F^2 is the inner product of these
    norms = grams[0].norm() * grams[1].norm()
    return float((grams[0] * grams[1]).sum() / norms) if norms > 0 else float("nan")


class Reference:
    """What a base model returns on fixed records, for tuned models of the same base to be compared with.

    Args:
        loaded: the model with base weights.
        targets: records of the target, with answers.
        sources: records of the source sets.
        batch_size: records per forward pass.
        told: callback (records, total).
    """

    def __init__(
        self, loaded: LoadedModel, targets: Sequence[Record], sources: Sequence[Record], batch_size: int,
        told: Told = lambda done, total: None,
    ) -> None:
        self._loaded, self._size = loaded, batch_size
        self._targets = Items(loaded, targets, supervised=True)
        self._sources = Items(loaded, sources, supervised=False)
        self._logits = [logits.cpu() for logits in self._answers(told)]
        self._outputs = self._layers(told)

    def drift(self, told: Told = lambda done, total: None) -> dict[str, Any]:
        """Measure the model as it is now, with tuned weights.

        Returns:
            kl: KL(tuned || base) in nats, the mean over the answer tokens of the targets, given the answer before each;
            kl_of_base: the same of KL(base || tuned); tokens: their number; cka: linear CKA of each decoder layer's
            output at the last token of the prompt, with a row per source record; inputs: the number of rows.
        """
        forward: list[Tensor] = []
        backward: list[Tensor] = []
        for base, tuned in zip(self._logits, self._answers(told), strict=True):
            here = base.to(tuned.device)
            forward.append(divergence(tuned, here).cpu())
            backward.append(divergence(here, tuned).cpu())
        pairs = zip(self._outputs, self._layers(told), strict=True)
        return {
            "kl": float(torch.cat(forward).mean()), "kl_of_base": float(torch.cat(backward).mean()),
            "tokens": sum(map(len, forward)), "cka": [linear_cka(base, tuned) for base, tuned in pairs],
            "inputs": len(self._sources),
        }

    @torch.no_grad()
    def _answers(self, told: Told) -> Iterator[Tensor]:
        """Yield the logits that predict the answer tokens of each batch of targets, (tokens, vocabulary)."""
        for batch in self._batches(self._targets, told):
            inputs = training_batch(self._loaded, [(item, 1.0) for item in batch])
            del inputs["item_ids"]
            inputs = self._placed(inputs)
            _, outputs = batch_loss(self._loaded.model, inputs, autocast=False)
            yield outputs.logits[inputs["weights"] > 0].float()

    @torch.no_grad()
    def _layers(self, told: Told) -> list[Tensor]:
        """Return the output of each decoder layer at the last token of every source prompt, (records, width)."""
        model = self._loaded.model
        blocks = [model.get_submodule(prefix.removesuffix(".")) for prefix in self._loaded.block_prefixes]
        rows: list[list[Tensor]] = [[] for _ in blocks]
        last: dict[int, Tensor] = {}  # of each block; a trained prompt runs through the blocks before the records do

        def keep(place: int) -> Callable[[Any, Any, Any], None]:
            def hook(_: Any, __: Any, output: Any) -> None:
                hidden = output if isinstance(output, Tensor) else output[0]
                last[place] = hidden[:, -1].float().cpu()

            return hook

        handles = [block.register_forward_hook(keep(place)) for place, block in enumerate(blocks)]
        try:
            for batch in self._batches(self._sources, told):
                inputs = self._placed(collate(self._loaded, batch, "left"))  # so that every prompt ends at the end
                del inputs["labels"]
                model(**inputs, use_cache=False, logits_to_keep=1)
                for place, layer in enumerate(rows):
                    layer.append(last[place])
        finally:
            for handle in handles:
                handle.remove()
        return [torch.cat(layer) for layer in rows]

    def _batches(self, items: Items, told: Told) -> Iterator[list[Item]]:
        self._loaded.model.eval()
        for start in range(0, len(items), self._size):
            yield [items[index] for index in range(start, min(start + self._size, len(items)))]
            told(min(start + self._size, len(items)), len(items))

    def _placed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch on the model's device; images in its dtype."""
        model = self._loaded.model
        return {
            name: tensor.to(model.device, model.dtype if tensor.is_floating_point() and name != "weights" else None)
            for name, tensor in batch.items()
        }
