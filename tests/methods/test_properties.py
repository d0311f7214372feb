"""Properties that hold for any tensor, and the decided edge cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from methods import ops
from methods.dare import Dare, DareParams
from methods.half_ft import HalfFT, HalfFTParams
from methods.registry import build
from methods.tailor import Tailor, TailorParams
from tests.methods import toy
from tests.methods.checks import FixedInputs, check_draw, original, random_weights

SIZES = st.integers(1, 40)
VALUES = st.floats(-1e4, 1e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-4)
TENSORS = arrays(np.float32, SIZES, elements=VALUES).map(torch.from_numpy)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def moments(values: torch.Tensor) -> torch.Tensor:
    return ops.moments(ops.abs_sums(values))


def full_mask(gradient: torch.Tensor, pretrained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Eq. 7's and Eq. 8's mask."""
    raw = ops.importance_mask(
        ops.rank(gradient, moments(gradient)), ops.rank(pretrained, moments(pretrained))
    )
    return raw, ops.rescale(raw, ops.mask_mean(ops.mask_sums(raw)))


@pytest.mark.slow
@QUICK
@given(st.data())
def test_mask_is_zero_or_in_the_unit_interval(data):
    gradient = data.draw(TENSORS)
    pretrained = data.draw(arrays(np.float32, len(gradient), elements=VALUES).map(torch.from_numpy))
    raw, mask = full_mask(gradient, pretrained)
    assert torch.isfinite(mask).all()
    assert (((mask > 0) & (mask <= 1)) | (mask == 0)).all()
    assert ((raw == 0) | ((raw >= 0.5) & (raw <= 1))).all()
    if mask.any():
        assert mask.max() > 0.999  # the largest selected element is at least the mean, so it is cut at 1
    blended = ops.blend(pretrained, pretrained + 1, mask)
    assert torch.equal(blended[mask == 0], pretrained[mask == 0])
    assert torch.equal(blended[mask == 1], (pretrained + 1)[mask == 1])


@QUICK
@given(TENSORS, st.integers(-40, 40))
def test_importance_does_not_depend_on_the_gradient_scale(gradient, exponent):
    scaled = gradient.double() * 2.0**exponent
    expected = ops.rank(gradient.double(), moments(gradient.double()))
    torch.testing.assert_close(ops.rank(scaled, moments(scaled)), expected, rtol=0, atol=1e-9)


@QUICK
@given(TENSORS)
def test_importance_is_within_bounds_and_ordered_by_magnitude(values):
    importance = ops.rank(values, moments(values))
    assert torch.isfinite(importance).all() and (importance >= 0).all() and (importance <= 1).all()
    order = values.abs().argsort()
    assert (importance[order].diff() >= -1e-6).all()


@pytest.mark.parametrize("size", [2, 1000, 3 * ops.CHUNK + 1])
@pytest.mark.parametrize("value", [0.1, 1.0, -1 / 3, 3e-30, 2e15])
def test_a_constant_tensor_ranks_one_half(size, value):
    constant = torch.full((size,), value)
    assert (ops.rank(constant, moments(constant)) == 0.5).all()


