"""From a plan to finished cells: data first, then cell after cell. A failed cell does not stop the others."""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

from benchmark.config.request import Request
from benchmark.core import signals, temporary
from benchmark.core.errors import DONE, FAILED, INTERRUPTED, PREEMPTED, USER_ERROR, Locked, UserError, counted
from benchmark.core.files import sweep
from benchmark.core.hosts import gpus_in_sight
from benchmark.core.progress import Progress, long_work, progress
from benchmark.paper import zero_shot_gate
from benchmark.planning import plan as planning
from benchmark.planning.cost import Costs
from benchmark.planning.plan import Planned
from benchmark.running.endings import Ending, How
from benchmark.running.pool import Pool
from benchmark.running.worker import VISIBLE, Failure, Worker, prepare_process
from benchmark.spec import CellSpec, ProfileSpec, at_root, members
from benchmark.store.cells import Store, short_lock
from benchmark.store.keys import Keys

WAIT_SECONDS = 2.0
LEFTOVER_SECONDS = 3600.0  # no write takes this long: an older part of a file was left by a dead process


@dataclass
class Schedule:
    """Which cell may start: in the plan's order, and after the Full FT cell that a post-hoc cell is made from.

    Args:
        waiting: cells to run.
        finished: ids of finished cells.
        failures: id -> why a cell failed or cannot run.
        running: ids of cells that run now.
    """

    waiting: list[Planned]
    finished: set[str]
    failures: dict[str, Failure] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)

    def ready(self) -> list[Planned]:
        """Return the waiting cells that may start: those whose weights need no other cell that is not finished."""
        return [item for item in self.waiting if self.finished.issuperset(item.needs)]

    def take(self, model: str | None = None) -> Planned | None:
        """Return a cell that may start, of this model if possible; None if no cell may start now."""
        ready = self.ready()
        chosen = next((item for item in ready if item.cell.model.id == model), ready[0] if ready else None)
        if chosen is not None:
            self.waiting.remove(chosen)
            self.running.add(chosen.id)
        return chosen

    def put_back(self, item: Planned) -> None:
        """Put a cell that another process holds behind all other cells."""
        self.running.discard(item.id)
        self.waiting.append(item)

    def settle(self, item: Planned, result: str | Failure) -> list[tuple[Planned, str | Failure]]:
        """Record the result of a cell.

        Returns:
            The cell and every cell that cannot run because of it, each with its result.
        """
        self.running.discard(item.id)
        if not isinstance(result, Failure):
            self.finished.add(item.id)
            return [(item, result)]
        settled: list[tuple[Planned, str | Failure]] = [(item, result)]
        gone = {item.id}
        for other in self.waiting:  # what a cell needs waits in front of it
            if result.model and other.cell.model == item.cell.model:
                settled.append((other, Failure(result.message, user=True, model=True)))
            elif gone.intersection(other.needs):
                settled.append((other, Failure(f"it needs the weights of {item.id}, which failed", result.user)))
            else:
                continue
            gone.add(other.id)
        self.failures |= {gone.id: why for gone, why in settled if isinstance(why, Failure)}
        self.waiting = [other for other in self.waiting if other.id not in self.failures]
        return settled


def run(request: Request, show: Progress | None = None) -> int:
    """Run the unfinished cells of a request. The paper's models are trained only if they pass the zero-shot check.

    Args:
        request: the cells.
        show: progress display; by default bars on a terminal and lines elsewhere.

    Returns:
        Exit code: 0 if all cells are finished; 1 if cells failed; 2 if all of them failed for reasons that the user can
        remove; 75 after SIGTERM or SIGUSR1; 130 after ctrl-C.

    Raises:
        UserError: nothing was started, because a checkpoint or data are missing, the results folder is not writable, or
            there is no GPU. Or nothing was trained, because the zero-shot check failed and gate=stop.
    """
    first = zero_shot_gate.first(request)
    if first is None:
        return _run(request, show)
    code = _run(first, show)
    if code in (PREEMPTED, INTERRUPTED):
        return code
    store = Store(request.results)
    held = zero_shot_gate.hold(first, planning.make(first, store), store)
    failed = {cell.model.id: cell.model.name for cell in first.cells if cell.model.id not in held}
    if failed:
        print(f"Not trained: {', '.join(failed.values())}. The untuned model could not be scored (see above).")
    rest = request.filtered(lambda cell: cell.model.id not in failed)
    return (_run(rest, show) if rest.cells else DONE) or code


