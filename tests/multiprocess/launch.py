"""Start processes that form a group, wait for them, and read what they return."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

# Importing torch, transformers and DeepSpeed takes seconds: one process does it, all others are forked from it.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.multiprocess.preload"])


class Failed(Exception):
    """Some processes failed; `errors` tells of each what it wrote last, `seconds` how long they ran."""

    def __init__(self, errors: dict[int, str], seconds: float) -> None:
        super().__init__("\n".join(f"--- process {rank}: {text}" for rank, text in errors.items()))
        self.errors = errors
        self.seconds = seconds


def launch(
    function: Callable[..., Any],
    processes: int,
    *args: Any,
    timeout: float = 1200,
    patience: float = 600,
    grace: float | None = None,
) -> list[Any]:
    """Run function(*args) in processes that form a gloo group.

    Args:
        function: importable.
        processes: their number.
        args: of every call.
        timeout: seconds after which the processes are killed.
        patience: seconds that one of them waits for the others.
        grace: seconds that the others are given when one has failed; None for as long as they may wait.

    Returns:
        What the calls returned, by rank.

    Raises:
        Failed: a process failed or was still running at the end of the time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.monotonic()
        started = [
            context.Process(target=_process, args=(function, rank, processes, folder, patience, args))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        end = start + timeout
        while any(process.is_alive() for process in started) and time.monotonic() < end:
            time.sleep(0.05)
            if any(process.exitcode for process in started):  # the others should notice
                end = min(end, time.monotonic() + (patience + 5 if grace is None else grace))
        seconds = time.monotonic() - start
        late = {rank for rank, process in enumerate(started) if process.is_alive()}
        for process in started:
            process.kill()
            process.join()
        errors = {
            rank: f"{'still running' if rank in late else f'exit {process.exitcode}'}\n{_output(folder, rank)}"
            for rank, process in enumerate(started) if process.exitcode
        }
        if errors:
            raise Failed(errors, seconds)
        return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(processes)]


def _process(
    function: Callable[..., Any], rank: int, processes: int, folder: Path, patience: float, args: tuple
) -> None:
    for stream in (1, 2):
        os.dup2(os.open(folder / f"output{rank}", os.O_CREAT | os.O_APPEND | os.O_WRONLY), stream)
    os.environ |= {  # what torchrun tells its processes
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
    }
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage whenever it starts, which would search all imported modules
    try:
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/store", timedelta(seconds=patience), rank=rank, world_size=processes
        )
        torch.save(function(*args), folder / f"result{rank}")
        torch.distributed.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at once, not after waiting for the others


def _output(folder: Path, rank: int) -> str:
    return (folder / f"output{rank}").read_text(errors="replace")[-9000:]