def test_sums_in_chunks_equal_numpy():
    values = torch.randn(2 * ops.CHUNK + 7, generator=torch.Generator().manual_seed(0))
    exact = values.double().numpy()
    expected = [np.abs(exact).sum(), (exact**2).sum(), len(exact)]
    np.testing.assert_allclose(ops.abs_sums(values).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(ops.mask_sums(values.abs())[0], expected[0], rtol=1e-12)
    assert ops.abs_sums(values[:0]).tolist() == [0, 0, 0] and ops.mask_sums(values[:0]).tolist() == [0, 0]


def test_edge_tensors_are_decided():
    noise = torch.randn(50, generator=torch.Generator().manual_seed(1))
    zeros, ones, single = torch.zeros(50), torch.ones(50), torch.tensor([3.0])
    assert not full_mask(zeros, noise)[1].any(), "no gradient: everything returns to w*"
    assert not full_mask(zeros, zeros)[1].any()
    assert (full_mask(noise, zeros)[1] == 1).all(), "w* = 0: every element with a gradient is free"
    assert not full_mask(single, single)[1].any() and not full_mask(ones, ones)[1].any(), "a tie stays frozen"
    above = full_mask(noise, ones)[1] > 0
    assert torch.equal(above, noise.abs() > noise.abs().mean()), "constant w*: above-average gradients"
    huge = torch.tensor([1e30, 1e-30, 0.0, -1e30])
    assert torch.isfinite(full_mask(huge, noise[:4])[1]).all()


def test_a_diverged_gradient_stays_visible():
    broken = torch.tensor([1.0, float("nan"), 2.0])
    assert torch.isnan(ops.rank(broken, moments(broken))).all()


def test_mask_statistics_on_gaussian_tensors():
    """About half of the elements are selected and almost half of these are exactly 1."""
    source = torch.Generator().manual_seed(2)
    pretrained, gradient = (torch.randn(200_000, generator=source) for _ in range(2))
    raw, mask = full_mask(gradient, pretrained)
    chosen = mask[mask > 0]
    assert 0.49 < len(chosen) / len(mask) < 0.53
    assert 0.59 < raw[raw > 0].mean() < 0.63
    assert 0.40 < (chosen == 1).float().mean() < 0.50
    assert chosen.min() > 0.80 and 0.87 < chosen[chosen < 1].median() < 0.93


@QUICK
@given(st.integers(1, 12), st.integers(0, 2**31))
def test_half_ft_counts(layers, seed):
    check_draw(original("half_ft"), layers, seed)


@QUICK
@given(st.integers(1, 12), st.integers(0, 2**31), st.integers(0, 10_000))
def test_half_ft_counts_at_every_step(layers, seed, step):
    check_draw(original("half_ft"), layers, seed, step)


@QUICK
@given(st.data(), st.sampled_from(["soft", "hard"]))
def test_masks_of_a_scaled_gradient_are_the_same(data, kind):
    """SPIDER's weights do not depend on the gradient's scale, whatever it accumulates."""
    gradient = data.draw(TENSORS).double()
    pretrained = data.draw(arrays(np.float32, len(gradient), elements=VALUES).map(torch.from_numpy)).double()

    def made(values: torch.Tensor) -> torch.Tensor:
        special, generic = (ops.rank(x, moments(x)) for x in (values, pretrained))
        return (ops.importance_mask if kind == "soft" else ops.selection)(special, generic)

    mask, scaled = made(gradient), made(gradient * 1024)
    ties = (ops.rank(gradient, moments(gradient)) - ops.rank(pretrained, moments(pretrained))).abs() < 1e-9
    torch.testing.assert_close(scaled[~ties], mask[~ties], rtol=0, atol=1e-9)
    if kind == "hard":
        assert ((mask == 0) | (mask == 1)).all()
        moved = pretrained / 3 + 1
        assert torch.equal(ops.blend(pretrained, moved, mask), torch.where(mask == 1, moved, pretrained)), (
            "not bitwise"
        )


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_half_ft_restores_frozen_tensors_bit_for_bit(decay):
    method = HalfFT(HalfFTParams(), seed=1)
    run = toy.train(method, steps=5, decay=decay, dtype=torch.float32)
    for name, weight in run.weights.items():
        same = weight.tobytes() == run.pretrained[name].tobytes()
        assert same == (name in method.frozen or (name == "unused" and decay == 0)), name
        if name in method.frozen:
            assert not run.moments[name].any(), f"Adam saw a gradient of {name}"
    assert not any("projector" in name for name in method.frozen)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_dare_is_unbiased(keep):
    pretrained, finetuned = random_weights(4, {"w": (30, 20)})
    draws = [Dare(DareParams(keep=keep), seed).finish(finetuned, pretrained)["w"] for seed in range(400)]
    change = (finetuned["w"] - pretrained["w"]).abs()
    error = (torch.stack(draws).mean(0) - finetuned["w"]).abs()
    # The deviation of one draw, of whose 400 the mean has a twentieth.
    assert (error <= 5.5 * change * ((1 - keep) / keep) ** 0.5 / 20 + 1e-6).all()


def test_dare_keeping_everything_is_full_fine_tuning():
    pretrained, finetuned = random_weights(5, {"a": (20,), "b": (3, 4)})
    result = Dare(DareParams(keep=1.0), 0).finish(finetuned, pretrained)
    torch.testing.assert_close(result, finetuned, rtol=1e-6, atol=1e-7)


def test_dare_and_tailor_return_float32_for_low_precision_weights():
    pretrained, finetuned = random_weights(6, {"layers.0.mlp.up_proj.weight": (8, 6)})
    low = {name: value.bfloat16() for name, value in finetuned.items()}
    calibration = FixedInputs([list(low)], {name: 6 for name in low})
    for result in (
        Dare(DareParams(), 0).finish(low, pretrained),
        Tailor(TailorParams(), 0).finish(low, pretrained, calibration),
    ):
        assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in result.values())


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_tailor_at_both_ends(keep):
    name = "layers.0.mlp.up_proj.weight"
    pretrained, finetuned = random_weights(7, {name: (8, 9)})
    calibration = FixedInputs([[name]], {name: 9})
    result = Tailor(TailorParams(keep=keep, block=4), 0).finish(finetuned, pretrained, calibration)[name]
    torch.testing.assert_close(result, (finetuned if keep else pretrained)[name], rtol=0, atol=1e-6)


