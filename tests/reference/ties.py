"""TIES (Yadav et al., 2023) as its released code and MergeLM have it, and as mergekit does, float64 numpy."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


def released(pretrained: Arrays, finetuned: list[Arrays], keep: float, scale: float) -> Arrays:
    """Trim over the whole model, elect signs with the majority's sign for zeros, average what agrees."""
    names = sorted(pretrained)
    base = np.concatenate([pretrained[name].ravel() for name in names])
    changes = np.stack([np.concatenate([one[name].ravel() for name in names]) - base for one in finetuned])
    k = int(round(base.size * (1 - keep), 6))
    if k:
        limits = np.sort(np.abs(changes), axis=1)[:, k - 1 : k]
        changes = changes * (np.abs(changes) >= limits)
    signs = np.sign(changes.sum(0))
    signs[signs == 0] = np.sign(signs.sum())
    agree = ((signs > 0) & (changes > 0)) | ((signs < 0) & (changes < 0))
    merged = base + scale * (changes * agree).sum(0) / np.maximum(agree.sum(0), 1)
    sizes = np.cumsum([pretrained[name].size for name in names])[:-1]
    return {
        name: part.reshape(pretrained[name].shape) for name, part in zip(names, np.split(merged, sizes), strict=True)
    }


def mergekit(pretrained: Arrays, finetuned: list[Arrays], keep: float, scale: float) -> Arrays:
    """Trim each tensor to its largest changes, take zero for positive, average what agrees."""
    result = {}
    for name, base in pretrained.items():
        changes = np.stack([one[name] - base for one in finetuned])
        for change in changes:
            flat = change.reshape(-1)
            count = max(1, int(round(keep * flat.size, 6)))
            flat[np.argsort(-np.abs(flat), kind="stable")[count:]] = 0
        sign = np.where(changes.sum(0) >= 0, 1, -1)
        agree = np.sign(changes) == sign
        divisor = agree.sum(0)
        result[name] = base + scale * (changes * agree).sum(0) / np.where(divisor == 0, 1, divisor)
    return result


def dare_linear(pretrained: np.ndarray, finetuned: np.ndarray, kept: np.ndarray, rescale: bool) -> np.ndarray:
    """mergekit's DARE of one model: what is kept is rescaled to the L1 norm of the whole change, not by 1 / keep."""
    change = finetuned - pretrained
    masked = change * kept
    factor = np.abs(change).sum() / np.abs(masked).sum() if rescale else 1.0
    return pretrained + masked * factor
