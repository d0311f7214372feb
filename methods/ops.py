"""Pure tensor mathematics of the methods: no names, no optimizer, no communication, never in place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

# Elements that a CPU converts to float64 at a time: a sum stays in cache and needs no second copy of a tensor.
CHUNK = 1 << 18
# Row length of a compiled sum. Rows of a fixed length fill a GPU, however long a tensor is.
ROW = 4096
# Below this relative variance a tensor counts as constant; float64 sums of a constant leave about 1e-15.
CONSTANT = 1e-12


def generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on (seed, name) only, so draws do not depend on tensor order.

    Args:
        seed: the run's seed.
        name: what is drawn, e.g. a tensor name.

    Returns:
        A seeded generator; the same stream on every device and in every process.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def exact(share: float) -> Fraction:
    """Return a share as exactly the decimal number that was written.

    In floating point 100 * (1 - 0.8) is a little less than 20 and 100 * 0.29 less than 29, so `int` would drop one.
    """
    return Fraction(str(share))


def at_least(values: Tensor, limit: Tensor, ties: Tensor) -> Tensor:
    """Choose all values above a limit and the first `ties` of those equal to it.

    Args:
        values: any shape; "first" is by position in the flattened tensor.
        limit: a single number.
        ties: how many values equal to the limit are chosen, a single number; 0 or less chooses none.

    Returns:
        bool, same shape.
    """
    tied = values == limit
    first = tied.flatten().cumsum(0, dtype=torch.int32) <= ties
    return (values > limit) | (tied & first.view_as(tied))


def first_largest(values: Tensor, count: int) -> Tensor:
    """Choose exactly the `count` largest values of an unsharded tensor; of equal ones, the first.

    Args:
        values: any shape.
        count: from 0 to all.

    Returns:
        bool, same shape.
    """
    flat = values.flatten()
    if count >= flat.numel():
        return torch.ones_like(values, dtype=torch.bool)
    limit = flat.kthvalue(flat.numel() - count).values  # `count` values exceed it, or fewer with ties
    return at_least(values, limit, count - (flat > limit).sum())


def _parts(values: Tensor) -> Sequence[Tensor]:
    """Cut a tensor into parts that are summed one by one, over the last dimension and then over the others.

    A CPU gets chunks. A GPU gets the whole tensor, because thousands of small kernels would cost more than a copy in
    float64. A compiled kernel gets rows and makes no copy; the zeros that fill the last row are never stored.
    """
    if torch.compiler.is_compiling():
        return [torch.nn.functional.pad(values, (0, -values.numel() % ROW)).view(-1, ROW)]
    return values.split(CHUNK) if values.device.type == "cpu" else [values]


def abs_sums(values: Tensor) -> Tensor:
    """Return [sum |x|, sum x^2, number of x] in float64, which give the mean and deviation of Eq. 2b.

    Args:
        values: 1-D, any length including 0 (a rank without a fragment adds zeros).

    Returns:
        float64, shape (3,).
    """
    parts = (part.double() for part in _parts(values))
    rows = [torch.stack([part.abs().sum(-1).sum(), part.square().sum(-1).sum()]) for part in parts]
    sums = torch.stack(rows).sum(0)
    return torch.cat([sums, sums.new_full((1,), values.numel())])


def moments(sums: Tensor) -> Tensor:
    """Turn sums over a whole tensor into the mean and deviation for `rank`, on the device, without a host wait.

    Args:
        sums: float64 (..., 3), `abs_sums` added up over the tensor's parts.

    Returns:
        float64 (..., 2): mean and unbiased standard deviation of |x|. Where z is undefined, values with which `rank`
        returns what it promises: (inf, 1) for an all-zero tensor, (mean, inf) for a constant |x| or a single element.
    """
    total, squares, count = sums.unbind(-1)
    mean = total / count
    variance = (squares - count * mean * mean) / (count - 1).clamp(min=1)
    # A diverged run (NaN) compares as false, so it stays NaN instead of turning into a constant.
    deviation = torch.where(variance <= CONSTANT * mean * mean, torch.inf, variance**0.5)
    zero = mean == 0
    return torch.stack([torch.where(zero, torch.inf, mean), torch.where(zero, 1.0, deviation)], -1)


def rank(values: Tensor, moments: Tensor) -> Tensor:
    """Return the importance of each element, Eqs. 2a-2c and 4: sigmoid((|x| - mean) / std).

    An all-zero tensor ranks 0 (no importance at all, as in the released code); a constant tensor and a
    single element rank 1/2 (no element matters more than another; the limit z = 0).

    Args:
        values: 1-D fragment of a tensor.
        moments: of the whole tensor, shape (2,).

    Returns:
        Same shape, in [0, 1].
    """
    return values.abs().sub_(moments[0]).div_(moments[1]).sigmoid_()


def whole_rank(values: Tensor) -> Tensor:
    """Return `rank` of an unsharded tensor of any shape."""
    return rank(values, moments(abs_sums(values.flatten())))


def selection(specialization: Tensor, generalization: Tensor) -> Tensor:
    """Return the hard mask of Eq. 5: 1 where G > I, else 0, in their dtype."""
    # As 0.0 / 1.0 in floating point: choosing by a bool tensor is ten times slower on a CPU.
    return torch.gt(specialization, generalization, out=torch.empty_like(specialization))


def importance_mask(specialization: Tensor, generalization: Tensor) -> Tensor:
    """Return the importance selection mask before the rescale, Eq. 7: G / (G + I) where G > I, else 0.

    Args:
        specialization: G, in [0, 1].
        generalization: I, same shape, in [0, 1].

    Returns:
        Same shape, 0 or in (0.5, 1].
    """
    selected = selection(specialization, generalization)
    total = (specialization + generalization).clamp_(min=torch.finfo(selected.dtype).tiny)
    return (specialization / total).mul_(selected)


def mask_sums(mask: Tensor) -> Tensor:
    """Return [sum M, number of M != 0] in float64, which give the mean of Eq. 8; shape (2,)."""
    parts = (part.double() for part in _parts(mask))
    return torch.stack([torch.stack([part.sum(-1).sum(), part.sign().sum(-1).sum()]) for part in parts]).sum(0)


def mask_mean(sums: Tensor) -> Tensor:
    """Return Mean(M[M != 0]) of Eq. 8, 1 where nothing is selected.

    Args:
        sums: (..., 2), `mask_sums` added up over the tensor's parts.

    Returns:
        float64 (...).
    """
    total, count = sums.unbind(-1)
    return torch.where(count == 0, 1.0, total / count)


def rescale(mask: Tensor, mean: Tensor) -> Tensor:
    """Divide a mask by the mean over its nonzero elements and clip it at 1, Eq. 8.

    Args:
        mask: from `importance_mask`.
        mean: `mask_mean` of the whole tensor, a single number.

    Returns:
        Same shape, 0 or in (0, 1].
    """
    return (mask / mean).clamp_(max=1.0)


def blend(pretrained: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Blend current and pretrained weights, Eq. 6: w M + w* (1 - M).

    torch.lerp is exact at both ends: M = 0 gives w* and M = 1 gives w, bit for bit.
    """
    return torch.lerp(pretrained, weight, mask)


