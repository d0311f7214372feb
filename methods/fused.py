"""Functions of flat tensors that a GPU computes in one pass: every element is read once and written once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from methods.ops import ROW

# Devices on which functions are compiled. On a CPU they run as written, so results do not depend on a compiler.
devices = {"cuda"}
# Hook for the benchmark of step costs: if set, it gets the function and its arguments in place of the compiled call.
watch: Callable[..., Any] | None = None


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for GPUs with torch.compile: one graph for tensors of every length.

    Tensors shorter than ROW run uncompiled, because launching kernels would take most of their time. If compiling
    fails (no Triton, no C compiler), one warning is logged and everything runs uncompiled.

    Args:
        function: takes tensors (or None), all on the first one's device; full-length tensors are 1-D and equally
            long. It must not call another fused function.

    Returns:
        The function, with the same results up to rounding.
    """

    @functools.cache
    def kernel() -> Callable[..., Any]:
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # otherwise it starts a process pool for a handful of kernels
        return torch.compile(function, dynamic=True, fullgraph=True)

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        if arguments[0].device.type not in devices or arguments[0].numel() < ROW:
            return function(*arguments)
        if watch is not None:
            return watch(function, arguments)
        try:
            # `.data`, because a graph made for a view is valid only for views of tensors with equally many dimensions.
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
