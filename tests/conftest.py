"""What all tests share: one thread, no network, no leftovers of a user's environment."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch: tests are many small computations, more threads only slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
# `make test ARGS=...` hands these on to the `make` that a test starts.
for name in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS"):
    os.environ.pop(name, None)
# A shell's background job, as in some CI, starts with ctrl-C ignored; then it could not be tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmark"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules with long tests first, so that none is left for one worker at the end; skip GPU tests without a GPU.

    The check of types, the longest, starts at once. Tests that fork from one warm process come next: they stay with the
    worker that has started it. The tests of a module stay together, so that a worker makes what they share only once.
    """
    first = {
        mark: {item.path for item in items if item.get_closest_marker(mark)} for mark in ("multiprocess", "slow")
    }
    items.sort(key=lambda item: (
        item.path.name != "test_lint.py", item.path not in first["multiprocess"], item.path not in first["slow"],
    ))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Keep imported modules and collected tests out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Fail a test that leaves one of our threads running: one of them killed the tests' process 15 minutes later."""
    before = set(sys._current_frames())
    yield
    end = time.monotonic() + 10
    while (left := _ours(before)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left, f"threads that still run: {left}"


def _ours(before: set[int]) -> list[str]:
    """Return the functions of benchmark/ in which threads are that are not in `before`.

    Frames tell the truth: `is_alive` of a thread turns false when a signal interrupts its `join`.
    """
    found = []
    frames = sys._current_frames()
    for ident in frames.keys() - before:
        frame = frames[ident]
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(BENCHMARK):
                found.append(frame.f_code.co_qualname)
            frame = frame.f_back
    return found
