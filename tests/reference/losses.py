"""Losses of a token in float64 numpy, from the formulas in their papers; imports nothing of ours."""

from __future__ import annotations

import math

import numpy as np


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return log softmax of one row of logits."""
    return logits - (logits.max() + math.log(sum(math.exp(value - logits.max()) for value in logits)))


def cross_entropy(logits: np.ndarray, target: int) -> float:
    """-log p(target)."""
    return -log_probabilities(logits)[target]


def kl(base: np.ndarray, model: np.ndarray, temperature: float) -> float:
    """T^2 sum_v q_v log(q_v / p_v), q the base's and p the model's softened probabilities (LwF, ECCV 2016)."""
    q, p = log_probabilities(base / temperature), log_probabilities(model / temperature)
    return temperature**2 * sum(math.exp(a) * (a - b) for a, b in zip(q, p, strict=True))


def lwf(logits: np.ndarray, target: int, base: np.ndarray, weight: float, temperature: float) -> float:
    """l + lambda T^2 KL(base || model)."""
    return cross_entropy(logits, target) + weight * kl(base, logits, temperature)


def dft(logits: np.ndarray, target: int) -> float:
    """p l (arXiv 2508.05629)."""
    loss = cross_entropy(logits, target)
    return math.exp(-loss) * loss


def asft(logits: np.ndarray, target: int, base: np.ndarray, weight: float) -> float:
    """DFT plus alpha KL(base || model), as in the released code."""
    return dft(logits, target) + weight * kl(base, logits, 1.0)


def eaft(logits: np.ndarray, target: int, top: int, power: float) -> float:
    """(H_top / ln top)^power l, H_top of the renormalised probabilities of the `top` likeliest (arXiv 2601.02151)."""
    p = np.exp(np.sort(log_probabilities(logits))[::-1][:top])
    p = p / p.sum()
    entropy = -sum(value * math.log(value) for value in p)
    return (entropy / math.log(len(p))) ** power * cross_entropy(logits, target)


def talr(logits: np.ndarray, target: int, tau: float, floor: float) -> float:
    """max(p^(1 / tau), floor) l (arXiv 2509.20758)."""
    loss = cross_entropy(logits, target)
    return max(math.exp(-loss) ** (1 / tau), floor) * loss


def weight_of(name: str, logits: np.ndarray, target: int, **settings: float) -> float:
    """Return the factor of l that a loss treats as a constant: its gradient is this times that of cross-entropy."""
    return {"dft": dft, "eaft": eaft, "talr": talr}[name](logits, target, **settings) / cross_entropy(logits, target)
