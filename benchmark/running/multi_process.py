"""Run a cell of a zero engine or fsdp2 in several processes, which torchrun starts, or DeepSpeed on several hosts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.core import signals
from benchmark.core.errors import UserError
from benchmark.core.files import lock, write_atomic
from benchmark.core.hosts import gpus_in_sight, world_size
from benchmark.core.variables import neutralise
from benchmark.running.endings import Ending, How, cause, forget, memory_kills, noted, of_exit
from benchmark.spec import ROOT, WORK, CellSpec

STOP = "stop"      # when this file appears, the processes save their state and end
PATIENCE = 900.0   # seconds for that
GRACE = 60.0       # seconds for the launcher to end the processes and itself
POLL = 1.0
IMAGES = "images-{}.json"  # images that a process, by its number, has read before its first step
Told = Callable[[int, int, Mapping[str, Any]], None]
Counted = Callable[[int, int], None]


def train_together(
    cell: CellSpec, folder: Path, visible: str | None, steps: int = 0, told: Told | None = None,
    images: Counted | None = None,
) -> None:
    """Train a cell in as many processes as it names, and report their progress.

    Args:
        cell: with engine, processes, devices and hostfile.
        folder: the cell's, with cell.yaml. It gets the files that train writes and train.log, the processes' output.
        visible: the user's CUDA_VISIBLE_DEVICES.
        steps: optimizer steps of the whole training.
        told: callback (step, steps, row of train.jsonl).
        images: callback (images that the slowest process has read before the first step, total).

    Raises:
        UserError, Preempted, TrainingFailed, RuntimeError: see _launch.
    """
    rows, shown = folder / "train.jsonl", 0

    def watch() -> None:
        nonlocal shown
        if images is not None and not shown and (read := _images(folder)):
            images(*min(read))
        shown = _show(rows, shown, steps, told)

    _launch(cell, folder, visible, "train", watch)


def answer_together(
    cell: CellSpec, folder: Path, visible: str | None, dataset: str, ids: Sequence[str], told: Counted | None = None,
    images: Counted | None = None,
) -> None:
    """Answer a dataset in as many processes as the cell names. Each writes a part; the parts are joined at the end.

    Args:
        cell: with engine, processes, devices and hostfile.
        folder: the cell's, with cell.yaml and delta.safetensors.
        visible: the user's CUDA_VISIBLE_DEVICES.
        dataset: its id.
        ids: ids of its items, in order.
        told: callback (answered items, total).
        images: callback (images that all processes have read before the first answer, total).

    Raises:
        UserError, RuntimeError: see _launch.
    """
    def watch() -> None:
        answered, read = sum(_lines(path) for path in parts_of(folder, dataset)), _images(folder)
        if images is not None and any(done < total for done, total in read):
            images(*map(sum, zip(*read, strict=True)))
        elif told is not None:
            told(answered, len(ids))

    try:
        _launch(cell, folder, visible, f"generate/{dataset}", watch)
    finally:
        join_parts(folder, dataset, ids)


def parts_of(folder: Path, dataset: str) -> list[Path]:
    """Return the files that the processes wrote their answers to."""
    return sorted((folder / "answers").glob(f"{dataset}.part*.jsonl"))


def join_parts(folder: Path, dataset: str, ids: Sequence[str]) -> None:
    """Join the parts of a dataset's answers and its earlier answers into one file, in the order of the items."""
    whole = folder / "answers" / f"{dataset}.jsonl"
    parts = parts_of(folder, dataset)
    answers: dict[str, str] = {}
    for path in (whole, *parts):
        answers |= answer_lines(path)
    if answers:
        write_atomic(whole, "".join(f"{answers[name]}\n" for name in ids if name in answers))
    for path in parts:
        path.unlink()


def answer_lines(path: Path) -> dict[str, str]:
    """Return the lines of an answer file by item id; empty without a file. A line that a kill cut off is left out."""
    lines = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            lines[json.loads(line)["item_id"]] = line
    return lines