def largest_changes(pretrained: Tensor, finetuned: Tensor, keep: float, count: str) -> Tensor:
    """Choose the largest changes of a tensor.

    Args:
        pretrained: w*.
        finetuned: w, same shape.
        keep: share of the elements to choose.
        count: "exact": all but int(n (1 - keep)) elements, of equal changes the first; "released": also leaves out
            every change that equals the largest one left out.

    Returns:
        bool, same shape.
    """
    change = (finetuned - pretrained).abs()
    dropped = int(change.numel() * (1 - exact(keep)))
    if count == "exact":
        return first_largest(change, change.numel() - dropped)
    limit = change.flatten().sort().values[dropped - 1] if dropped else -1.0
    return change > limit


def drop_and_rescale(pretrained: Tensor, finetuned: Tensor, kept: Tensor, keep: float) -> Tensor:
    """DARE: drop the change where `kept` is False and divide the rest by the kept share.

    Args:
        pretrained: w*, float32.
        finetuned: w, same shape.
        kept: bool, same shape.
        keep: what the kept change is divided by, in (0, 1].

    Returns:
        w* + kept * (w - w*) / keep; exactly w* where dropped.
    """
    return torch.where(kept, pretrained + (finetuned - pretrained) / keep, pretrained)


def row_scores(values: Tensor) -> Tensor:
    """Return the z-score of each element within its row (unbiased); a constant or one-element row gives 0."""
    centred = values - values.mean(1, keepdim=True)
    if values.shape[1] == 1:
        return torch.zeros_like(values)
    deviation = values.std(1, keepdim=True)
    constant = deviation <= CONSTANT**0.5 * values.abs().amax(1, keepdim=True)
    return torch.where(constant, 0.0, centred / deviation.masked_fill(constant, 1.0))
