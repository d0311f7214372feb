"""Several cells at a time: worker processes that take the next cell whose Full FT cell is done."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmark import signals, terminal
from benchmark.errors import Locked, UserError
from benchmark.store import Store

PATIENCE = 300.0  # seconds that a worker has to save its training state
GRACE = 10.0  # seconds for a worker whose pipe is closed to end
Handler = Callable[[int, tuple[Any, ...]], None]


def serve(pipe: Connection, root: str, place: tuple[int, str, int | str | None], path: list[str]) -> None:
    """Body of a worker process: run what comes through the pipe until None comes.

    Args:
        pipe: gets (cell, keys, full_ft); sends ("step", ...) and one of ("result", text or failure),
            ("locked", owner), ("stop", message).
        root: results folder.
        place: threads, device, GPU.
        path: the parent's sys.path, so that a user's own method is found.
    """
    from benchmark.worker import Worker, prepare_process

    # The terminal sends ctrl-C to all; only the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = path

    def told(*event: Any) -> None:
        signals.check()
        try:
            pipe.send(("step", *event))
        except OSError:  # the parent was killed: stop as if it had said so
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.suppress(EOFError, BrokenPipeError, signals.Terminated), signals.raising(), terminal.guarded():
        try:
            prepare_process(*place)
            worker = Worker(Store(Path(root)))
            while (task := pipe.recv()) is not None:
                cell, keys, full_ft = task
                try:
                    result = worker.run(cell, keys, full_ft, told)
                except Locked as error:
                    pipe.send(("locked", str(error)))
                else:
                    pipe.send(("result", result))
        except UserError as error:
            pipe.send(("stop", str(error)))


class Pool:
    """Worker processes.

    Args:
        count: how many.
        store: where results go.
        threads: per worker.
        device: cpu or cuda.
        gpus: GPUs to spread the workers over.
        body: what a worker process does.
    """

    def __init__(
        self, count: int, store: Store, threads: int, device: str, gpus: tuple[int | str, ...],
        body: Callable[..., None] = serve,
    ) -> None:
        if count * threads > (os.cpu_count() or 1):
            # More threads than cores: those that wait must not keep a core busy. Read when torch is first imported.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._context = multiprocessing.get_context("spawn")
        self._body = body
        self._root, self._threads, self._device, self._gpus = str(store.root), threads, device, gpus
        self._pipes: dict[int, Connection] = {}
        self._processes: dict[int, Any] = {}
        for index in range(count):
            self._start(index)
        self.idle = set(range(count))

    def _start(self, index: int) -> None:
        ours, theirs = self._context.Pipe()
        gpu = self._gpus[index % len(self._gpus)] if self._gpus else None
        place = (self._threads, self._device, gpu)
        arguments = (theirs, self._root, place, list(sys.path))
        process = self._context.Process(target=self._body, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._pipes[index], self._processes[index] = ours, process

    def __len__(self) -> int:
        return len(self._processes)

    def send(self, index: int, task: Any) -> None:
        """Give a task to an idle worker."""
        self.idle.discard(index)
        with contextlib.suppress(BrokenPipeError):  # it died while idle: receive tells so
            self._pipes[index].send(task)

    def receive(self, timeout: float | None, handle: Handler) -> None:
        """Wait for messages and hand each on with its worker's number.

        A worker that is gone (killed for memory, say) gives ("died", exit code) and is replaced.
        """
        busy = {pipe: index for index, pipe in self._pipes.items() if index not in self.idle}
        for pipe in wait(list(busy), timeout):
            index = busy[pipe]  # type: ignore[index]
            try:
                message = self._pipes[index].recv()
            except (EOFError, OSError):
                self._processes[index].join(GRACE)
                if self._processes[index].is_alive():  # it closed its pipe and does not end
                    self._processes[index].kill()
                    self._processes[index].join()
                message = ("died", self._processes[index].exitcode)
                self._start(index)
            handle(index, message)

    def close(self) -> None:
        """End all workers; one that works is told to stop (in training it first saves its state)."""
        for index, process in self._processes.items():
            if index in self.idle:
                with contextlib.suppress(OSError):
                    self._pipes[index].send(None)
            else:
                process.terminate()
        for process in self._processes.values():
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
