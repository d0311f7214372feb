"""Model Tailor for one linear layer, as optimal brain surgery column by column, float64 numpy.

No Cholesky factor here: when column i is decided, only columns i.. are free, and the surgeon's formulas use
the inverse Hessian of exactly these columns.
"""

from __future__ import annotations

import numpy as np


def z_rows(x: np.ndarray) -> np.ndarray:
    """z-score within each row, unbiased deviation; a single column gives no ranking."""
    if x.shape[1] == 1:
        return np.zeros_like(x)
    return (x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True)


def patch(
    pretrained: np.ndarray,
    finetuned: np.ndarray,
    gram: np.ndarray,
    keep: float,
    salience: float,
    sensitivity: float,
    block: int,
    percdamp: float,
    *,
    sign: float = -1.0,
    of_change: bool = False,
    one_more: bool = False,
) -> np.ndarray:
    """Keep the top `keep` of each block of columns, reset the rest to w*, compensate in the columns ahead.

    sign: of the compensation; optimal brain surgery subtracts, the released code adds. of_change: the sensitivity is of
    the change. one_more: the released threshold, which resets int((1 - keep) n) + 1 elements and all that tie with it.
    """
    w = finetuned.copy()
    columns = w.shape[1]
    h = gram.copy()
    h[np.diag_indices(columns)] = np.where(np.diag(gram) == 0, 1, np.diag(gram))
    h += percdamp * np.diag(h).mean() * np.eye(columns)
    inverse = [np.linalg.inv(h[i:, i:]) for i in range(columns)]
    change = np.abs(finetuned - pretrained)
    for first in range(0, columns, block):
        inside = list(range(first, min(first + block, columns)))
        curvature = np.array([inverse[i][0, 0] for i in inside])
        sensitive = w[:, inside] - pretrained[:, inside] if of_change else w[:, inside]
        score = salience * z_rows(change[:, inside]) + sensitivity * z_rows(sensitive**2 / curvature)
        ranked = np.argsort(-score.ravel(), kind="stable")
        count = score.size - int((1 - keep) * score.size) - 1 if one_more else round(keep * score.size)
        kept = np.zeros(score.size, bool)
        kept[ranked[:count]] = True
        kept = kept.reshape(score.shape)
        if one_more:
            kept = score > score.ravel()[ranked[count]]
        for position, i in enumerate(inside):
            value = np.where(kept[:, position], w[:, i], pretrained[:, i])
            error = w[:, i] - value
            w[:, i:] += sign * np.outer(error / inverse[i][0, 0], inverse[i][0])
            w[:, i] = value
    return w


def released(
    pretrained: np.ndarray, finetuned: np.ndarray, batches: list[np.ndarray], keep: float, block: int, percdamp: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The released main script's surgery in its own steps: a running mean over batches, then Cholesky factors.

    Args:
        batches: inputs of the layer, (sequences, tokens, d_in) each; inputs that are 0 everywhere are dead.

    Returns:
        The new weights, and which elements kept the fine-tuned value.
    """
    columns, seen = finetuned.shape[1], 0
    h = np.zeros((columns, columns))
    for batch in batches:
        x = batch.reshape(-1, columns)
        h *= seen / (seen + len(batch))
        seen += len(batch)
        h += 2 / seen * x.T @ x
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    h += percdamp * np.diag(h).mean() * np.eye(columns)
    factor = np.linalg.cholesky(np.linalg.inv(h)).T
    w, kept = finetuned.copy(), np.zeros(finetuned.shape, bool)
    change = np.abs(finetuned - pretrained)
    for first in range(0, columns, block):
        last = min(first + block, columns)
        here, errors, root = w[:, first:last].copy(), np.zeros((len(w), last - first)), factor[first:last, first:last]
        score = 0.8 * z_rows(change[:, first:last]) + 0.2 * z_rows(here**2 / np.diag(root) ** 2)
        reset = score <= np.sort(score, axis=None)[int(score.size * (1 - keep))]
        for i in range(last - first):
            value = np.where(reset[:, i], pretrained[:, first + i], here[:, i])
            errors[:, i] = (here[:, i] - value) / root[i, i]
            here[:, i:] += np.outer(errors[:, i], root[i, i:])
            w[:, first + i] = value
        w[:, last:] += errors @ factor[first:last, last:]
        kept[:, first:last] = ~reset
    return w, kept
