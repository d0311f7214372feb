"""Model soups: after training, the average of Full FT runs that differ in the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from methods.posthoc import SeedMerge, check_members

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SoupParams:
    """alpha: 0 is the base model, 1 is the average."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must be between 0 and 1.")


@dataclass(frozen=True)
class SoupSeedsParams(SoupParams):
    """That of `SoupParams`, and members: number of Full FT runs, which differ in the seed."""

    members: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_members(self.members)


def average(pretrained: Tensor, tuned: Sequence[Tensor], alpha: float) -> Tensor:
    """Return one tensor of the soup, in float32 on the device of the first of `tuned`.

    The changes are averaged, not the weights: where no run changed a weight, the result is then w* bit for bit.
    """
    before = pretrained.float().to(tuned[0].device)
    return before + alpha * torch.stack([tensor.float().to(before.device) - before for tensor in tuned]).mean(0)


class Soup(SeedMerge):
    """Model soup: w = w* + alpha (mean_s w_ft(s) - w*) over the seeds s; w* at alpha 0, bit for bit.

    Granularity: whole model. Tensors: all trained. Acts: once, on finished Full FT checkpoints of `members` seeds.
    Extra memory: 0 |M| in training; at the end all of w*, the members' weights and the new weights.
    Source: Wortsman et al., ICML 2022: the uniform soup. mergekit's `linear` with equal weights is alpha 1.
    Disagreements: the paper's soups differ in hyper-parameters too, and its greedy soup adds runs while validation
    scores improve. Here every seed is in, and validation data choose nothing (docs/survey.md). alpha is WiSE-FT's,
    which the paper applies to soups as well.
    Variants: soup alone.
    """

    Params = SoupSeedsParams

    def combine(self, tuned: Sequence[dict[str, Tensor]], pretrained: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: average(pretrained[name], [one[name] for one in tuned], self.params.alpha) for name in tuned[0]
        }
