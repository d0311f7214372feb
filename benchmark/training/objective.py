"""A micro-batch, the forward pass over it, and its part of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmark.models import LoadedModel
from benchmark.models.batch import Item, collate, split_start, start_cache
from benchmark.models.prompt import IGNORE
from benchmark.spec import TrainSpec
from benchmark.training.base_weights import BaseWeights
from benchmark.training.losses import cross_entropy, token_losses
from benchmark.training.train_settings import NEEDS_BASE


def training_batch(
    loaded: LoadedModel, pairs: Sequence[tuple[Item, float]], blank: Tensor | Item | None = None, share: bool = True
) -> dict[str, Any]:
    """Collate a micro-batch and reduce its labels to what the loss needs.

    Args:
        loaded: the model.
        pairs: (item, weight).
        blank: dummy image, or an item with one, for a batch without images, in an extra row of weight 0. Several
            processes need it. Under ZeRO-3 they wait for each other for ever unless all run the same modules in the
            same order, and a projector that did not run would be stepped with the gradient of an earlier batch.
        share: run the tokens that all items begin with only once. Gradient checkpointing excludes this: layers that run
            again would write the keys of these tokens a second time, so transformers drops them.

    Returns:
        "start", the tokens that all items begin with, (1, shared), empty unless shared; the model's inputs for the
        tokens after them; "columns", the positions whose logits predict a supervised token; "targets" and "weights",
        (batch, columns), with weight 0 where nothing is supervised; "item_ids".
    """
    if blank is not None and all(item.image is None for item, _ in pairs):
        if not isinstance(blank, Item):
            # It begins like the first item, so it does not shorten the start that all items share.
            ids = pairs[0][0].input_ids + [loaded.image_token_id] * loaded.image_seq_length
            blank = Item("blank", ids, [IGNORE] * len(ids), blank)
        pairs = [*pairs, (blank, 0.0)]
    items = [item for item, _ in pairs]
    shared, rest = split_start(loaded, items) if share else ([], items)
    batch: dict[str, Any] = collate(loaded, rest, "right")
    mask = batch["attention_mask"]
    batch["attention_mask"] = torch.cat([mask.new_ones(len(mask), len(shared)), mask], dim=1)
    if "position_ids" in batch:
        batch["position_ids"] += len(shared)
    following = batch.pop("labels")[:, 1:]
    supervised = following != IGNORE
    columns = supervised.any(0).nonzero().flatten()
    weights = torch.tensor([weight for _, weight in pairs])[:, None] * supervised
    return batch | {
        "start": torch.tensor([shared], dtype=torch.long),
        "columns": columns,
        "targets": following[:, columns].clamp(min=0),
        "weights": weights[:, columns],
        "item_ids": [item.item_id for item, _ in pairs],
    }


@dataclass
class Objective:
    """What is minimised for each supervised token.

    Args:
        train: names the loss and its settings.
        base: w*, for a loss that compares with the base model.
        tau: temperature of the current optimizer step, for a loss that has one.
    """

    train: TrainSpec
    base: BaseWeights | None = None
    tau: float | None = None


def objective_of(
    train: TrainSpec, trained: dict[str, Parameter], pretrained: dict[str, Tensor], rank: int = 0, adapted: bool = False
) -> Objective:
    """Return what a training minimises.

    Args:
        train: the training settings.
        trained: name -> trained tensor.
        pretrained: name -> its base value, whole.
        rank: number of this process.
        adapted: whether an adapter trains.

    Raises:
        UserError: the loss needs a base value that has been freed.
    """
    base = BaseWeights(trained, pretrained, rank, exact=adapted) if train.loss in NEEDS_BASE else None
    return Objective(train, base)


def batch_loss(
    model: Any, batch: dict[str, Any], autocast: bool, objective: Objective | None = None
) -> tuple[Tensor, Any]:
    """Run the model on a micro-batch and return its part of the optimizer step's loss.

    Args:
        model: the model, or the engine around it.
        batch: from training_batch.
        autocast: compute products in bfloat16.
        objective: what is minimised; None for cross-entropy.

    Returns:
        (loss, the model's outputs).
    """
    targets, weights, base = batch["targets"], batch["weights"], None
    chosen = weights > 0
    if objective is not None and objective.base is not None:
        with objective.base.in_place(model):
            base = _outputs(model, batch, autocast).logits[chosen].float()
    outputs = _outputs(model, batch, autocast)
    logits = outputs.logits[chosen].float()
    if objective is None:
        losses = cross_entropy(logits, targets[chosen])
    else:
        losses = token_losses(objective.train, logits, targets[chosen], base, objective.tau)
    return (losses * weights[chosen]).sum(), outputs


def _outputs(model: Any, batch: dict[str, Any], autocast: bool) -> Any:
    """Run the model on a micro-batch."""
    inputs = {key: value for key, value in batch.items() if key not in ("start", "columns", "targets", "weights")}
    columns = batch["columns"]
    with torch.autocast(columns.device.type, torch.bfloat16, enabled=autocast):
        # The system prompt comes before the image, so one forward and backward pass over it serves the whole batch.
        shared = batch["start"].shape[1] > 0
        cache = start_cache(model, batch["start"], len(batch["targets"])) if shared else None
        return model(**inputs, past_key_values=cache, use_cache=shared, logits_to_keep=columns)


@torch.no_grad()
def sample_losses(model: Any, batch: dict[str, Any], autocast: bool) -> list[float]:
    """Return the mean cross-entropy of the supervised tokens of each sample of a micro-batch.

    Samples of weight 0, which fill a batch, are left out.
    """
    logits, counted = _outputs(model, batch, autocast).logits, batch["weights"] > 0
    rows = zip(logits, batch["targets"], counted, strict=True)
    return [
        cross_entropy(row[chosen].float(), targets[chosen]).mean().item()
        for row, targets, chosen in rows if chosen.any()
    ]
