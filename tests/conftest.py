"""What all tests share: one thread, no network, no leftovers of a user's environment."""

from __future__ import annotations

import gc
import os
import signal

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
