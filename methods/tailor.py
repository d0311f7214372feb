"""Model Tailor: after training, keep a tenth of the change and compensate the kept weights for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from methods.base import Method
from methods.blocks import split_layer
from methods.ops import exact, row_scores

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.training.calibration import Calibration


@dataclass(frozen=True)
class TailorParams:
    """keep: share of elements that keep the fine-tuned value; salience, sensitivity: weights of the two scores; block:
    columns that share one threshold; percdamp: damping as a share of the Hessian's mean diagonal; samples: calibration
    samples from the target's training data; compensation: how a reset column's error is applied to the columns ahead
    (optimal brain surgery subtracts it); sensitive: whether the sensitivity is that of the weight or of its change;
    projector: whether its linear weights return to w* or stay fine-tuned; count: how many elements a block keeps:
    "rounded" keeps round(keep n); "released" keeps those that score above the element at place int((1 - keep) n), as
    the released code does: n - int((1 - keep) n) - 1 elements, or fewer with ties."""

    keep: float = 0.1
    salience: float = 0.5
    sensitivity: float = 0.5
    block: int = 128
    percdamp: float = 0.01
    samples: int = 128
    compensation: Literal["subtract", "add", "none"] = "subtract"
    sensitive: Literal["weight", "change"] = "weight"
    projector: Literal["reset", "keep"] = "reset"
    count: Literal["rounded", "released"] = "rounded"

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise ValueError(f"keep={self.keep} must be between 0 and 1.")
        if self.block < 1 or self.samples < 1 or not self.percdamp > 0:
            raise ValueError("block and samples must be at least 1 and percdamp above 0.")
        if self.salience < 0 or self.sensitivity < 0 or self.salience + self.sensitivity == 0:
            raise ValueError(
                f"salience={self.salience} and sensitivity={self.sensitivity} must be at least 0, and not both 0."
            )

    def kept(self, size: int) -> int:
        """Return how many of a block's `size` elements keep the fine-tuned value (at most, if count=released)."""
        keep = exact(self.keep)
        if self.count == "released":
            return max(0, size - int(size * (1 - keep)) - 1)
        return round(keep * size)


SIGN = {"subtract": -1.0, "add": 1.0, "none": 0.0}


def patch(pretrained: Tensor, finetuned: Tensor, gram: Tensor, params: TailorParams) -> Tensor:
    """Tailor one linear layer by optimal brain surgery towards the pretrained weights.

    Args:
        pretrained, finetuned: (d_out, d_in).
        gram: (d_in, d_in), 2 X^T X / n of the layer's inputs in n samples, on the device that computes. Its scale
            cancels unless an input is never active: that input's diagonal becomes 1, which also raises the damping.
        params: see `TailorParams`.

    Returns:
        float32, (d_out, d_in), on the device of `finetuned`.
    """
    hessian = gram.to(torch.float64, copy=True)
    pretrained, weight = pretrained.to(hessian), finetuned.to(hessian, copy=True)
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1  # an input that is never active
    diagonal += params.percdamp * diagonal.mean()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    salience = (weight - pretrained).abs()
    sign = SIGN[params.compensation]
    for first in range(0, weight.shape[1], params.block):
        columns = slice(first, first + params.block)
        local, target, root = weight[:, columns].clone(), pretrained[:, columns], factor[columns, columns]
        score = params.salience * row_scores(salience[:, columns])
        sensitive = local - target if params.sensitive == "change" else local
        score += params.sensitivity * row_scores(sensitive.square() / root.diagonal().square())
        kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        ranked, order = score.flatten().sort(descending=True, stable=True)
        count = params.kept(score.numel())
        kept[order[:count]] = True
        kept = kept.view_as(score)
        if params.count == "released":
            kept &= score > ranked[count]
        errors = torch.zeros_like(local)
        for i in range(local.shape[1]):
            result = torch.where(kept[:, i], local[:, i], target[:, i])
            errors[:, i] = (local[:, i] - result) / root[i, i]
            local[:, i + 1 :] += sign * errors[:, i : i + 1] * root[i, i + 1 :]
            local[:, i] = result
        weight[:, columns] = local
        weight[:, columns.stop :] += sign * (errors @ factor[columns, columns.stop :])
    return weight.float().to(finetuned.device)


class Tailor(Method):
    """Model Tailor: per linear layer, score = .5 z(|w_ft - w*|) + .5 z(w^2 / U_ii^2) with U^T U = H^-1 and
    H = 2 X^T X + damping; the top tenth of each 128-column block keeps w_ft, the rest becomes w*, and
    w_j <- w_j - (w_i - w*_i) U_ij / U_ii compensates the columns still to come.

    Granularity: element; z-scores per row within a block (unbiased), threshold per block.
    Tensors: linear weights of the tuned decoder layers, layer by layer with the earlier ones patched;
    linear weights of the projector return to w*; norms and biases stay fine-tuned.
    Acts: once, on a finished Full FT checkpoint, in float64 inside.
    Extra memory: 0 |M| in training. At the end w*, w_ft and the new weights, and in float64 the d_in^2 Gram matrices of
    one layer with about four more of that size: 14 |M| where d_in is small, as Table 2 measures it.
    Source: Zhu et al., ICML 2024, and its released code; SPIDER's App. B gives 10 %.
    Disagreements: the released code adds the compensation (SparseGPT subtracts it), which is worse than no
    compensation. Its main script weighs the scores .8/.2, its second copy .5/.5. It calibrates on 128 batches with
    padding included and resets one more element per block.
    Variants: tailor_official: sign, weights (.8/.2) and count of the released main script, with our calibration.
    tailor_no_compensation: leaves the columns ahead alone. tailor_change_sensitivity: (w - w*)^2 / U_ii^2, the
    sensitivity of the change. tailor_keep_projector: the projector stays fine-tuned.
    Decided: a row whose scores are all equal in a block scores 0 there (the released code gets NaN and never resets
    it); without any change the result is w_ft = w*; of equal scores the first are kept, row by row, so position decides
    in a layer of one column (count=released: all are reset).
    """

    Params = TailorParams
    posthoc = True

    def finish(
        self, finetuned: dict[str, Tensor], pretrained: dict[str, Tensor], calibration: Calibration | None
    ) -> dict[str, Tensor]:
        assert calibration is not None
        weights = {name: tensor.float().clone() for name, tensor in finetuned.items()}
        for names in calibration.blocks:
            # All of a layer's inputs are measured before any of its weights is patched.
            grams = calibration.gram(weights, [name for name in names if split_layer(name)])
            for name in names:
                before = pretrained[name].to(weights[name].device)
                if name in grams:
                    weights[name] = patch(before, weights[name], grams[name], self.params)
                elif self.params.projector == "reset":
                    weights[name] = before.float().clone()
        return weights
