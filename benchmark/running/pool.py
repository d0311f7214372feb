"""Several cells at a time: worker processes that take the next cell whose Full FT cell is done."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmark.core import signals, terminal
from benchmark.core.errors import Locked, UserError
from benchmark.running.endings import Ending, How, memory_kills, of_error, of_exit
from benchmark.store.cells import Store

PATIENCE = 300.0  # seconds that a worker has to save its training state
GRACE = 10.0  # seconds for a worker to end whose pipe is closed, or that was killed
POLL = 1.0
Handler = Callable[[int, tuple[Any, ...]], None]


def serve(pipe: Connection, root: str, place: tuple[int, str, int | str | None], path: list[str]) -> None:
    """Body of a worker process: run what comes through the pipe until None comes.

    Args:
        pipe: gets (cell, keys, full_ft); sends ("step", ...) and one of ("result", text or failure),
            ("locked", owner), ("stop", message), or ("died", ending).
        root: results folder.
        place: threads, device, GPU.
        path: the parent's sys.path, so that a user's own method is found.
    """
    # The terminal sends ctrl-C to all; only the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = path

    def told(*event: Any) -> None:
        signals.check()
        try:
            pipe.send(("step", *event))
        except OSError:  # the parent was killed: stop as if it had said so
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.suppress(BrokenPipeError, signals.Terminated), signals.raising(), terminal.guarded():
        try:
            from benchmark.running.worker import Worker, prepare_process  # what cannot be imported has to be said, too

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
        except (EOFError, BrokenPipeError):  # the parent was killed: there is nobody to tell
            return
        except Exception as error:
            traceback.print_exc()
            pipe.send(("died", of_error(error)))


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
        self._kills = memory_kills()
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
        """Give a task to an idle worker; one that died meanwhile is replaced, as its death is not the task's fault."""
        self.idle.discard(index)
        if self._dead(index):
            self._renew(index)
        with contextlib.suppress(OSError):  # it died just now: `receive` tells so
            self._pipes[index].send(task)

    def receive(self, timeout: float, handle: Handler) -> None:
        """Wait for messages and hand each on with its worker's number.

        A worker that is gone (killed for memory, say) gives ("died", its ending) and is replaced.

        Args:
            timeout: the most to wait for the first message, in seconds.
            handle: called with (number, message).
        """
        busy = [index for index in self._pipes if index not in self.idle]
        wait([self._pipes[index] for index in busy], timeout)
        for index in busy:
            try:
                dead = self._dead(index)  # asked first: what it said before it died is in the pipe then
                if not self._pipes[index].poll():
                    if not dead:
                        continue
                    raise EOFError  # a process that it started holds its end of the pipe open
                message = self._pipes[index].recv()
                if message[0] == "died":  # its last words
                    self._renew(index)
            except (EOFError, OSError):
                message = ("died", self._renew(index))
            handle(index, message)

    def _dead(self, index: int) -> bool:
        return not self._processes[index].is_alive()

    def _renew(self, index: int) -> Ending:
        """Put a new worker in the place of one that is ending; return how that one ended."""
        process = self._processes[index]
        process.join(GRACE)
        if process.is_alive():  # it closed its pipe and does not end
            process.kill()
            process.join(GRACE)
        self._pipes[index].close()
        self._start(index)
        ending = of_exit(process.exitcode, self._kills)
        return Ending(How.EXITED) if ending.how is How.DONE else ending  # told to stop by somebody else

    def close(self) -> None:
        """End all workers; one that works is told to stop (in training it first saves its state).

        All have the same time for it. What is left then is killed, and waited for no longer than a moment: a process
        that hangs in the kernel does not end by it.
        """
        for index, process in self._processes.items():
            if index in self.idle:
                with contextlib.suppress(OSError):
                    self._pipes[index].send(None)
            else:
                process.terminate()
        for seconds in (PATIENCE, GRACE):
            end = time.monotonic() + seconds
            while left := [process for process in self._processes.values() if process.is_alive()]:
                if time.monotonic() >= end:
                    break
                wait([process.sentinel for process in left], min(POLL, end - time.monotonic()))
            for process in left:
                process.kill()
