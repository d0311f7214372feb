"""The one exception for a user's mistakes, and the 'did you mean' helper used in its messages."""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable
from textwrap import shorten

SHM_FULL = 2**20  # bytes free in /dev/shm, below which it is called full


class UserError(Exception):
    """A mistake the user can fix: the message names the value, the reason and the fix (exit code 2).

    Args:
        message: may quote what strangers wrote; control characters in it are written out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Locked(Exception):
    """Another process works on a cell; the message says which process."""


def explained(error: Exception) -> Exception:
    """Return the error of a full GPU or a failed data reader as a UserError that says what helps; others as they are.

    Args:
        error: torch's, known by its name, so that nothing heavy is imported.
    """
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader "):
        return _reader_failed(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None and _shm_full():
        return _reader_failed(error)  # not even the locks that such processes share found room
    if type(error).__name__ != "OutOfMemoryError":
        return error
    told = UserError(
        f"The GPU has too little memory ({shorten(str(error), 160)}). Set train.gradient_checkpointing=true or a "
        "smaller train.micro_batch_size, for answers a smaller eval.batch_size, or use more GPUs; plan with your "
        "cards, e.g. gpu=4090x8, says what fits."
    )
    told.__cause__ = error
    return told


def _shm_full() -> bool:
    try:
        return shutil.disk_usage("/dev/shm").free < SHM_FULL
    except OSError:
        return False


def _reader_failed(error: Exception) -> UserError:
    """Say why no images come from the processes that read ahead: torch's error and the room in shared memory."""
    try:
        use = shutil.disk_usage("/dev/shm")
        room = f"/dev/shm has {use.free // 2**20} of {use.total // 2**20} MiB free"
    except OSError:
        room = "there is no /dev/shm"
    told = UserError(
        f"The processes that read images ahead stopped or gave nothing ({shorten(str(error), 160)}); {room}. They pass "
        "images through shared memory: give it more room (docker run --shm-size=8g). If it has enough, memory ran out "
        "or the disk is too slow. The same command goes on from what is saved."
    )
    told.__cause__ = error
    return told


def did_you_mean(value: str, valid: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the nearest valid name plus the list of all valid names.

    Args:
        value: what the user wrote.
        valid: every accepted name.

    Returns:
        A sentence that can be appended to an error message.
    """
    names = sorted(valid)
    # A slip, or the beginning of a longer name; what merely shares letters (lora, tailor) is no guess.
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.65)
    near = near or [name for name in names if len(value) > 2 and name.startswith(value)]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Valid: {', '.join(names)}."


def counted(number: int, word: str) -> str:
    """Return a number with its word, which is plural unless the number is 1: '1 cell', '2 cells'."""
    return f"{number} {word}{'s' * (number != 1)}"


def printable(text: str) -> str:
    """Return text that a terminal shows and does not obey: control characters, also those of Unicode, written out."""
    def shown(letter: str) -> str:
        return letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode()

    return "".join(map(shown, text))
