"""TIES and DARE against mergekit's and MergeLM's arithmetic."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from methods.ops import drop_and_rescale
from methods.ties import TiesMerge, TiesParams
from tests.reference import dare, ties

RELEASED = json.loads((Path(__file__).parents[2] / "reference" / "merges.json").read_text())
SHAPES = {"a.weight": (24, 16), "b.weight": (40, 32), "c.bias": (33,)}
Arrays = dict[str, np.ndarray]


def inputs(seed: int, grid: bool, models: int = 3) -> tuple[Arrays, list[Arrays]]:
    """Return w* and tuned weights. On a grid, many changes are equal, cancel or are 0."""
    source = np.random.RandomState(seed)

    def draw(scale: float) -> Arrays:
        values = {name: source.standard_normal(shape) for name, shape in SHAPES.items()}
        rounded = {name: np.round(value * 4) / 4 if grid else value for name, value in values.items()}
        return {name: (value * scale).astype(np.float32) for name, value in rounded.items()}

    base = draw(1.0)
    changes = [draw(0.5) for _ in range(models)]
    return base, [{name: base[name] + change[name] for name in base} for change in changes]


def ours(params: TiesParams, base: Arrays, tuned: list[Arrays]) -> Arrays:
    def tensors(stage: str):
        for name in base:
            yield name, torch.from_numpy(base[name]), [torch.from_numpy(one[name]) for one in tuned]

    rule = TiesMerge(params, tensors, len(tuned))
    return {name: rule(name, weight, others).numpy() for name, weight, others in tensors("")}


def double(values: Arrays) -> Arrays:
    return {name: value.astype(np.float64) for name, value in values.items()}


def check(figures: str, values: Arrays, base: Arrays) -> None:
    """Compare with every figure of a run of the released code."""
    for name, expected in RELEASED[figures]["tensors"].items():
        flat = values[name].astype(np.float64).ravel()
        at = np.linspace(0, flat.size - 1, 6).astype(int)
        np.testing.assert_allclose(flat[at], expected["values"], rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(flat.sum(), expected["sum"], rtol=0, atol=1e-6 * flat.size)
        np.testing.assert_allclose(np.abs(flat).sum(), expected["absolute_sum"], rtol=0, atol=1e-6 * flat.size)
        bits = (values[name] != base[name]).ravel()
        assert bits.sum() == expected["selected"], name
        assert hashlib.sha256(np.packbits(bits).tobytes()).hexdigest() == expected["mask_sha256"], name


@pytest.mark.parametrize("figures", ["released", "released_grid", "mergekit", "mergekit_grid"])
def test_ties_gives_the_numbers_of_the_released_code(figures):
    """MergeLM's ties_merging has the arithmetic of TIES' own code; mergekit trims per tensor."""
    entry = RELEASED[figures]
    base, tuned = inputs(entry["seed"], entry["grid"])
    params = TiesParams(keep=entry["keep"], scale=0.7, variant=figures.removesuffix("_grid"))
    check(figures, ours(params, base, tuned), base)


@pytest.mark.parametrize("variant", ["released", "mergekit"])
@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize(("models", "keep", "scale"), [(2, 0.2, 1.0), (4, 0.05, 0.3), (3, 1.0, 1.0), (2, 0.001, 1.0)])
def test_ties_equals_its_reference(variant, grid, models, keep, scale):
    base, tuned = inputs(models, grid, models)
    expected = getattr(ties, variant)(double(base), [double(one) for one in tuned], keep, scale)
    values = ours(TiesParams(keep, scale, variant), base, tuned)
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6, err_msg=name)
        assert ((value != base[name]) == (np.abs(expected[name] - base[name]) > 1e-7)).all()


def test_the_variants_differ():
    base, tuned = inputs(1, True)
    released, mergekit = (ours(TiesParams(variant=name), base, tuned) for name in ("released", "mergekit"))
    assert any((released[name] != mergekit[name]).any() for name in base)


def test_changes_that_cancel_get_the_sign_of_the_majority():
    """Two models, opposite changes: the elected sign is the one that most other elements have."""
    base = {"a": np.zeros(4, np.float32)}
    tuned = [{"a": np.array([1, -1, -2, -2], np.float32)}, {"a": np.array([-1, 1, -2, -2], np.float32)}]
    assert ours(TiesParams(keep=1.0), base, tuned)["a"].tolist() == [-1, -1, -2, -2]
    assert ours(TiesParams(keep=1.0, variant="mergekit"), base, tuned)["a"].tolist() == [1, 1, -2, -2]
    balanced = [{"a": one["a"] * np.array([1, 1, 1, -1], np.float32)} for one in tuned]
    assert ours(TiesParams(keep=1.0), base, balanced)["a"].tolist() == [0, 0, -2, 2]


@pytest.mark.parametrize("figures", ["dare_linear_l1", "dare_linear_plain"])
def test_dare_and_mergekits_dare(figures):
    """Without a rescale they are equal. With it, mergekit restores the change's L1 norm, and DARE divides by keep.

    MergeLM's DARE is compared in tests/methods/test_released.py.
    """
    entry = RELEASED[figures]
    base, (tuned,) = inputs(entry["seed"], entry["grid"], 1)
    torch.manual_seed(3)
    kept = {name: torch.bernoulli(torch.full(shape, entry["keep"])).bool() for name, shape in SHAPES.items()}
    rescale = figures.endswith("l1")
    theirs = {
        name: ties.dare_linear(double(base)[name], double(tuned)[name], kept[name].numpy(), rescale) for name in base
    }
    check(figures, {name: value.astype(np.float32) for name, value in theirs.items()}, base)
    for name, mask in kept.items():
        before, after = torch.from_numpy(base[name]), torch.from_numpy(tuned[name])
        mine = drop_and_rescale(before, after, mask, entry["keep"] if rescale else 1.0).numpy()
        if not rescale:
            np.testing.assert_allclose(mine, theirs[name], rtol=0, atol=1e-6)
            continue
        np.testing.assert_allclose(mine, dare.merge(base[name], tuned[name], mask.numpy(), entry["keep"]), atol=1e-5)
        ratio = (mine - base[name])[mask.numpy()] / (theirs[name] - base[name])[mask.numpy()]
        change = np.abs(tuned[name] - base[name])
        kept_norm = change[mask.numpy()].sum() / change.sum()
        np.testing.assert_allclose(ratio, kept_norm / entry["keep"], rtol=1e-3)  # on average 1
