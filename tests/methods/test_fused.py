"""Compiled passes: the numbers of the functions as written, one graph for all lengths, one kernel each."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import Parameter

from benchmark.profiling.bench_methods import Size, StepBench
from benchmark.training.attach import attach
from methods import fused, ops, spider
from methods.registry import build

COMPILER = os.environ.get("CXX", "g++")
LENGTHS = ((70, 701), (3, ops.ROW), (4100,), (70,), (128, 128))  # the fourth is too short to be compiled


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(fused, "devices", {"cpu"})
    torch.compiler.reset()
    counters.clear()


def train(steps: int = 3, device: str = "cpu") -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return weights, masks and distances to the threshold after steps of spider on random gradients.

    On a GPU, torch raises an error if the host waits for it in a later step than the first, which compiles.
    """
    source = torch.Generator().manual_seed(0)
    base = {str(size): torch.randn(size, generator=source).mul_(0.02).bfloat16() for size in LENGTHS}
    base["(4100,)"].fill_(1.0)
    named = {name: Parameter(values.float().to(device)) for name, values in base.items()}
    optimizer, method = torch.optim.AdamW(named.values(), lr=1e-3, weight_decay=0.0), build("spider", {}, 0)
    attachment = attach(optimizer, named, base, method)
    for step in range(steps):
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=source).to(device)
        with no_waits() if device == "cuda" and step else contextlib.nullcontext():
            optimizer.step()
    masks, margins, devices = [], [], fused.devices
    fused.devices = set()  # what is compared is what the steps have left behind
    for shard in attachment.shards:
        special = ops.rank(method.accumulated[shard.name], method._special[shard.name])
        margins.append((special - ops.rank(shard.pretrained, method._generic[shard.name])).abs())
        masks.append(method.mask(shard))
        exact = shard.weight == shard.pretrained
        assert exact[(masks[-1] == 0) & (margins[-1] > 1e-5)].all(), "w* bit for bit where nothing is selected"
    fused.devices = devices
    weights = [parameter.detach().flatten() for parameter in named.values()]
    return tuple([values.cpu() for values in part] for part in (weights, masks, margins))


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """Make torch raise an error where the host waits for a GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_equal(written: tuple, compiled: tuple) -> None:
    """Masks differ in at most one element of 10^4, each at its threshold; all else is equal up to rounding."""
    differing = 0
    for w, m, margin, other_w, other_m in zip(*written, *compiled[:2], strict=True):
        other = (m != 0) != (other_m != 0)
        assert (margin[other] < 1e-5).all()
        differing += other.sum().item()
        torch.testing.assert_close(other_m[~other], m[~other], rtol=0, atol=1e-6)
        torch.testing.assert_close(other_w[~other], w[~other], rtol=0, atol=1e-6)
    assert differing <= 1e-4 * sum(len(w) for w in written[0])


@pytest.mark.slow
def test_every_length_is_in_one_graph_per_pass(on_cpu, monkeypatch):
    """Traced, but run by torch's own operations: no C++ compiler is needed."""
    monkeypatch.setattr(fused, "devices", set())
    written = train()
    monkeypatch.setattr(fused, "devices", {"cpu"})
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    passes = [fused.fused(function.__wrapped__) for function in (spider._abs_sums, spider._mask_sums, spider._blend)]
    for name, function in zip(("_abs_sums", "_mask_sums", "_blend"), passes, strict=True):
        monkeypatch.setattr(spider, name, function)
    check_equal(written, train())
    assert fused.devices, "compiling failed"
    assert counters["stats"]["unique_graphs"] == len(passes)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER})")
def test_a_pass_is_one_kernel_with_the_numbers_of_the_function_as_written(on_cpu, monkeypatch):
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    monkeypatch.setattr(fused, "devices", set())
    written = train()
    monkeypatch.setattr(fused, "devices", {"cpu"})
    monkeypatch.setattr(config, "force_disable_caches", True)  # what is cached shows no code
    monkeypatch.setattr(config, "cpp_cache_precompile_headers", False)  # they take longer than these few files
    monkeypatch.setattr(config.cpp, "simdlen", 1)  # loops of single numbers: torch's headers for vectors take longest
    monkeypatch.setattr(config.cpp, "vec_isa_ok", False)  # and need a test program for each kind of vector
    compiled, modules = run_and_get_code(train)
    check_equal(written, compiled)
    assert fused.devices, "compiling failed"
    assert [module.count("async_compile.cpp_pybinding(") for module in modules] == [1, 1, 1], "one kernel per pass"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_numbers_of_a_cpu_and_the_host_never_waits():
    torch.compiler.reset()
    check_equal(train(), train(device="cuda"))
    assert fused.devices == {"cuda"}, "compiling failed"


def test_a_pass_counts_what_it_must_move(monkeypatch):
    """A's lerp 12; A for its moments 4; A and w* in 16 bits for Eq. 8's mean 6; these, w and w again 14: 36 bytes."""
    size = Size("Toy", 256, 512, 128, rounds=1)
    bench = StepBench(size, "cpu")
    optimizer, _ = bench.attach(build("spider", {}, 0))
    plain, written = (bench.count(which)[0] for which in (bench.plain, optimizer))
    monkeypatch.setattr(fused, "devices", {"cpu"})
    moved, waits = bench.count(optimizer)
    plain_moved, plain_waits = bench.count(bench.plain)
    assert (moved - plain_moved) / size.numel() == pytest.approx(36, rel=0.02)
    assert (written - plain) / size.numel() > 300 and waits == plain_waits


@pytest.mark.slow
def test_a_row_of_the_log_counts_what_it_must_move(monkeypatch):
    """Beyond Full FT's: A and w* in 16 bits for M, and M written, 10; M != 0 and M == 1, their sums, 12: 22 bytes."""
    size = Size("Toy", 256, 512, 128, rounds=1)
    bench, moved = StepBench(size, "cpu"), {}
    monkeypatch.setattr(fused, "devices", {"cpu"})
    for method in ("full_ft", "spider"):
        optimizer, attachment = bench.attach(build(method, {}, 0))
        bench.count(optimizer)
        moved[method], waits = bench.counted(attachment.diagnostics)
        assert waits == (1 if method == "full_ft" else 2)
        attachment.remove()
    assert (moved["spider"] - moved["full_ft"]) / size.numel() == pytest.approx(22, rel=0.02)


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
