"""How the processes of a cell ended, as data: notes in the cell's folder, what follows from them, and the wording."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from benchmark.core.errors import UserError, explained
from benchmark.core.files import write_atomic
from benchmark.core.signals import Terminated

NOTE = "outcome-{}.json"  # how a process ended, by its number


class How(StrEnum):
    """The ways a process can end."""

    DONE = "done"
    PREEMPTED = "preempted"  # asked to stop; a training has saved its state
    REFUSED = "refused"      # a mistake that the user can fix
    DIVERGED = "diverged"    # loss or gradient not finite
    FAILED = "failed"        # any other exception
    LOST = "lost"            # waited for another process that had died
    KILLED = "killed"        # killed by a signal
    MEMORY = "memory"        # killed by the system, which ran out of memory
    EXITED = "exited"        # without an exception


@dataclass(frozen=True)
class Ending:
    """How one process ended.

    Attributes:
        how: the way.
        message: the exception's, if there was one.
        number: the signal or the exit code; 0 if unknown.
    """

    how: How
    message: str = ""
    number: int = 0

    def sentence(self, subject: str) -> str:
        """Return what happened to a process: "process 1 was killed by signal 9 (Killed)", or just the exception."""
        if self.how is How.MEMORY:
            return f"{subject} was killed by the system, which ran out of memory"
        if self.how is How.KILLED:
            hint = ", perhaps because memory ran out (see dmesg)" if self.number == signal.SIGKILL else ""
            return f"{subject} was killed by signal {self.number} ({signal.strsignal(self.number)}){hint}"
        if self.how is How.EXITED:
            return f"{subject} ended without an error message" + (f" (exit code {self.number})" if self.number else "")
        return self.message


def of_error(error: BaseException) -> Ending:
    """Return the ending of a process that an exception ended."""
    error = explained(error) if isinstance(error, Exception) else error
    if isinstance(error, UserError):
        return Ending(How.REFUSED, str(error))
    if isinstance(error, Terminated):
        return Ending(How.PREEMPTED, str(error))
    if type(error).__name__ == "TrainingFailed":  # by name: its module would import torch and transformers
        return Ending(How.DIVERGED, str(error))
    return Ending(How.LOST if _misses_another(error) else How.FAILED, f"{type(error).__name__}: {error}")


def _misses_another(error: BaseException) -> bool:
    """Return whether torch reports that another process, or the connection to it, is lost."""
    torch = sys.modules.get("torch.distributed")
    chain: BaseException | None = error
    while torch is not None and chain is not None:
        if isinstance(chain, torch.DistError):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def of_exit(code: int | None, kills: int = 0) -> Ending:
    """Return the ending of a process from its exit code alone.

    Args:
        code: as subprocess and multiprocessing give it, e.g. -9 for signal 9; None if unknown.
        kills: the value of `memory_kills` when the process started.
    """
    if code is None or code >= 0:
        return Ending(How.DONE if code == 0 else How.EXITED, number=code or 0)
    memory = code == -signal.SIGKILL and memory_kills() > kills
    return Ending(How.MEMORY if memory else How.KILLED, number=-code)


def memory_kills() -> int:
    """Return how many processes the system has killed for lack of memory since it started; 0 if it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def note(folder: Path, process: int, ending: Ending) -> None:
    """Write into a cell's folder how a process ended.

    Raises:
        UserError: the folder cannot be written.
    """
    write_atomic(folder / NOTE.format(process), json.dumps(asdict(ending)))


def noted(folder: Path) -> dict[int, Ending]:
    """Return number of a process -> how it ended, for the processes that left a note."""
    endings = {}
    for path in folder.glob(NOTE.format("*")):
        try:
            content = json.loads(path.read_text())
            number = int(path.stem.rpartition("-")[2])
            endings[number] = Ending(How(content["how"]), str(content["message"]), int(content["number"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return dict(sorted(endings.items()))


def forget(folder: Path) -> None:
    """Delete the notes."""
    for path in folder.glob(NOTE.format("*")):
        path.unlink(missing_ok=True)


def cause(endings: Mapping[int, Ending], launcher: Ending, processes: int) -> Ending:
    """Return why processes that worked together ended.

    When one fails or dies, the others are asked to stop and note a preemption, or they lose the connection to it and
    note that. Neither is the cause.

    Args:
        endings: number of a process -> its ending, where known.
        launcher: ending of the program that started the processes.
        processes: their number; 0 if unknown.

    Returns:
        DONE or PREEMPTED if that holds for all. REFUSED or DIVERGED if it holds for one. Otherwise FAILED, with the
        deaths or errors that explain the other endings, or without a message.
    """
    def those(*ways: How) -> dict[int, Ending]:
        return {number: ending for number, ending in endings.items() if ending.how in ways}

    refused = those(How.REFUSED) or those(How.DIVERGED)
    if refused:
        return next(iter(refused.values()))
    failed, preempted = those(How.FAILED) or those(How.LOST), those(How.PREEMPTED)
    if launcher.how is How.DONE and len(those(How.DONE)) + len(preempted) == len(endings):
        return next(iter(preempted.values()), Ending(How.DONE))
    silent = {number: Ending(How.EXITED) for number in range(processes) if endings and number not in endings}
    silent |= those(How.EXITED)
    if gone := those(How.KILLED, How.MEMORY) or (silent if not those(How.FAILED) else {}):
        deaths = "; ".join(ending.sentence(f"process {number} of {processes}") for number, ending in gone.items())
        deaths += "; the others stopped" if len(gone) < processes else ""
        return Ending(How.FAILED, f"{deaths}. Run the same command to continue from the last saved state")
    if failed:
        return Ending(How.FAILED, "; ".join(ending.message for ending in failed.values()))
    killed = launcher.how in (How.KILLED, How.MEMORY)
    return Ending(How.FAILED, launcher.sentence("the program that started the processes") if killed else "")
