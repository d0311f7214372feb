"""The processes that pretrain one model together: each takes a share of every batch, and they add their gradients.

On a CPU, a small model is faster in two processes with one thread each than in one with two threads: most of its
products are too small to be divided.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, multiprocessing, nn

from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.training.engine import place

FAULT = "fault"
"""File with the message of a user's mistake."""
Item = TypeVar("Item")


def run(function: Callable[..., Any], args: tuple[Any, ...], processes: int) -> None:
    """Call a function in each process of a new group, with one thread each. If one of them ends early, all do.

    Args:
        function: importable by name.
        args: its arguments.
        processes: their number.

    Raises:
        UserError: raised by the function, or a process was killed.
        torch.multiprocessing.ProcessRaisedException: the function raised another exception.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = (function, args, processes, Path(folder))
        started = multiprocessing.spawn(_join, told, processes, join=False, daemon=True)
        try:
            while not started.join():
                pass
        except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException) as error:
            if (fault := Path(folder) / FAULT).exists():
                raise UserError(fault.read_text(encoding="utf-8")) from None
            if isinstance(error, multiprocessing.ProcessRaisedException):
                raise
            raise UserError(
                f"A process of pretraining was killed ({error}). Check that the machine has enough memory. The same "
                "command goes on from the last checkpoint."
            ) from None
        finally:  # also after ctrl-C or SIGTERM
            for process in started.processes:
                process.terminate()
                process.join()


def _join(rank: int, function: Callable[..., Any], args: tuple[Any, ...], processes: int, folder: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the process that started this one says what happened
        signal.signal(number, lambda *_: os._exit(1))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=processes)
    try:
        function(*args)
    except UserError as error:
        write_atomic(folder / FAULT, str(error))
        raise
    distributed.destroy_process_group()


def is_first() -> bool:
    """Return whether this is the process that writes files and logs."""
    return place()[0] == 0


def share(items: Iterable[Item], cost: Callable[[Item], float] = lambda item: 1.0) -> list[Item]:
    """Return this process's share of a batch, in order; the shares cost about the same.

    Args:
        items: the batch.
        cost: of an item. Without it, a process gets every n-th item.
    """
    rank, processes = place()
    batch = list(items)
    costs, loads, mine = list(map(cost, batch)), [0.0] * processes, []
    for number in sorted(range(len(batch)), key=lambda number: -costs[number]):  # the largest first
        lightest = loads.index(min(loads))
        loads[lightest] += costs[number]
        if lightest == rank:
            mine.append(number)
    return [batch[number] for number in sorted(mine)]


def total(value: float) -> float:
    """Return the sum of a number over all processes. Every process must call it."""
    if place()[1] == 1:
        return value
    return _sum(torch.tensor(value, dtype=torch.float64)).item()


def mean(losses: Tensor) -> Tensor:
    """Return this process's part of the mean of all processes' losses; 0 if there are none. All must call it."""
    return losses.sum() / max(1.0, total(losses.numel()))


def add_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every process the sum of all gradients. One that no process has stays None. Every process must call it."""
    if place()[1] == 1:
        return
    gradients = [p.grad for p in parameters]
    present = torch.tensor([float(gradient is not None) for gradient in gradients])
    filled = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))
    flat = _sum(torch.cat([*(gradient.flatten() for gradient in filled), present]))
    *sums, present = flat.split([*(p.numel() for p in parameters), len(present)])
    for parameter, gradient, some in zip(parameters, sums, present.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if some else None


def _sum(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    distributed.all_reduce(values)
    return values
