"""The n-th largest magnitude is exact for any values and any cut, and needs few reductions."""

from __future__ import annotations

import contextlib
import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch._dynamo.utils import counters

from methods import fused, ops, threshold
from methods.threshold import largest
from tests.methods import parts
from tests.methods.test_fused import no_waits

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
# A few values, so that ties are common, and any others down to the smallest number there is.
ELEMENTS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3e38]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
TENSORS = arrays(np.float32, st.integers(1, 30), elements=ELEMENTS).map(torch.from_numpy)

SIZES = {"short": 70, "long": 2 * ops.ROW + 5, "longer": 70 * ops.ROW}


def exceeding(values: torch.Tensor, limit: float) -> int:
    return int((values.abs() > limit).sum())


@QUICK
@given(st.data())
def test_it_equals_sorting_however_the_tensors_are_cut(data):
    tensors = {name: data.draw(TENSORS) for name in "ab"}
    count = data.draw(st.integers(-2, 31))
    processes = data.draw(st.integers(1, 3))
    ends = data.draw(st.lists(st.integers(0, 30), min_size=3, max_size=3))
    pieces = parts.cut(tensors, processes, lambda rank, size: ends[rank])
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    results = parts.run(pieces, sizes, lambda s: largest(s, lambda shard: shard.weight, lambda size: count))
    assert all(result == results[0] for result in results)
    for name, tensor in tensors.items():
        order = tensor.abs().sort(descending=True).values
        if count < 0:
            assert results[0][name] == math.inf
        elif count >= tensor.numel():
            assert results[0][name] == -1 and exceeding(tensor, -1) == tensor.numel()
        else:
            assert results[0][name] == order[count]
            assert exceeding(tensor, results[0][name]) <= count


@pytest.mark.parametrize(("dtype", "rounds"), [(torch.float32, 31), (torch.float64, 63)])
def test_half_of_distinct_values_in_a_few_reductions(dtype, rounds):
    values = torch.randn(10_001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    reductions = []

    def work(shards):
        reduce = shards._reduce
        shards._reduce = lambda numbers: reductions.append(1) or reduce(numbers)
        return largest(shards, lambda shard: shard.weight, lambda size: size // 2)

    limit = parts.run([{"w": (0, values), "v": (0, values * 3)}], {"w": 10_001, "v": 10_001}, work)[0]
    assert exceeding(values, limit["w"]) == 5000 and exceeding(values * 3, limit["v"]) == 5000
    assert len(reductions) == rounds


def test_compiled_passes_give_the_same_limit(monkeypatch):
    monkeypatch.setattr(fused, "devices", {"cpu"})
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(threshold, "_reached", fused.fused(threshold._reached.__wrapped__))
    torch.compiler.reset()
    counters.clear()
    tensors = {name: torch.randn(size, generator=torch.Generator().manual_seed(size)) for name, size in SIZES.items()}
    limit = parts.run([{name: (0, tensor) for name, tensor in tensors.items()}], SIZES, lambda s: largest(
        s, lambda shard: shard.weight, lambda size: size // 3
    ))[0]
    for name, tensor in tensors.items():
        assert limit[name] == tensor.abs().sort(descending=True).values[SIZES[name] // 3]
    assert fused.devices, "compiling failed"
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same_limit():
    waited = ""
    tensors = {name: torch.randn(size, generator=torch.Generator().manual_seed(size)) for name, size in SIZES.items()}
    for device in ("cpu", "cuda", "cuda"):  # compiled in the first run, in the second the host never waits
        cut = [{name: (0, tensor.to(device)) for name, tensor in tensors.items()}]
        with no_waits() if device == waited else contextlib.nullcontext():
            limit = parts.run(cut, SIZES, lambda s: largest(s, lambda shard: shard.weight, lambda size: size // 3))[0]
        waited = device
        for name, tensor in tensors.items():
            assert limit[name].device.type == device
            assert limit[name].item() == tensor.abs().sort(descending=True).values[SIZES[name] // 3]
