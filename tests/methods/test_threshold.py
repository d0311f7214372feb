"""The largest elements are exactly as many as asked for, the same ones for any cut, and need few reductions."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch._dynamo.utils import counters

from methods import fused, ops, threshold
from methods.registry import build
from methods.shards import Shards
from methods.threshold import largest
from tests.methods import parts
from tests.methods.test_fused import no_waits

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
# A few values, so that ties are common, and any others down to the smallest number there is.
ELEMENTS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3e38]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
TENSORS = arrays(np.float32, st.integers(1, 30), elements=ELEMENTS).map(torch.from_numpy)
ANY_TENSORS = arrays(np.float32, st.integers(1, 30), elements=ELEMENTS | st.floats(width=32)).map(torch.from_numpy)

SIZES = {"short": 70, "long": 2 * ops.ROW + 5, "longer": 70 * ops.ROW}


def first(values: torch.Tensor, count: int) -> torch.Tensor:
    """The rule in a line: sort, and of equal magnitudes the first is the largest."""
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.abs().sort(descending=True, stable=True).indices[:count]] = True
    return chosen


def masks(pieces: list, sizes: dict[str, int], count) -> dict[str, torch.Tensor]:
    """Return which elements are chosen of each whole tensor, put together from its parts."""

    def work(shards):
        found = largest(shards, lambda shard: shard.weight, count)
        return {shard.name: found[shard.name].mask(shard.weight) for shard in shards}

    results = parts.run(pieces, sizes, work)
    return {name: torch.cat([result[name] for result in results]) for name in sizes}


@pytest.mark.slow
@QUICK
@given(st.data())
def test_it_equals_sorting_however_the_tensors_are_cut(data):
    tensors = {name: data.draw(TENSORS) for name in "ab"}
    share = data.draw(st.integers(0, 4))
    processes = data.draw(st.integers(1, 3))
    ends = data.draw(st.lists(st.integers(0, 30), min_size=3, max_size=3))
    pieces = parts.cut(tensors, processes, lambda rank, size: ends[rank])
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    found = masks(pieces, sizes, lambda size: size * share // 4)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], first(tensor, sizes[name] * share // 4))


@QUICK
@given(st.data())
def test_quickselect_finds_the_limit_of_the_bisection(data):
    """Whatever the values, NaN and infinity among them."""
    tensors = {name: data.draw(ANY_TENSORS) for name in "ab"}
    share = data.draw(st.integers(0, 4))
    pieces = parts.cut(tensors, 1, lambda rank, size: size)
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}

    def work(shards):
        wanted = torch.tensor([size * share // 4 for size in sizes.values()], dtype=torch.float64)
        bisected = threshold._bisect(shards, lambda shard: shard.weight, wanted)
        return bisected, {s.name: threshold._quickselect(s.weight, s.numel * share // 4) for s in shards}

    [(bisected, selected)] = parts.run(pieces, sizes, work)
    assert selected == bisected


@pytest.mark.parametrize("ends", [(12,), (0, 5, 12), (5, 5, 12), (3, 6, 9, 12)])
def test_ties_are_broken_by_position_across_processes(ends):
    """Of nine equal elements the first ones, wherever the cuts are; a constant tensor gives its first half."""
    values = torch.tensor([1.0, -1, 9, 1, 1, -1, 0, 1, -1, 1, 8, 1])
    pieces = parts.cut({"w": values, "same": torch.ones(12)}, len(ends), lambda rank, size: ends[rank])
    found = masks(pieces, {"w": 12, "same": 12}, lambda size: 6)
    assert found["w"].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 10]
    assert found["same"].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_checkpoint_in_16_bits_gives_exactly_half():
    """A matrix of bfloat16 has hundreds of elements of just the magnitude in the middle."""
    values = torch.randn(300, 400, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16().float().flatten()
    pieces = parts.cut({"w": values}, 3, lambda rank, size: (50_001, 70_000)[rank])
    found = masks(pieces, {"w": 120_000}, lambda size: size // 2)["w"]
    limit = values.abs()[found].min()
    assert (values.abs() == limit).sum() > 200 and (values.abs() > limit).sum() < 60_000
    assert found.sum() == 60_000 and torch.equal(found, first(values, 60_000))


@pytest.mark.parametrize(("share", "size", "frozen"), [
    (0.8, 100, 20), (0.9, 10, 1), (0.7, 10, 3), (0.5, 101, 50), (0.29, 100, 71), (1.0, 7, 0), (0.0, 7, 7),
])
def test_the_frozen_count_is_that_of_the_share_as_it_is_written(share, size, frozen):
    """In floating point 100 * (1 - 0.8) is less than 20."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(1))

    def trained(shards):
        method = build("spider_magnitude", {"share": share}, seed=0)
        method.start(shards)
        return sum(int(method.mask(shard).sum()) for shard in shards)

    for ends in ((size,), (size // 3, size)):
        counts = parts.run(parts.cut({"w": values}, len(ends), lambda rank, n, e=ends: e[rank]), {"w": size}, trained)
        assert sum(counts) == size - frozen


@pytest.mark.parametrize(("dtype", "rounds"), [(torch.float32, 32), (torch.float64, 64)])
def test_half_of_distinct_values_in_a_few_reductions(dtype, rounds, monkeypatch):
    monkeypatch.setattr(Shards, "whole", False)
    values = torch.randn(10_001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    reductions = []

    def work(shards):
        reduce = shards._reduce
        shards._reduce = lambda numbers: reductions.append(1) or reduce(numbers)
        return largest(shards, lambda shard: shard.weight, lambda size: size // 2)

    found = parts.run([{"w": (0, values), "v": (0, values * 3)}], {"w": 10_001, "v": 10_001}, work)[0]
    assert found["w"].mask(values).sum() == found["v"].mask(values * 3).sum() == 5000
    assert len(reductions) == rounds


def test_compiled_passes_choose_the_same(monkeypatch):
    monkeypatch.setattr(Shards, "whole", False)
    monkeypatch.setattr(fused, "devices", {"cpu"})
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(threshold, "_reached", fused.fused(threshold._reached.__wrapped__))
    torch.compiler.reset()
    counters.clear()
    tensors = {name: torch.randn(size, generator=torch.Generator().manual_seed(size)) for name, size in SIZES.items()}
    found = masks([{name: (0, tensor) for name, tensor in tensors.items()}], SIZES, lambda size: size // 3)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], first(tensor, SIZES[name] // 3))
    assert fused.devices, "compiling failed"
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_chooses_the_same():
    """And breaks ties as torch.topk there does, which the released code calls."""
    waited = ""
    source = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(size, generator=source).bfloat16().float() for name, size in SIZES.items()}
    for device in ("cpu", "cuda", "cuda"):  # compiled in the first run, in the second the host never waits
        cut = [{name: (0, tensor.to(device)) for name, tensor in tensors.items()}]
        with no_waits() if device == waited else contextlib.nullcontext():
            found = masks(cut, SIZES, lambda size: size // 3)
        waited = device
        for name, tensor in tensors.items():
            assert found[name].device.type == device
            assert torch.equal(found[name].cpu(), first(tensor, SIZES[name] // 3))
            if device == "cuda":
                topk = torch.zeros_like(found[name])
                topk[torch.topk(tensor.to(device).abs(), SIZES[name] // 3).indices] = True
                assert torch.equal(topk, found[name])