def _launch(cell: CellSpec, folder: Path, visible: str | None, stage: str, watch: Callable[[], None]) -> None:
    """Start the processes of a stage and wait until they end.

    Raises:
        UserError: a process refused its input.
        Preempted, TrainingFailed: as train raises them.
        RuntimeError: a process died; the message has the end of the log.
    """
    processes = processes_of(cell, visible)
    log, kills = folder / f"{stage.partition('/')[0]}.log", memory_kills()
    with open(log, "a") as output:
        # The processes inherit this lock. If this process is killed, the lock is held until the last one ends.
        lock(output, PATIENCE + GRACE)
        output.truncate(0)
        _clear(folder)
        # In a new session: ctrl-C then reaches only this process, which lets the others save their state.
        process = subprocess.Popen(
            command(cell, folder, processes, stage), cwd=WORK, env=environment(cell, visible), stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )
        try:
            while process.poll() is None:
                watch()
                time.sleep(POLL)
        except BaseException as error:
            (folder / STOP).touch()
            _end(process)
            if process.returncode != 0 or {ending.how for ending in noted(folder).values()} != {How.DONE}:
                raise
            signals.note(error)  # the processes had finished already
        finally:
            (folder / STOP).unlink(missing_ok=True)
    watch()
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("warning: the training state"):
            print(line, flush=True)
    together = world_size(cell.processes if cell.hostfile else processes, cell.hostfile)
    ending = cause(noted(folder), of_exit(process.returncode, kills), together)
    _clear(folder)
    _raise(ending, log)


def _clear(folder: Path) -> None:
    """Delete the files through which the processes of a cell talk to this one."""
    forget(folder)
    for old in (*folder.glob(IMAGES.format("*")), folder / STOP):
        old.unlink(missing_ok=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for processes that were asked to stop. If they take too long, end their launcher.

    The processes then notice that it is gone, and stop too.
    """
    for seconds, stronger in ((PATIENCE, process.terminate), (GRACE, process.kill), (GRACE, None)):
        try:
            process.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            if stronger is not None:
                stronger()


def command(cell: CellSpec, folder: Path, processes: int, stage: str) -> list[str]:
    """Return the command line that starts the processes on this machine, or on the machines of the hostfile."""
    body = ["benchmark.running.rank", str(folder), stage]
    if cell.hostfile:
        count = ["--num_gpus", str(processes)] if cell.processes else []
        return [
            sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", cell.hostfile, *count, "--no_local_rank",
            "--module", *body,
        ]
    return [
        sys.executable, "-m", "benchmark.running.torchrun", str(folder),
        "--standalone", "--nproc-per-node", str(processes), "-m", *body,
    ]


def environment(cell: CellSpec, visible: str | None) -> dict[str, str]:
    """Return the environment of the processes, with their GPUs: the named ones, else the user's; none on a CPU."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    values = {**os.environ, "PYTHONPATH": path, "DS_ACCELERATOR": cell.device}
    neutralise(values, launched=False)
    values.pop("CUDA_VISIBLE_DEVICES", None)
    values.pop("OMP_NUM_THREADS", None)  # torchrun would use it; each process sets its own threads
    if cell.device == "cpu":
        values["CUDA_VISIBLE_DEVICES"] = ""
    elif cell.devices:
        values["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, cell.devices))
    elif visible is not None:
        values["CUDA_VISIBLE_DEVICES"] = visible
    return values


def processes_of(cell: CellSpec, visible: str | None) -> int:
    """Return the number of processes per machine: the cell's, else one per GPU; one on a CPU."""
    if cell.processes:
        return cell.processes
    if cell.device == "cpu" or cell.hostfile:
        return 1
    return len(gpus_in_sight(visible))


def _show(rows: Path, shown: int, steps: int, told: Told | None) -> int:
    """Report the newest row of the training log; return its step."""
    try:
        line = rows.read_text().rstrip("\n").rpartition("\n")[2]
        row = json.loads(line)
        step = int(row["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return shown
    if told is not None and step > shown:
        told(step, max(steps, step), row)
    return step


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def _images(folder: Path) -> list[tuple[int, int]]:
    """Return (images read, total) of every process that reads images."""
    counts = []
    for path in folder.glob(IMAGES.format("*")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            done, total = json.loads(path.read_text())
            counts.append((int(done), int(total)))
    return counts


def _raise(ending: Ending, log: Path) -> None:
    """Raise the error that fits how the processes ended; an error that the user cannot fix names the log."""
    if ending.how is How.DONE:
        return
    if ending.how is How.REFUSED:
        raise UserError(ending.message)
    if ending.how is How.PREEMPTED:
        raise signals.Preempted(ending.message)
    if ending.how is How.DIVERGED:
        from benchmark.training.trainer import TrainingFailed

        raise TrainingFailed(ending.message)
    why = ending.message or log.read_text(errors="replace")[-2000:] or "the processes ended without an error message"
    raise RuntimeError(f"{log.stem} failed: {why} (see {log})")