def _run(request: Request, show: Progress | None) -> int:
    """Run the unfinished cells of a request, without the zero-shot check; see `run`."""
    store = Store(request.results)
    sources = sum(members(cell) for cell in request.cells if cell.method.posthoc)
    workers = min(request.jobs, max(1, len(request.cells) + sources))
    show = show or progress(workers)
    schedule: Schedule | None = None
    try:
        with signals.raising():
            temporary.settle()  # before any worker starts: workers inherit TMPDIR
            store.check_writable()
            sweep(store.root, LEFTOVER_SECONDS)
            prepare(request, show)
            planning.check_inputs(request.cells)
            with long_work("checking the data") as report:
                plan = planning.make(request, store, told=report)
            if _reopen(plan, store):
                plan = planning.make(request, store)
            left = [item for item in plan if not item.done]
            costs = Costs(store, request.profile)
            store.check_writable(costs.megabytes([item.missing for item in left]))
            print(planning.totals(plan, request, costs), flush=True)
            schedule = Schedule(left, {item.id for item in plan if item.done})
            if left:
                cells = {item.id: item.cell for item in plan}
                show.begin({
                    item.id: {stage: costs.seconds(item.cell, [stage]) for stage in item.missing} for item in left
                })
                if workers == 1:
                    _one_by_one(request, schedule, cells, store, show)
                else:
                    _several(request, schedule, cells, store, show, workers)
    except (KeyboardInterrupt, signals.Terminated) as stop:
        show.end()
        done = len(schedule.finished) if schedule else 0
        print(
            f"Stopped. Finished cells ({done}) are kept in {store.cells}. Run the same command to continue.",
            flush=True,
        )
        return PREEMPTED if isinstance(stop, signals.Terminated) else INTERRUPTED
    finally:
        show.end()
    deleted = [
        item.id for item in plan
        if item.id in schedule.finished and item.keys is not None and _lost(item.cell, item.keys, store)
    ]
    reason = Failure("finished, but its results were deleted while other cells ran", user=True)
    return _verdict(schedule.failures | dict.fromkeys(deleted, reason), store)


def _lost(cell: CellSpec, keys: Keys, store: Store) -> set[str]:
    """Return the stages of a finished cell whose files have gone.

    Another run may have evaluated an untuned model on more datasets meanwhile, and so have another summary.
    """
    return set(store.missing(cell, keys)) - ({"summary"} if cell.train is None else set())


def _reopen(plan: Sequence[Planned], store: Store) -> bool:
    """Run restored cells again whose weights a post-hoc cell needs; return whether there are any."""
    needed = {source for item in plan if "train" in item.missing for source in item.needs}
    without = [item.cell for item in plan if item.id in needed and store.lacks_weights(item.cell)]
    for cell in without:
        store.reopen(cell)
    return bool(without)


def _verdict(failures: dict[str, Failure], store: Store) -> int:
    """Print which cells failed, each reason once, and return the exit code."""
    if not failures:
        return DONE
    reasons: dict[str, list[str]] = {}
    for name, failure in failures.items():
        reasons.setdefault(failure.message, []).append(name)
    count = counted(len(failures), "cell")
    print(f"{count} failed; finished cells are kept. Fix the reason, then run the same command again.")
    for message, names in reasons.items():
        print(f"  {message}\n    in: {', '.join(names)}")
    if not all(failure.user for failure in failures.values()):
        print(f"  Tracebacks are in {store.cells}/<cell>/status.json.", flush=True)
        return FAILED
    return USER_ERROR


# ---------------------------------------------------------------------------------------------------------------
# Data


def prepare(request: Request, show: Progress) -> None:
    """Draw a profile's data if it can draw them. A data folder of the user's own is never written to.

    Raises:
        UserError: the data folder cannot be written.
    """
    profile = request.profile
    for root in sorted({cell.data_root for cell in request.cells}):
        if profile.prepare and root == f"data/{profile.id}":
            draw(profile, root, show)
            if profile.prepare_generic and any(cell.generic for cell in request.cells):
                _draw(profile.prepare_generic, root, show)


def draw(profile: ProfileSpec, root: str, show: Progress) -> None:
    """Draw the data of a profile that are missing or stale.

    Args:
        profile: names the object that draws as "module:object" (`benchmark.pocket.world.suite`).
        root: data folder.
        show: progress display.

    Raises:
        UserError: the profile draws no data, or the folder cannot be written.
    """
    if profile.prepare is None:
        raise UserError(f"Profile {profile.id} has no data of its own to draw. Put the official files into {root}.")
    _draw(profile.prepare, root, show)


def _draw(hook: str, root: str, show: Progress) -> None:
    """Let the object that "module:object" names draw what is missing."""
    module, _, name = hook.partition(":")
    suite, folder = getattr(importlib.import_module(module), name), at_root(root)
    if suite.complete(folder):  # before the lock: the data may be another user's, or on a read-only disk
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot create {folder}: {error.strerror}. Give a writable data_root=dir.") from error

    def report(done: int, total: int, name: str) -> None:
        if name and not (folder / name).exists() and done < total:
            show.note(f"Drawing {name} into {root} ({done + 1} of {total}, only once)")

    # Two runs may start together on a new machine. The second waits, and then finds the data complete.
    with short_lock(folder / ".lock", lambda: show.note(f"Waiting for another command that draws into {root}")):
        for leftover in folder.glob(".*.[0-9]*"):  # of a killed process: no other process draws under this lock
            shutil.rmtree(leftover, ignore_errors=True)
        suite.draw(folder, on_progress=report)


