"""Programs with torch and DeepSpeed imported: forked from the fork server, torchrun's processes from torchrun.

They are processes like any other, with a session, an environment and an exit code of their own. They only save the
seconds that each would spend on imports.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.running import multi_process
from tests.multiprocess.launch import context

if TYPE_CHECKING:
    import pytest

fork = multiprocessing.get_context("fork")


class Forked:
    """What subprocess.Popen gives of `python -m MODULE ARGUMENTS`, as far as the launcher and torchrun use it."""

    def __init__(self, how: Any, words: Sequence[str], env: Mapping[str, str], cwd: str, output: int | None) -> None:
        assert words[0] == sys.executable
        path = None if output is None else f"/proc/{os.getpid()}/fd/{output}"
        program = list(words[words.index("-m") + 1 :])
        self.process = how.Process(target=_run, args=(program, dict(env), cwd, path))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("", timeout or 0.0)
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def start_warm(patch: pytest.MonkeyPatch) -> list[Forked]:
    """Make `multi_process` fork torchrun instead of starting it.

    Returns:
        A list that gets every launcher.
    """
    started: list[Forked] = []

    def popen(words: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: Any, stderr: int,
              start_new_session: bool) -> Forked:
        assert stderr == subprocess.STDOUT and start_new_session
        started.append(Forked(context, words, env, str(cwd), stdout.fileno()))
        return started[-1]

    # The module, not its attribute: everything else goes on with the real subprocess.
    patch.setattr(multi_process, "subprocess", _Subprocess(popen))
    return started


class _Subprocess:
    """The module subprocess with another Popen."""

    def __init__(self, popen: Any) -> None:
        self.Popen = popen

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)


def children(pid: int | None) -> list[int]:
    """Return the processes that a process started, oldest first."""
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return sorted(int(child) for group in found for child in group)


def running(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _run(program: list[str], env: dict[str, str], cwd: str, output: str | None) -> None:
    """Do in a forked process what the interpreter does for `python -m`."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    multiprocessing.set_start_method(None, force=True)  # that of a program, not of its fork server
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # torchrun's handlers
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if output is not None:
        for stream in (1, 2):
            os.dup2(os.open(output, os.O_APPEND | os.O_WRONLY), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    SubprocessHandler._popen = lambda self, words, env: Forked(fork, words, env, os.getcwd(), None)  # type: ignore
    sys.argv = program
    try:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
