"""The exception for a user's mistakes, and helpers for its messages."""

from __future__ import annotations

import difflib
import errno
import shutil
import traceback
from collections.abc import Iterable
from textwrap import shorten

DONE, FAILED, USER_ERROR, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130  # exit codes
SHM_FULL = 2**20  # /dev/shm counts as full with fewer free bytes


class UserError(Exception):
    """A mistake that the user can fix. The message names the value, the reason and the fix; the exit code is 2.

    Args:
        message: may quote files that we did not write, so its control characters are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Locked(Exception):
    """Another process holds a cell; the message names the process."""


def explained(error: Exception) -> Exception:
    """Return a UserError with a fix for a full GPU or a failed data reader; return other errors unchanged.

    Args:
        error: torch's errors are recognised by name, so that torch is not imported.
    """
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader "):
        return _reader_failed(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None and _shm_full():
        return _reader_failed(error)  # no room even for the locks that the processes share
    if isinstance(error, (ConnectionError, EOFError)) and _raised_below("torch.utils.data.dataloader", error):
        return _reader_failed(error)  # a reader died while it passed an image on
    if type(error).__name__ != "OutOfMemoryError":
        return error
    explanation = UserError(
        f"The GPU has too little memory ({shorten(str(error), 160)}). Set train.gradient_checkpointing=true or a "
        "smaller train.micro_batch_size (for answers, a smaller eval.batch_size), or use more GPUs. To see what fits, "
        "run plan with your cards, e.g. gpu=4090x8."
    )
    explanation.__cause__ = error
    return explanation


def _raised_below(module: str, error: Exception) -> bool:
    """Return whether code of a module was running when an error was raised."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == module for frame in frames)


def _shm_full() -> bool:
    try:
        return shutil.disk_usage("/dev/shm").free < SHM_FULL
    except OSError:
        return False


def _reader_failed(error: Exception) -> UserError:
    """Return why the processes that read ahead deliver no images: torch's error and the room in shared memory."""
    try:
        use = shutil.disk_usage("/dev/shm")
        room = f"/dev/shm has {use.free // 2**20} of {use.total // 2**20} MiB free"
    except OSError:
        room = "there is no /dev/shm"
    reason = shorten(str(error), 160) or "one of them ended in the middle of an image"  # EOFError says nothing
    explanation = UserError(
        f"The processes that read images ahead stopped or gave nothing ({reason}); {room}. They pass "
        "images through shared memory, so give it more room (docker run --shm-size=8g). If it has enough, memory ran "
        "out or the disk is too slow. Run the same command to continue from the last saved state."
    )
    explanation.__cause__ = error
    return explanation


def did_you_mean(value: str, valid: Iterable[str]) -> str:
    """Return ' Did you mean X?' with the nearest valid name, and the list of all valid names.

    Args:
        value: what the user wrote.
        valid: every accepted name.

    Returns:
        Sentences to append to an error message.
    """
    names = sorted(valid)
    # A typing error, or the beginning of a longer name. Shared letters alone (lora, tailor) are no reason to guess.
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.65)
    near = near or [name for name in names if len(value) > 2 and name.startswith(value)]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Valid: {', '.join(names)}."


def counted(number: int, word: str) -> str:
    """Return a number with its noun, singular or plural: '1 cell', '2 cells'."""
    return f"{number} {word}{'s' * (number != 1)}"


def printable(text: str) -> str:
    """Return text with control characters (also Unicode's) escaped, so that a terminal shows but does not obey them."""
    def shown(letter: str) -> str:
        return letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode()

    return "".join(map(shown, text))