# ---------------------------------------------------------------------------------------------------------------
# Cells


def _task(item: Planned, cells: dict[str, CellSpec]) -> tuple[CellSpec, Any, list[CellSpec]]:
    return item.cell, item.keys, [cells[source] for source in item.needs]


def _settle(schedule: Schedule, item: Planned, result: str | Failure, show: Progress) -> None:
    """Record a result and show it. A reason is shown shortened and once; the end of the run prints it in full."""
    shown = {failure.message for failure in schedule.failures.values()}
    for done, outcome in schedule.settle(item, result):
        if not isinstance(outcome, Failure):
            show.finished(done.id, outcome)
        elif outcome.message in shown:
            show.finished(done.id, "FAILED, for the same reason")
        else:
            shown.add(outcome.message)
            show.finished(done.id, f"FAILED: {shorten(outcome.message, 100)}")


def _one_by_one(
    request: Request, schedule: Schedule, cells: dict[str, CellSpec], store: Store, show: Progress
) -> None:
    """Run cells in this process."""
    place = request.cells[0]
    prepare_process(place.threads, place.device, request.gpus[0] if request.gpus else None)
    worker, waited = Worker(store), set()
    while (item := schedule.take()) is not None:
        signals.check()
        show.cell(item.id)
        try:
            result = worker.run(*_task(item, cells), _step(show, item.id))
        except Locked as owner:
            schedule.put_back(item)
            if item.id not in waited:
                waited.add(item.id)
                show.note(f"{item.id}: {owner} is running it. Trying again later")
            if all(other.id in waited for other in schedule.ready()):
                time.sleep(WAIT_SECONDS)
            continue
        _settle(schedule, item, result, show)


def _step(show: Progress, name: str) -> Any:
    def step(stage: str, done: int, total: int, info: str) -> None:
        signals.check()
        show.step(name, stage, done, total, info)

    return step


def _several(
    request: Request, schedule: Schedule, cells: dict[str, CellSpec], store: Store, show: Progress, workers: int
) -> None:
    """Run cells in worker processes."""
    place = request.cells[0]
    gpus: tuple[int | str, ...] = request.gpus
    if place.device == "cuda" and not gpus:
        gpus = gpus_in_sight(VISIBLE)  # one worker per GPU; more workers share GPUs
    pool = Pool(min(workers, len(schedule.waiting)), store, place.threads, place.device, gpus)
    tasks: dict[int, Planned] = {}
    models: dict[int, str] = {}
    not_before: dict[str, float] = {}

    def handle(index: int, message: tuple[Any, ...]) -> None:
        kind, *content = message
        item = tasks[index]
        if kind == "step":
            stage, done, total, info = content
            show.step(item.id, stage, done, total, info)
            return
        pool.idle.add(index)
        if kind == "locked":
            schedule.put_back(item)
            if item.id not in not_before:
                show.note(f"{item.id}: {content[0]} is running it. Trying again later")
            not_before[item.id] = time.monotonic() + WAIT_SECONDS
        elif kind == "stop":
            raise UserError(content[0])
        elif kind == "died":
            ending: Ending = content[0]
            died = ending.sentence("its process")
            died += ". To use less memory, lower JOBS (jobs=)" if ending.how in (How.MEMORY, How.KILLED) else ""
            store.finish(item.cell, "failed", {"message": died, "traceback": ""})
            _settle(schedule, item, Failure(died, user=False), show)
        else:
            _settle(schedule, item, content[0], show)

    try:
        while schedule.waiting or schedule.running:
            for index in sorted(pool.idle):
                item = schedule.take(models.get(index))
                if item is None:
                    break
                if not_before.get(item.id, 0.0) > time.monotonic():
                    schedule.put_back(item)
                    break
                tasks[index], models[index] = item, item.cell.model.id
                show.cell(item.id)
                pool.send(index, _task(item, cells))
            if len(pool.idle) == len(pool):
                time.sleep(WAIT_SECONDS)  # other processes hold all remaining cells
            else:
                pool.receive(1.0, handle)
    finally:
        pool.close()


def rescore(plan: Sequence[Planned], store: Store, show: Progress) -> int:
    """Score saved answers again, without a model.

    Args:
        plan: the cells. Cells without all answers are named and left out.
        store: the results.
        show: progress display.

    Returns:
        The number of cells that were scored.
    """
    worker, count = Worker(store), 0
    for item in plan:
        if item.keys is None or any(stage.startswith(("train", "generate/")) for stage in item.missing):
            show.note(f"{item.id}: some answers are missing. Run the cell first")
            continue
        with store.lock(item.cell):
            for stage, key in item.keys.stages.items():
                if stage.startswith("score/") or stage == "summary":
                    began = time.monotonic()
                    store.start_stage(item.cell, stage, key)
                    worker.stage(stage, item.cell, (), lambda *_: None)
                    store.finish_stage(item.cell, stage, key, time.monotonic() - began)
            worker.rescored(item.cell)
        count += 1
        show.note(f"{item.id}: scored")
    return count
