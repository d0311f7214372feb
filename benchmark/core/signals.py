"""SIGTERM and SIGUSR1 ask the program to stop. A training saves its state; other work stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

PREEMPTING = (signal.SIGTERM, signal.SIGUSR1)
_inside: list[None] = []  # one entry per active `raising`
_noticed: list[int] = []  # signals since the outermost `raising` began
_of_children: list[Any] = []  # the handler of SIGCHLD when the last `children_watched` ended


class Terminated(BaseException):
    """A signal asked this process to stop (exit code 75). No Exception, so that it is not taken for a failed cell."""


class Preempted(Terminated):
    """Terminated after the training state was saved; the same command continues from it."""


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Turn the first SIGTERM or SIGUSR1 into Terminated. Later signals are ignored, so that the cleanup can finish.

    It may be nested. It does nothing outside the main thread, where Python allows no signal handlers.
    """
    def stop(number: int, *_: Any) -> None:
        _noticed.append(number)
        if len(_noticed) == 1:
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {number: signal.signal(number, stop) for number in PREEMPTING}
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
    """Collect SIGTERM, SIGUSR1 and the first ctrl-C in a list instead of stopping; a second ctrl-C stops at once.

    Where ctrl-C is ignored, as in worker processes, it stays ignored. The next `check` raises a signal that the block
    did not react to, after the block's work has been recorded.
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
            print("Stopping after this step with the training state saved. Ctrl-C again stops at once.", flush=True)

    numbers = [*PREEMPTING, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) != signal.SIG_IGN else [])]
    previous: dict[int, Any] = {number: signal.signal(number, note) for number in numbers}
    try:
        yield found
    finally:
        _restore(previous)


@contextlib.contextmanager
def children_watched() -> Iterator[None]:
    """Let a handler of SIGCHLD that is set inside, such as torch's, act inside only.

    torch raises from it when a process that reads images dies. After the block that would disturb what handles an
    error, perhaps the very error that the same death has caused. torch sets its handler once per process, so the next
    block starts with the handler that the last one ended with.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outside = signal.signal(signal.SIGCHLD, _of_children.pop() if _of_children else signal.getsignal(signal.SIGCHLD))
    try:
        yield
    finally:
        _of_children[:] = [signal.signal(signal.SIGCHLD, outside)]


def stopped(found: list[int], message: str = "") -> BaseException:
    """Return the exception for signals that `noting` collected."""
    return KeyboardInterrupt(message) if signal.SIGINT in found else Preempted(message)


def check() -> None:
    """Raise for a signal that has had no effect so far: one at the end of a training, or inside a destructor.

    Raises:
        Terminated, KeyboardInterrupt: a signal has arrived.
    """
    if _noticed:
        raise KeyboardInterrupt if signal.SIGINT in _noticed else Terminated


def note(error: BaseException) -> None:
    """Keep a signal's exception for the next `check`, because the current work finished in spite of it."""
    _noticed.append(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
