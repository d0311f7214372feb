"""Programs with all libraries imported: forked from the fork server, which imports them once for a test process.

Each is a process like any other, with an environment, output and an exit code of its own. It only saves the seconds
that a new interpreter spends on imports; what tests the start or the end of an interpreter starts one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.multiprocess.launch import context


class Program:
    """A function in a process of its own: what tests use of subprocess.Popen.

    Args:
        function: importable; what it returns is the exit code.
        arguments: its arguments.
        folder: gets the files stdout and stderr.
    """

    def __init__(self, function: Callable[..., int], *arguments: Any, folder: Path) -> None:
        self.files = [folder / name for name in ("stdout", "stderr")]
        self.process = context.Process(target=_run, args=(dict(os.environ), self.files, function, arguments))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("", timeout or 0.0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return what was written to stdout and stderr."""
        self.wait(timeout)
        out, errors = (path.read_text() for path in self.files)
        return out, errors


def inherit(environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in a forked process with this environment instead of the fork server's."""
    multiprocessing.set_start_method(None, force=True)  # that of a program, not of its fork server
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def _run(
    environment: dict[str, str], files: list[Path], function: Callable[..., int], arguments: tuple[Any, ...]
) -> None:
    for stream, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    inherit(environment, lambda: sys.exit(function(*arguments)))
