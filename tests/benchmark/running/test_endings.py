"""How processes ended: what is noted of it, which ending explains the others, and how it is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from torch import distributed

from benchmark.core.errors import UserError
from benchmark.core.signals import Preempted, Terminated
from benchmark.running import endings
from benchmark.running.endings import Ending, How, cause, forget, note, noted, of_error, of_exit

FAILED_LAUNCH = Ending(How.EXITED, number=1)
DONE, SAVED = Ending(How.DONE), Ending(How.PREEMPTED, "saved")
KILLED, CUDA = Ending(How.KILLED, number=9), Ending(How.FAILED, "RuntimeError: CUDA error")
GLOO, MISSED = Ending(How.FAILED, "RuntimeError: Connection closed by peer"), Ending(How.LOST, "DistError: closed")


def test_a_note_is_read_as_it_was_written(tmp_path):
    for number, ending in ((0, MISSED), (11, KILLED)):
        note(tmp_path, number, ending)
    (tmp_path / endings.NOTE.format(2)).write_text("{")  # what a kill left
    assert noted(tmp_path) == {0: MISSED, 11: KILLED}
    forget(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("known", "launcher", "expected"), [
    ({0: DONE, 1: DONE}, DONE, (How.DONE, "")),
    ({}, DONE, (How.DONE, "")),
    ({0: SAVED, 1: SAVED}, DONE, (How.PREEMPTED, "saved")),
    ({0: SAVED, 1: Ending(How.REFUSED, "no such file")}, FAILED_LAUNCH, (How.REFUSED, "no such file")),
    ({0: Ending(How.DIVERGED, "loss nan"), 1: SAVED}, FAILED_LAUNCH, (How.DIVERGED, "loss nan")),
    # One fails while the others load or answer: torchrun tells them to stop, which is not a preemption.
    ({0: SAVED, 1: CUDA}, FAILED_LAUNCH, (How.FAILED, "RuntimeError: CUDA error")),
    ({0: SAVED, 1: CUDA}, DONE, (How.FAILED, "RuntimeError: CUDA error")),
    # Whatever the survivors say when they miss another, and whatever the words of an error are.
    (
        {0: GLOO, 1: KILLED}, FAILED_LAUNCH,
        (How.FAILED, "process 1 of 2 was killed by signal 9 (Killed), perhaps because"),
    ),
    ({0: SAVED, 1: KILLED}, FAILED_LAUNCH, (How.FAILED, "process 1 of 2 was killed by signal 9")),
    ({0: MISSED}, FAILED_LAUNCH, (How.FAILED, "process 1 of 2 ended without an error message; the others stopped")),
    ({0: SAVED}, FAILED_LAUNCH, (How.FAILED, "process 1 of 2 ended without an error message")),
    ({0: Ending(How.FAILED, "OSError: closed by peer")}, FAILED_LAUNCH, (How.FAILED, "OSError: closed by peer")),
    ({}, KILLED, (How.FAILED, "the program that started the processes was killed")),
    ({}, FAILED_LAUNCH, (How.FAILED, "")),  # the log has to tell
])
def test_one_ending_explains_the_others(known, launcher, expected):
    found = cause(known, launcher, 2)
    assert found.how is expected[0]
    assert found.message.startswith(expected[1]) and bool(found.message) == bool(expected[1])


def test_an_exception_has_one_way():
    class TrainingFailed(RuntimeError):
        pass

    def way(error: BaseException) -> How:
        return of_error(error).how

    assert way(UserError("x")) is How.REFUSED and way(TrainingFailed("x")) is How.DIVERGED
    assert way(Preempted("x")) is way(Terminated()) is How.PREEMPTED
    assert way(RuntimeError("waited in vain")) is How.FAILED  # words decide nothing
    assert way(distributed.DistBackendError("x")) is How.LOST
    try:
        try:
            raise distributed.DistNetworkError("closed")
        except RuntimeError as error:
            raise RuntimeError("waited") from error
    except RuntimeError as error:
        assert of_error(error) == Ending(How.LOST, "RuntimeError: waited")


def test_a_kill_is_told_from_an_exit_and_memory_from_another_reason(monkeypatch):
    code = subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).returncode
    kills = endings.memory_kills()
    assert of_exit(code, kills) == KILLED and of_exit(0) == DONE and of_exit(3).number == 3
    monkeypatch.setattr(endings, "memory_kills", lambda: kills + 1)
    assert of_exit(code, kills).sentence("it") == "it was killed by the system, which ran out of memory"
    assert of_exit(-signal.SIGSEGV, kills).sentence("it") == "it was killed by signal 11 (Segmentation fault)"
    assert os.path.exists("/proc/vmstat")
