"""Start processes that form a group, wait for them, and read what they return."""

from __future__ import annotations

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
context.set_forkserver_preload(["tests.multiprocess.training"])


def launch(function: Callable[..., Any], processes: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Run function(*args) in processes that form a gloo group.

    Args:
        function: importable.
        processes: their number.
        args: of every call.
        timeout: seconds after which the processes are killed; collective operations wait half of that.

    Returns:
        What the calls returned, by rank.

    Raises:
        Failed: a process failed or was still running at the end of the time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = [
            context.Process(target=_process, args=(function, rank, processes, folder, timeout / 2, args))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        end = time.monotonic() + timeout
        for process in started:
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(started) if process.is_alive()]
        for process in started:
            process.kill()
            process.join()
        errors = {
            rank: _read(folder / f"error{rank}") or ("still running" if rank in late else f"exit {process.exitcode}")
            for rank, process in enumerate(started) if process.exitcode
        }
        if errors:
            raise Failed(errors)
        return [torch.load(folder / f"result{rank}", weights_only=False) for rank in range(processes)]


class Failed(Exception):
    """Some processes failed; `errors` has the traceback of each, or how it ended."""

    def __init__(self, errors: dict[int, str]) -> None:
        super().__init__("\n".join(f"--- process {rank}: {text}" for rank, text in errors.items()))
        self.errors = errors


def _process(
    function: Callable[..., Any], rank: int, processes: int, folder: Path, timeout: float, args: tuple
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/store", timedelta(seconds=timeout), rank=rank, world_size=processes
        )
        torch.save(function(*args), folder / f"result{rank}")
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)  # the others' connections must break now, not when this process is cleaned up


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
