"""Functions of flat tensors that a GPU computes in one pass: every element is read once and written once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from methods.ops import ROW

# Where functions are compiled. On a CPU they run as written: its numbers need no compiler and keep their bits.
devices = {"cuda"}
# For the bench: is given a function and its arguments in place of a compiled call.
watch: Callable[..., Any] | None = None


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for GPUs with torch.compile: one graph for tensors of every length.

    Tensors shorter than ROW run as written, because for them starting the kernels is what takes time. So does
    everything, after one line in the log, where compiling fails (no Triton, no C compiler).

    Args:
        function: of tensors (or None) that are all on the first one's device; full-length ones are 1-D and equally
            long. It calls no other fused function.

    Returns:
        The function, with the same results up to rounding.
    """

    @functools.cache
    def kernel() -> Callable[..., Any]:
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # else it starts a pool of processes for a handful of kernels
        return torch.compile(function, dynamic=True, fullgraph=True)

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        if arguments[0].device.type not in devices or arguments[0].numel() < ROW:
            return function(*arguments)
        if watch is not None:
            return watch(function, arguments)
        try:
            # As plain tensors: a view's graph holds only for views of tensors with as many dimensions.
            return kernel()(*(value if value is None else value.data for value in arguments))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compilers raise
            devices.clear()
            reason = str(error).strip().partition("\n")[0]
            logging.getLogger(__name__).warning(
                "torch.compile does not work here (%s: %s). Methods go on uncompiled: the same results, a slower step.",
                type(error).__name__, reason,
            )
            return function(*arguments)

    return run