def test_tailor_without_a_change_returns_the_weights():
    name = "layers.0.mlp.up_proj.weight"
    pretrained, _ = random_weights(8, {name: (8, 9)})
    calibration = FixedInputs([[name]], {name: 9})
    result = Tailor(TailorParams(), 0).finish(pretrained, pretrained, calibration)
    assert torch.equal(result[name], pretrained[name])


@pytest.mark.slow
@settings(QUICK, max_examples=15)
@given(st.integers(0, 2**31), st.sampled_from([(0.1, 0.99), (0.5, 0.9)]))
def test_tailor_compensation_helps_and_the_released_sign_does_not(seed, case):
    """Distance of a layer's outputs from the fine-tuned ones: subtracting < none < w*, and adding > none."""
    source, (keep, gain) = torch.Generator().manual_seed(seed), case
    name = "layers.0.mlp.up_proj.weight"
    x = torch.randn(512, 96, generator=source) @ torch.randn(96, 96, generator=source)
    pretrained = {name: torch.randn(32, 96, generator=source)}
    finetuned = {name: pretrained[name] + 0.1 * torch.randn(32, 96, generator=source)}
    calibration = FixedInputs([[name]], {})
    calibration.gram = lambda weights, names: {name: 2 * x.T @ x / len(x)}

    def error(weight: torch.Tensor) -> float:
        return ((weight - finetuned[name]) @ x.T).square().sum().item()

    errors = {}
    for method in ("tailor", "tailor_no_compensation", "tailor_official"):
        result = build(method, {"keep": keep}, 0).finish(finetuned, pretrained, calibration)
        errors[method] = error(result[name])
    # The official scores at the subtracting sign: the harm is the sign's, not the fusion's.
    mended = build("tailor_official", {"keep": keep, "compensation": "subtract"}, 0)
    errors["mended"] = error(mended.finish(finetuned, pretrained, calibration)[name])
    assert errors["tailor"] < gain * errors["tailor_no_compensation"] < error(pretrained[name])
    assert errors["tailor_official"] > 1.3 * errors["tailor_no_compensation"]
    assert errors["mended"] < errors["tailor_no_compensation"]


def test_drop_only_shrinks_the_change_and_trim_keeps_its_largest_part():
    pretrained, finetuned = random_weights(4, {"w": (30, 20)})
    change = finetuned["w"] - pretrained["w"]
    draws = [build("dare_drop_only", {}, seed).finish(finetuned, pretrained)["w"] for seed in range(300)]
    error = (torch.stack(draws).mean(0) - pretrained["w"] - 0.1 * change).abs()
    assert (error <= 5.5 * 0.3 / 300**0.5 * change.abs() + 1e-6).all(), "E[w] is not w* + 0.1 change"
    trimmed = build("dare_magnitude", {}, 0).finish(finetuned, pretrained)["w"]
    kept = trimmed != pretrained["w"]
    assert kept.sum() == 60 and torch.allclose(trimmed[kept], finetuned["w"][kept])
    assert change[kept].abs().min() > change[~kept].abs().max()


@QUICK
@given(st.floats(0, 1), st.floats(0, 1))
def test_wise_ft_is_a_line(one, other):
    pretrained, finetuned = random_weights(4, {"w": (5, 4)})
    low, high = sorted((one, other))
    near, far = (
        build("wise_ft", {"alpha": alpha}, 0).finish(finetuned, pretrained)["w"] for alpha in (low, high)
    )
    change = finetuned["w"] - pretrained["w"]
    torch.testing.assert_close(far - near, (high - low) * change, rtol=0, atol=2e-6)


def test_spider_posthoc_is_spider_codes_mask_under_gradient_descent():
    """With plain gradient descent the total change is a multiple of the summed gradients."""
    source = torch.Generator().manual_seed(5)
    pretrained = torch.randn(400, generator=source, dtype=torch.float64)
    gradients = [torch.randn(400, generator=source, dtype=torch.float64) for _ in range(6)]
    finetuned = pretrained - 0.01 * sum(gradients)
    _, mask = full_mask(sum(gradients), pretrained)
    result = build("spider_posthoc", {}, 0).finish({"w": finetuned}, {"w": pretrained})["w"]
    expected = finetuned * mask + pretrained * (1 - mask)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
