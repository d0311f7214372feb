"""Several cells at a time, each in a worker process."""

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

PATIENCE = 300.0  # seconds for a worker to save its training state
GRACE = 10.0  # seconds for a worker to end after its pipe was closed or it was killed
POLL = 1.0
Handler = Callable[[int, tuple[Any, ...]], None]


def serve(pipe: Connection, root: str, place: tuple[int, str, int | str | None], path: list[str]) -> None:
    """Body of a worker process: run the tasks that the pipe delivers until it delivers None.

    Args:
        pipe: delivers (cell, keys, sources). The worker sends ("step", ...), and at the end one of ("result", text or
            failure), ("locked", owner), ("stop", message) or ("died", ending).
        root: results folder.
        place: threads, device, GPU.
        path: the parent's sys.path, so that the worker finds the user's own method.
    """
    # The terminal sends ctrl-C to every process. Only the parent reacts to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = path

    def report(*event: Any) -> None:
        signals.check()
        try:
            pipe.send(("step", *event))
        except OSError:  # the parent was killed: stop as if it had requested it
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.suppress(BrokenPipeError, signals.Terminated), signals.raising(), terminal.guarded():
        try:
            from benchmark.running.worker import Worker, prepare_process  # here: a failed import is reported

            prepare_process(*place)
            worker = Worker(Store(Path(root)))
            while (task := pipe.recv()) is not None:
                cell, keys, sources = task
                try:
                    result = worker.run(cell, keys, sources, report)
                except Locked as error:
                    pipe.send(("locked", str(error)))
                else:
                    pipe.send(("result", result))
        except UserError as error:
            pipe.send(("stop", str(error)))
        except (EOFError, BrokenPipeError):  # the parent was killed: nobody reads the pipe
            return
        except Exception as error:
            traceback.print_exc()
            pipe.send(("died", of_error(error)))


class Pool:
    """Worker processes.

    Args:
        count: number of workers.
        store: where results go.
        threads: per worker.
        device: cpu or cuda.
        gpus: the GPUs that the workers share.
        body: the function that a worker process runs.
    """

    def __init__(
        self, count: int, store: Store, threads: int, device: str, gpus: tuple[int | str, ...],
        body: Callable[..., None] = serve,
    ) -> None:
        if count * threads > (os.cpu_count() or 1):
            # More threads than cores: waiting threads must not keep a core busy. The import of torch reads this.
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
        """Give a task to an idle worker. A worker that died while idle is replaced: the task is not to blame."""
        self.idle.discard(index)
        if self._dead(index):
            self._renew(index)
        with contextlib.suppress(OSError):  # it died just now: `receive` reports it
            self._pipes[index].send(task)

    def receive(self, timeout: float, handle: Handler) -> None:
        """Wait for messages and pass each to the handler with its worker's number.

        For a dead worker (killed for lack of memory, say) the message is ("died", its ending); the worker is replaced.

        Args:
            timeout: longest wait for the first message, in seconds.
            handle: called with (number, message).
        """
        busy = [index for index in self._pipes if index not in self.idle]
        wait([self._pipes[index] for index in busy], timeout)
        for index in busy:
            try:
                dead = self._dead(index)  # before the poll: the last message of a dead worker is then in the pipe
                if not self._pipes[index].poll():
                    if not dead:
                        continue
                    raise EOFError  # a child of the dead worker holds the pipe open
                message = self._pipes[index].recv()
                if message[0] == "died":  # its last message
                    self._renew(index)
            except (EOFError, OSError):
                message = ("died", self._renew(index))
            handle(index, message)

    def _dead(self, index: int) -> bool:
        return not self._processes[index].is_alive()

    def _renew(self, index: int) -> Ending:
        """Replace a worker that is ending; return how it ended."""
        process = self._processes[index]
        process.join(GRACE)
        if process.is_alive():  # it closed its pipe but does not end
            process.kill()
            process.join(GRACE)
        self._pipes[index].close()
        self._start(index)
        ending = of_exit(process.exitcode, self._kills)
        return Ending(How.EXITED) if ending.how is How.DONE else ending  # another program asked it to stop

    def close(self) -> None:
        """End all workers. A busy worker gets SIGTERM, on which a training saves its state.

        Workers that have not ended after PATIENCE are killed. The wait after that is short, because a process that
        hangs in the kernel does not end even then.
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
