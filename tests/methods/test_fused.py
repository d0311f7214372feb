"""Compiled passes: the numbers of the functions as written, one graph for all lengths, each element moved once."""

from __future__ import annotations

import logging
import os
import shutil

import pytest
import torch
from torch.nn import Parameter

from benchmark.bench_methods import Bench, Size
from benchmark.shards import attach
from methods import fused, ops, spider
from methods.registry import build

COMPILER = os.environ.get("CXX", "g++")
LENGTHS = {"large": 50_021, "whole": 3 * ops.ROW, "layers.0.input_layernorm.weight": 4100, "short": 70}
STEPS = 3


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(fused, "devices", {"cpu"})


def trained():
    """Return weights, masks and distances to the threshold after steps of spider on random gradients."""
    source = torch.Generator().manual_seed(0)
    base = {name: torch.randn(size, generator=source).mul_(0.02).bfloat16() for name, size in LENGTHS.items()}
    base["layers.0.input_layernorm.weight"].fill_(1.0)
    named = {name: Parameter(values.float()) for name, values in base.items()}
    optimizer, method = torch.optim.AdamW(named.values(), lr=1e-3, weight_decay=0.0), build("spider", {}, 0)
    attachment = attach(optimizer, named, base, method)
    for _ in range(STEPS):
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=source)
        optimizer.step()
    with torch.no_grad():
        masks = {shard.name: method.mask(shard) for shard in attachment.shards}
        margins = {
            shard.name: (
                ops.rank(method.accumulated[shard.name], method._special[shard.name])
                - ops.rank(shard.pretrained, method._generic[shard.name])
            ).abs()
            for shard in attachment.shards
        }
    exact = {name: named[name].detach() == base[name].float() for name in named}
    return {name: parameter.detach() for name, parameter in named.items()}, masks, margins, exact


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER})")
def test_compiled_passes_give_the_numbers_and_move_each_element_once(monkeypatch):
    from torch._dynamo.utils import counters
    from torch._inductor import config, metrics

    written = trained()
    monkeypatch.setattr(fused, "devices", {"cpu"})
    monkeypatch.setattr(config, "force_disable_caches", True)  # what is cached is not counted
    monkeypatch.setattr(config, "cpp_cache_precompile_headers", False)  # they take longer than these few files
    torch.compiler.reset()
    counters.clear()
    metrics.reset()
    compiled = trained()
    assert fused.devices, "compiling failed"
    differing = total = 0
    for name in LENGTHS:
        other = (compiled[1][name] != 0) != (written[1][name] != 0)
        assert (written[2][name][other] < 1e-5).all()
        differing, total = differing + other.sum().item(), total + other.numel()
        for kind in (0, 1):  # weights, masks
            torch.testing.assert_close(compiled[kind][name][~other], written[kind][name][~other], rtol=0, atol=1e-6)
        assert torch.equal(compiled[3][name], compiled[1][name] == 0) or name == "short"
    assert differing <= 1e-4 * total
    # Three passes of a step and the mask for diagnostics; no tensor's length has a graph of its own.
    assert counters["stats"]["unique_graphs"] == 5  # sums of |w*| in start have no gradient mode of their own
    assert metrics.generated_kernel_count >= 4


def test_a_pass_counts_what_it_must_move(monkeypatch):
    """A's lerp 12; A for its moments 4; A and w* in 16 bits for Eq. 8's mean 6; these, w and w again 14: 36 bytes."""
    size = Size("Toy", 256, 512, 128, rounds=1, methods=("spider",))
    bench = Bench(size, "cpu")
    optimizer, _ = bench.attach(build("spider", {}, 0))
    plain, written = (bench.count(which)[0] for which in (bench.plain, optimizer))
    monkeypatch.setattr(fused, "devices", {"cpu"})
    moved, waits = bench.count(optimizer)
    plain_moved, plain_waits = bench.count(bench.plain)
    assert (moved - plain_moved) / size.numel() == pytest.approx(36, rel=0.02)
    assert (written - plain) / size.numel() > 300 and waits == plain_waits


def test_on_a_cpu_and_for_short_tensors_nothing_is_compiled(monkeypatch):
    def compile_nothing(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    values = torch.ones(2 * ops.ROW)
    assert spider._abs_sums(values).tolist() == [2 * ops.ROW] * 3
    monkeypatch.setattr(fused, "devices", {"cpu"})
    assert spider._abs_sums(values[:-ops.ROW - 1]).tolist() == [ops.ROW - 1] * 3
    assert fused.devices == {"cpu"}


def test_where_compiling_fails_it_says_so_once_and_goes_on(on_cpu, monkeypatch, caplog):
    def fails(function, **kwargs):
        raise RuntimeError("Cannot find a working triton installation.\nMore lines.")

    monkeypatch.setattr(torch, "compile", fails)
    function = fused.fused(lambda values: values + 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert (function(torch.ones(ops.ROW)) == 2).all()
    (record,) = caplog.records
    assert "RuntimeError: Cannot find a working triton installation.)" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_too_little_memory_is_no_failure_to_compile(on_cpu, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: full)
    with pytest.raises(torch.OutOfMemoryError):
        fused.fused(lambda values: values)(torch.ones(ops.ROW))
    assert fused.devices == {"cpu"}
