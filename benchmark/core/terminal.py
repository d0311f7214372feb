"""Everything that a command prints passes here: an output that is closed, full or not UTF-8 never stops the work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# Signs that mean something, with ASCII of the same width, so that columns stay aligned. Other letters become "?".
PLAIN = {
    "↑": "+", "↓": "-", "±": "~", "─": "-", "━": "-", "│": "|", "·": ".", "×": "x", "«": "<", "»": ">", "–": "-",
    "—": "-", "“": '"', "”": '"', "‘": "'", "’": "'",
}


class Output:
    """A text stream that raises nothing for what it cannot write.

    It replaces letters that its encoding lacks. After an error, as of a closed pipe or a full disk, it drops the rest.

    Args:
        stream: where the text goes.

    Attributes:
        lost: the error after which nothing more was written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text as far as the stream takes it."""
        if self.lost is None:
            try:
                self._write(text)
            except (OSError, ValueError) as error:  # ValueError: somebody closed it
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
        """Return a letter as the stream's encoding can write it."""
        try:
            letter.encode(self._stream.encoding)
        except UnicodeEncodeError:
            return PLAIN.get(letter, "?")
        return letter


@contextlib.contextmanager
def guarded() -> Iterator[Output]:
    """Put an `Output` in place of sys.stdout and one in place of sys.stderr.

    Yields:
        The one of sys.stdout; when the block ends, it knows whether all that was printed arrived.
    """
    _open_descriptors()
    with contextlib.ExitStack() as stack:
        nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # Python has None for a closed stream
        output, errors = Output(sys.stdout or nothing), Output(sys.stderr or nothing)
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(errors))
        try:
            yield output
        finally:
            output.flush()
            errors.flush()


def discard_rest() -> None:
    """Drop what cannot be written, so that Python does not try again as it ends and change the exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:  # closed: nothing is left in it
            pass


def _open_descriptors() -> None:
    """Open the null device in place of a closed stdin, stdout or stderr.

    Otherwise the next file that is opened, a result perhaps, takes its number, and what a child process prints lands in
    that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
