"""Adapters in float64 numpy: what each adds to a weight, how it begins, and LoRASculpt's rules."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def lora(weight: Array, down: Array, up: Array, scale: float) -> Array:
    """W + scale B A (Hu et al., ICLR 2022)."""
    return weight + scale * up @ down


def dora(weight: Array, down: Array, up: Array, scale: float, lengths: Array) -> Array:
    """m (W + scale B A) / ||W + scale B A||, one norm per output (Liu et al., ICML 2024)."""
    whole = weight + scale * up @ down
    return lengths[:, None] * whole / np.linalg.norm(whole, axis=1, keepdims=True)


def principal(weight: Array, rank: int) -> Array:
    """The part of W that PiSSA trains: its largest singular triples."""
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def minor(weight: Array, rank: int) -> Array:
    """The part of W that MiLoRA trains: its smallest singular triples."""
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    return (u[:, -rank:] * s[-rank:]) @ v[-rank:]


def qr(weight: Array, rank: int) -> Array:
    """The part of W that OLoRA trains, before its scale."""
    q, r = np.linalg.qr(weight)
    return q[:, :rank] @ r[:rank]


def moments(samples: list[Array]) -> Array:
    """Mean over samples of X^T X, X divided by |max X| (CorDA's and LoRA-Null's released code)."""
    total = np.zeros((samples[0].shape[1],) * 2)
    for sample in samples:
        scaled = sample / abs(sample.max())
        total += scaled.T @ scaled
    return total / len(samples)


def corda(weight: Array, covariance: Array, rank: int) -> Array:
    """The part of W that CorDA trains to preserve knowledge: the smallest triples of W C, times C^-1."""
    damping = 0.01
    while True:
        damped = covariance + damping * np.diag(covariance).mean() * np.eye(len(covariance))
        inverse = np.linalg.inv(damped)
        if np.linalg.norm(damped @ inverse - np.eye(len(covariance))) < 0.05:
            break
        damping *= 2
    return minor(weight @ damped, rank) @ inverse


def lora_null(weight: Array, covariance: Array, rank: int) -> Array:
    """The part of W that LoRA-Null trains: W on the directions in which its inputs vary least."""
    _, _, v = np.linalg.svd(covariance)
    return weight @ v[-rank:].T @ v[-rank:]


def oplora(weight: Array, down: Array, up: Array, scale: float, k: int) -> Array:
    """W + scale (I - U_k U_k^T) B A (I - V_k V_k^T) (AAAI 2026)."""
    u, _, v = np.linalg.svd(weight, full_matrices=False)
    left, right = np.eye(len(u)) - u[:, :k] @ u[:, :k].T, np.eye(v.shape[1]) - v[:k].T @ v[:k]
    return weight + scale * left @ up @ down @ right


def vera(weight: Array, down: Array, up: Array, d: Array, b: Array) -> Array:
    """W + diag(b) B diag(d) A, with the first rows and columns of the shared B and A (Kopiczko et al., ICLR 2024)."""
    out, inputs = weight.shape
    return weight + np.diag(b) @ up[:out] @ np.diag(d) @ down[:, :inputs]


def rotation(numbers: Array, size: int) -> Array:
    """(I + Q) (I - Q)^-1 of the skew-symmetric Q whose upper triangle, row by row, holds the numbers."""
    skew = np.zeros((size, size))
    skew[np.triu_indices(size, 1)] = numbers
    skew = skew - skew.T
    return (np.eye(size) + skew) @ np.linalg.inv(np.eye(size) - skew)


def oft(weight: Array, numbers: Array, size: int) -> Array:
    """W blockdiag(R_1, ..., R_k) (Qiu et al., NeurIPS 2023)."""
    whole = np.zeros((weight.shape[1],) * 2)
    for i, row in enumerate(numbers):
        whole[i * size : (i + 1) * size, i * size : (i + 1) * size] = rotation(row, size)
    return weight @ whole


def osf(weight: Array, kept: int, low: tuple[Array, Array, Array]) -> Array:
    """U_high S_high V_high^T + U_low S_low V_low^T (Nayak et al., 2025)."""
    u, s, v = low
    return principal(weight, kept) + (u * s) @ v


def osf_gradients(weight: Array, kept: int, left: Array, right: Array) -> tuple[Array, Array]:
    """dU and dV without what lies in the kept directions."""
    u, _, v = np.linalg.svd(weight, full_matrices=False)
    u, v = u[:, :kept], v[:kept]
    return left - u @ (u.T @ left), right - (right @ v.T) @ v


def importance(weight: Array, omega: float) -> Array:
    """LoRASculpt's M = tanh(omega |1 / log(|W| / ||W||_F + 1e-15)|)."""
    return np.tanh(omega * np.abs(1 / np.log(np.abs(weight) / np.linalg.norm(weight) + 1e-15)))


def regulariser(weight: Array, down: Array, up: Array, omega: float) -> float:
    """||M * (B A)||_F of one layer (released code, comput_custom_reg)."""
    return float(np.linalg.norm(importance(weight, omega) * (up @ down)))


def regulariser_gradients(weight: Array, down: Array, up: Array, omega: float) -> tuple[Array, Array]:
    """Its gradients by A and B; 0 where it is 0."""
    mask = importance(weight, omega)
    value = np.linalg.norm(mask * (up @ down))
    if value == 0:
        return np.zeros_like(down), np.zeros_like(up)
    outer = mask**2 * (up @ down) / value
    return up.T @ outer, outer @ down.T


def largest(values: Array, share: float) -> Array:
    """Mask of the int(share n) largest magnitudes; of equal ones, the first."""
    order = np.argsort(-np.abs(values).ravel(), kind="stable")[: int(values.size * share)]
    mask = np.zeros(values.size, dtype=bool)
    mask[order] = True
    return mask.reshape(values.shape)


def houlsby(y: Array, down: Array, down_bias: Array, up: Array, up_bias: Array) -> Array:
    """Return a sublayer's output with a bottleneck behind it: y + U gelu(D y + d) + u, gelu(z) = z Phi(z)."""
    z = y @ down.T + down_bias
    normal = np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))
    return y + (z * normal(z)) @ up.T + up_bias
