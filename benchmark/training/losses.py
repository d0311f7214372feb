"""Losses of single tokens, as functions of logits, target tokens and the base model's logits.

In all of them l = -log p(target) is the cross-entropy of a token, and sg stops the gradient. A token counts as in
cross-entropy: `benchmark.training.objective` multiplies its loss by the same weight, and sums.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.spec import TrainSpec

SMALLEST_TAU = 1e-6


def token_losses(
    train: TrainSpec, logits: Tensor, targets: Tensor, base: Tensor | None = None, tau: float | None = None
) -> Tensor:
    """Return the loss of each token.

    Args:
        train: names the loss and its settings.
        logits: (tokens, vocabulary), float32, with gradients.
        targets: (tokens,) the next tokens.
        base: the base model's logits at the same positions, for "lwf" and "asft".
        tau: temperature of the optimizer step, for "talr"; see `temperature`.

    Returns:
        (tokens,) losses.
    """
    losses = cross_entropy(logits, targets)
    if train.loss == "lwf":
        assert base is not None
        return losses + train.lwf_weight * kl_from_base(logits, base, train.lwf_temperature)
    if train.loss == "dft":
        return dft(losses)
    if train.loss == "asft":
        assert base is not None
        return dft(losses) + train.asft_weight * kl_from_base(logits, base)
    if train.loss == "eaft":
        return losses * eaft_weights(logits, train.eaft_top, train.eaft_power)
    if train.loss == "talr":
        assert tau is not None
        return losses * talr_weights(losses, tau, train.talr_floor)
    return losses


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return l = -log p(target) of each token."""
    return F.cross_entropy(logits, targets, reduction="none")


def kl_from_base(logits: Tensor, base: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(base || model) of each token, with both distributions softened by the temperature T.

    Li and Hoiem, Learning without Forgetting, ECCV 2016 (their cross-entropy with the base's softened output differs by
    a constant); T^2 keeps the size of the gradient (Hinton et al., arXiv 1503.02531).

    Args:
        logits: (tokens, vocabulary) of the model.
        base: of the base model.
        temperature: T.
    """
    model = F.log_softmax(logits / temperature, dim=-1)
    reference = F.log_softmax(base.detach().float() / temperature, dim=-1)
    return temperature**2 * (reference.exp() * (reference - model)).sum(dim=-1)


def dft(losses: Tensor) -> Tensor:
    """Return l sg(p): tokens that the model finds unlikely count less (Wu et al., arXiv 2508.05629)."""
    return losses * torch.exp(-losses.detach())


def eaft_weights(logits: Tensor, top: int, power: float) -> Tensor:
    """Return (H / log k)^power, H the entropy of the k most likely tokens' renormalised probabilities.

    A token that contradicts a sure prediction counts little (arXiv 2601.02151, Eq. 3; there k = 20, and the released
    code divides by 3.0 in place of log 20).

    Args:
        logits: (tokens, vocabulary).
        top: k; a smaller vocabulary counts whole.
        power: exponent.
    """
    count = min(top, logits.shape[-1])
    chosen = F.log_softmax(logits.detach().topk(count, dim=-1).values, dim=-1)
    entropy = -(chosen.exp() * chosen).sum(dim=-1)
    return (entropy.clamp(min=0) / math.log(count)) ** power


def talr_weights(losses: Tensor, tau: float, floor: float) -> Tensor:
    """Return max(sg(p)^(1 / tau), floor): hard tokens count less (Lin et al., arXiv 2509.20758).

    The closed form of a weighting that trades the weighted loss against the entropy of the weights.

    Args:
        losses: l, (tokens,).
        tau: see `temperature`.
        floor: least weight.
    """
    return torch.exp(-losses.detach() / tau).clamp(min=floor)


def temperature(means: list[float]) -> float:
    """Return tau of an optimizer step: the median over its samples of their mean token loss.

    Args:
        means: mean token loss of every sample of the batch, in any order.
    """
    ordered, middle = sorted(means), len(means) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return max(median, SMALLEST_TAU)
