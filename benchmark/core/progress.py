"""What the user sees during a run or another long task: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol, TextIO

QUIET_SECONDS = 30.0  # between two lines about one cell, without bars
StageTold = Callable[[str, int, int], None]  # callback (stage, done, total)
Told = Callable[[int, int], None]  # callback (done, total)

_READING: ContextVar[Told | None] = ContextVar("reading", default=None)


class Progress(Protocol):
    """A progress display, which the runner calls."""

    def begin(self, cells: Mapping[str, Mapping[str, float]]) -> None:
        """The run starts with these cells and the seconds that each of their stages is expected to take."""

    def cell(self, cell: str) -> None:
        """A cell starts."""

    def step(self, cell: str, stage: str, done: int, total: int, info: str = "") -> None:
        """A stage of a cell has made progress."""

    def finished(self, cell: str, text: str) -> None:
        """A cell is finished or has failed."""

    def note(self, text: str) -> None:
        """Something else happened."""

    def end(self) -> None:
        """The run is over."""


class Clock:
    """Elapsed time and time left, from the expected and the measured times of cells.

    Args:
        workers: cells that run at the same time.
    """

    def __init__(self, workers: int = 1) -> None:
        self.started = time.monotonic()
        self._workers = workers
        self._expected: dict[str, Mapping[str, float]] = {}
        self._running: dict[str, float] = {}
        self._later: dict[str, dict[str, float]] = {}  # running cell -> its expected stages that are not measured yet
        self._took: dict[tuple[str, str], tuple[float, float]] = {}  # seconds expected and seconds taken
        self._stages: dict[str, tuple[tuple[str, int], int, float]] = {}
        self._stage_left: dict[str, tuple[float, float]] = {}

    def begin(self, cells: Mapping[str, Mapping[str, float]]) -> None:
        """Start the clock."""
        self.started = time.monotonic()
        self._expected = dict(cells)

    def start(self, cell: str) -> None:
        """A cell starts."""
        self._running[cell] = time.monotonic()
        self._later[cell] = dict(self._expected.get(cell, {}))

    def step(self, cell: str, stage: str, done: int, total: int) -> None:
        """A stage of a cell has made progress. From the second report on, its pace says when it ends.

        If the stage has an expected time, its pace also corrects what is expected of all other stages. The first report
        of a stage, and the first with a new total, starts the measurement. Work of an earlier run that this one resumes
        does not count.
        """
        now = time.monotonic()
        measured, first, began = self._stages.get(cell, (("", 0), 0, now))
        expected = self._expected.get(cell, {})
        if measured != (stage, total) or done < first:
            self._stages[cell] = ((stage, total), done, now)
            self._stage_left.pop(cell, None)
        elif done > first:
            self._stage_left[cell] = (now, (now - began) / (done - first) * max(0, total - done))
            if stage in expected:
                order = [*expected]
                self._later[cell] = {name: expected[name] for name in order[order.index(stage) + 1:]}
                self._took[cell, stage] = (expected[stage] * (done - first) / total, now - began)

    def stop(self, cell: str) -> None:
        """A cell ends."""
        began = self._running.pop(cell, None)
        expected = self._expected.pop(cell, {})
        if began is not None and not any((cell, stage) in self._took for stage in expected):
            self._took[cell, ""] = (sum(expected.values()), time.monotonic() - began)
        self._later.pop(cell, None)
        self._stages.pop(cell, None)
        self._stage_left.pop(cell, None)

    @property
    def elapsed(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float | None:
        """Seconds until the end of the run; None if every expected time has passed and no stage is measured."""
        expected = sum(seconds for seconds, _ in self._took.values())
        pace = sum(seconds for _, seconds in self._took.values()) / expected if expected > 0 else 1.0
        now = time.monotonic()
        rest = 0.0
        for cell, stages in self._expected.items():
            if cell in self._stage_left:
                reported, measured = self._stage_left[cell]
                rest += max(0.0, measured - (now - reported)) + pace * sum(self._later[cell].values())
            else:
                rest += max(0.0, pace * sum(stages.values()) - (now - self._running.get(cell, now)))
        return rest / self._workers if rest > 0 or not self._expected else None

    @property
    def left_text(self) -> str:
        """The time left as text, at least "1 s"; empty if it is unknown or no work remains."""
        left = self.left
        return f", {clock(max(1.0, left))} left" if left is not None and self._expected else ""


class Lines:
    """One line per event with elapsed time and time left, for logs.

    Args:
        workers: cells that run at the same time.
        stream: where to write; standard output by default.
    """

    def __init__(self, workers: int = 1, stream: TextIO | None = None) -> None:
        self._clock = Clock(workers)
        self._stream = stream or sys.stdout
        self._total = self._done = 0
        self._said: dict[str, float] = {}

    def begin(self, cells: Mapping[str, Mapping[str, float]]) -> None:
        self._clock.begin(cells)
        self._total = len(cells)

    def cell(self, cell: str) -> None:
        self._clock.start(cell)
        self._said[cell] = time.monotonic()

    def step(self, cell: str, stage: str, done: int, total: int, info: str = "") -> None:
        self._clock.step(cell, stage, done, total)
        now = time.monotonic()
        if now - self._said.get(cell, now) >= QUIET_SECONDS:
            self._said[cell] = now
            self._say(f"{cell}: {stage} {done:,}/{total:,} {info}".rstrip())

    def finished(self, cell: str, text: str) -> None:
        self._clock.stop(cell)
        self._done += 1
        self._say(f"{self._done}/{self._total} {cell}: {text}")

    def note(self, text: str) -> None:
        self._say(text)

    def end(self) -> None:
        self._stream.flush()

    def _say(self, text: str) -> None:
        print(f"[{clock(self._clock.elapsed)}{self._clock.left_text}] {text}", file=self._stream, flush=True)


class Bars:
    """One bar for all cells with the time left, and one bar per running cell.

    Args:
        workers: cells that run at the same time.
        alone: there is only one task, so its own bar shows the time left.
    """

    def __init__(self, workers: int = 1, alone: bool = False) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._clock = Clock(workers)
        self._bars = RichProgress(
            TextColumn("{task.description}"), BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"), TextColumn("{task.fields[text]}"), transient=True,
        )
        self._cells = self._bars.add_task("cells", total=1, text="")
        self._inner: dict[str, Any] = {}  # rich's TaskID
        self._alone = alone

    def begin(self, cells: Mapping[str, Mapping[str, float]]) -> None:
        self._clock.begin(cells)
        self._bars.update(self._cells, total=max(1, len(cells)), visible=not self._alone)
        self._bars.start()
        self._refresh()

    def cell(self, cell: str) -> None:
        self._clock.start(cell)
        if cell not in self._inner:  # it may have begun already and found the cell locked
            self._inner[cell] = self._bars.add_task(cell, total=1, text="starting")

    def step(self, cell: str, stage: str, done: int, total: int, info: str = "") -> None:
        self._clock.step(cell, stage, done, total)
        if cell in self._inner:
            text = "  ".join(filter(None, [stage, info, self._time if self._alone else ""]))
            self._bars.update(self._inner[cell], completed=done, total=max(1, total), text=text)
        self._refresh()

    def finished(self, cell: str, text: str) -> None:
        self._clock.stop(cell)
        if cell in self._inner:
            self._bars.remove_task(self._inner.pop(cell))
        self._bars.advance(self._cells)
        self._bars.console.print(f"{cell}: {text}", markup=False, highlight=False)
        self._refresh()

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        self._bars.stop()

    def _refresh(self) -> None:
        self._bars.update(self._cells, text=self._time)

    @property
    def _time(self) -> str:
        return f"{clock(self._clock.elapsed)} elapsed{self._clock.left_text}"


def progress(workers: int = 1, alone: bool = False) -> Progress:
    """Return bars on a terminal, lines elsewhere."""
    return Bars(workers, alone) if sys.stdout.isatty() else Lines(workers)


@contextlib.contextmanager
def long_work(what: str) -> Iterator[StageTold]:
    """Show the progress of one long task, as a run shows a cell: a bar, or a line every half minute.

    Args:
        what: name of the task. Each report names a stage; the time left is that of the stage.

    Yields:
        A callback (stage, done, total). Nothing is shown before its first call.
    """
    show: Progress | None = None

    def report(stage: str, done: int, total: int) -> None:
        nonlocal show
        if show is None:
            show = progress(alone=True)
            show.begin({what: {}})
            show.cell(what)
        show.step(what, stage, done, total)

    try:
        yield report
    finally:
        if show is not None:
            show.end()


@contextlib.contextmanager
def images_told(told: Told) -> Iterator[None]:
    """Make `read_image` report how many images a stage has read before its first step.

    Args:
        told: callback (images read, total images).
    """
    token = _READING.set(told)
    try:
        yield
    finally:
        _READING.reset(token)


def read_image(done: int, total: int) -> None:
    """Report how many images are read to the callback of `images_told`, if there is one."""
    if (told := _READING.get()) is not None:
        told(done, total)


def clock(seconds: float) -> str:
    """Return a duration for people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
