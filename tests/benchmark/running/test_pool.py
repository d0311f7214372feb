"""Worker processes that die: whoever waits for them is told why, and waits no longer than needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmark.running import pool
from benchmark.running.endings import How
from benchmark.running.pool import Pool, serve
from benchmark.store.cells import Store

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
HANG = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def told(pipe: Any, *_: Any) -> None:
    """Body of a worker that does what its tasks say."""
    while (task := pipe.recv()) is not None:
        if task == "ignore SIGTERM":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if task == "leave a child":
            subprocess.Popen([sys.executable, "-c", HANG], close_fds=False, pass_fds=[pipe.fileno()])
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "leave":
            return
        pipe.send(("result", (task, os.getpid())))
        if task == "ignore SIGTERM":
            time.sleep(600)


def broken(*arguments: Any) -> None:
    """Body of a worker whose start fails: of the modules that it needs one cannot be imported."""
    sys.modules["benchmark.running.worker"] = None  # type: ignore[assignment]
    serve(*arguments)


def killed_at_start(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Workers:
    """A pool, and what its workers say."""

    def __init__(self, folder: Path, count: int, body: Any) -> None:
        self.pool = Pool(count, Store(folder), 1, "cpu", (), body)

    def ask(self, index: int, task: Any, seconds: float = 30.0) -> tuple[Any, ...]:
        """Return the first thing that a worker says after it got a task; fail if it says nothing."""
        said: list[tuple[Any, ...]] = []
        self.pool.send(index, task)
        end = time.monotonic() + seconds
        while not said:
            assert time.monotonic() < end, "nobody says that the worker is gone"
            self.pool.receive(1.0, lambda number, message: said.append(message) if number == index else None)
        self.pool.idle.add(index)
        return said[0]


@pytest.fixture
def workers(tmp_path, monkeypatch):
    made: list[Workers] = []

    def make(body: Any = told, count: int = 1) -> Workers:
        made.append(Workers(tmp_path, count, body))
        return made[-1]

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    yield make
    for one in made:
        for process in one.pool._processes.values():
            process.kill()
        one.pool.close()


def test_a_worker_that_is_killed_while_it_works_is_named_and_replaced(workers):
    one = workers()
    kind, ending = one.ask(0, "die")
    assert (kind, ending.how, ending.number) == ("died", How.KILLED, 9)
    assert ending.sentence("it").startswith("it was killed by signal 9 (Killed), perhaps because memory ran out")
    assert one.ask(0, "hello")[0] == "result"


def test_a_worker_that_is_told_to_end_by_somebody_else_is_named_too(workers):
    kind, ending = workers().ask(0, "leave")
    assert kind == "died" and ending.sentence("it") == "it ended without an error message"


def test_a_worker_whose_child_holds_its_pipe_open_is_known_to_be_dead(workers, tmp_path):
    """Readers of images are forked from a worker and live on for seconds, or for ever where the disk hangs."""
    kind, ending = workers().ask(0, "leave a child")
    left = [
        int(path.name) for path in Path("/proc").glob("[0-9]*")
        if HANG.encode() in _words(path)
    ]
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left and (kind, ending.how, ending.number) == ("died", How.KILLED, 9)


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_worker_that_died_between_two_tasks_is_replaced_before_the_next(workers):
    """The cell that comes next has done nothing to fail for."""
    one = workers()
    _, (_, first) = one.ask(0, "hello")
    os.kill(first, signal.SIGKILL)
    one.pool._processes[0].join(30)
    kind, (task, second) = one.ask(0, "again")
    assert (kind, task) == ("result", "again") and second != first


def test_a_worker_that_cannot_start_says_why(workers):
    kind, ending = workers(broken).ask(0, "hello")
    assert kind == "died" and ending.how is How.FAILED
    assert ending.message.startswith("ModuleNotFoundError: import of benchmark.running.worker halted")


def test_a_worker_that_is_killed_at_its_start_is_named(workers):
    kind, ending = workers(killed_at_start).ask(0, "hello")
    assert (kind, ending.how, ending.number) == ("died", How.KILLED, 9)


def test_workers_that_do_not_stop_are_killed_after_one_time_for_all(workers, monkeypatch):
    monkeypatch.setattr(pool, "PATIENCE", 1.0)
    one = workers(count=2)
    for index in range(2):
        assert one.ask(index, "ignore SIGTERM")[0] == "result"
    one.pool.idle.clear()
    one.pool.close()
    assert [process.exitcode for process in one.pool._processes.values()] == [-signal.SIGKILL] * 2
