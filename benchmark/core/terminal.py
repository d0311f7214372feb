"""Output of commands. A stream that is closed, full or not UTF-8 never stops the work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# ASCII of the same width for signs with a meaning, so that columns stay aligned. Other letters become "?".
PLAIN = {
    "↑": "+", "↓": "-", "±": "~", "─": "-", "━": "-", "│": "|", "·": ".", "×": "x", "«": "<", "»": ">", "–": "-",
    "—": "-", "“": '"', "”": '"', "‘": "'", "’": "'",
}


class Output:
    """A text stream that never raises an error when it writes.

    It replaces letters that its encoding lacks. After an error (a closed pipe, a full disk) it drops the rest.

    Args:
        stream: where the text goes.

    Attributes:
        lost: the error after which nothing was written; None without one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, unless the stream has failed."""
        if self.lost is None:
            try:
                self._write(text)
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self.lost = error
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if self.lost is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self.lost = error

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write("".join(map(self._known, text)))

    def _known(self, letter: str) -> str:
        """Return a letter, or its replacement if the stream's encoding lacks it."""
        try:
            letter.encode(self._stream.encoding)
        except UnicodeEncodeError:
            return PLAIN.get(letter, "?")
        return letter


@contextlib.contextmanager
def guarded() -> Iterator[Output]:
    """Replace sys.stdout and sys.stderr, each with an `Output`.

    Yields:
        The output of sys.stdout; at the end of the block its `lost` tells whether everything was written.
    """
    _open_descriptors()
    with contextlib.ExitStack() as stack:
        nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # Python sets a closed stream to None
        output, errors = Output(sys.stdout or nothing), Output(sys.stderr or nothing)
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        try:
            yield output
        finally:
            output.flush()
            errors.flush()


def discard_rest() -> None:
    """Drop text that cannot be written. Otherwise Python tries again at its end and changes the exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:  # closed: its buffer is empty
            pass


def _open_descriptors() -> None:
    """Open the null device in place of a closed stdin, stdout or stderr.

    Otherwise the next file that is opened, perhaps a result, gets its number, and a child process prints into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
