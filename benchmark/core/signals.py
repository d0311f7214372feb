"""SIGTERM and SIGUSR1: the machine is wanted back. Training saves its state, everything else stops where it is."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

PREEMPTING = (signal.SIGTERM, signal.SIGUSR1)
_inside: list[None] = []  # one per `raising` that we are in
_noticed: list[int] = []  # signals that arrived since the outermost began


class Terminated(BaseException):
    """The machine is wanted back (exit code 75). Not an Exception, so that nothing mistakes it for a failed cell."""


class Preempted(Terminated):
    """The same, after the training state was saved; the same command continues from it."""


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Turn the first SIGTERM or SIGUSR1 into Terminated; later ones would only disturb the cleaning up.

    Nested use is fine; outside the main thread, where Python allows no handlers, it does nothing.
    """
    def stop(number: int, *_: Any) -> None:
        _noticed.append(number)
        if len(_noticed) == 1:
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in PREEMPTING}
    if not _inside:
        _noticed.clear()
    _inside.append(None)
    try:
        yield
    finally:
        _inside.pop()
        _restore(previous)


@contextlib.contextmanager
def noting() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGUSR1 and the first ctrl-C in a list instead of stopping at once; a second ctrl-C stops.

    Ctrl-C is left alone where it is ignored, as in worker processes, whose parent answers it. A signal that the block
    had no more use for is raised by the next `check`, when the work of the block has been recorded.
    """
    found: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def note(number: int, *_: Any) -> None:
        found.append(number)
        _noticed.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            print("Stopping after this step, with the training state saved; ctrl-C again stops at once.", flush=True)

    numbers = [*PREEMPTING, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) != signal.SIG_IGN else [])]
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield found
    finally:
        _restore(previous)


def stopped(found: list[int], message: str = "") -> BaseException:
    """Return what to raise for signals that `noting` collected."""
    return KeyboardInterrupt(message) if signal.SIGINT in found else Preempted(message)


def check() -> None:
    """Raise what a signal asked for if it came to nothing: at the end of a training, or inside a destructor.

    Raises:
        Terminated, KeyboardInterrupt: a signal has arrived.
    """
    if _noticed:
        raise KeyboardInterrupt if signal.SIGINT in _noticed else Terminated


def note(error: BaseException) -> None:
    """Keep for the next `check` what a signal raised, because the work at hand was finished all the same."""
    _noticed.append(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
