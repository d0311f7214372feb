"""One of the processes that work on a cell together. A launcher runs python -m benchmark.running.rank FOLDER STAGE."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core import signals, temporary, terminal
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.core.progress import Told, images_told
from benchmark.core.variables import neutralise_process
from benchmark.running.endings import Ending, How, note, noted, of_error
from benchmark.running.multi_process import GRACE, IMAGES, PATIENCE, POLL, STOP, answer_lines
from benchmark.spec import CellSpec, EvalSpec, at_root, is_tuned
from benchmark.store.cells import is_held, read_cell, read_lock

if TYPE_CHECKING:
    from benchmark.data.record import Record
    from benchmark.models import LoadedModel


def main(folder: Path, stage: str) -> int:
    """Run a stage of a cell, and note in its folder how the stage ended, for the process that started all.

    Args:
        folder: the cell's, with cell.yaml.
        stage: "train" or "generate/<dataset>".

    Returns:
        Exit code.
    """
    rank = int(os.environ.get("RANK", "0"))
    owner = read_lock(folder / "lock")
    try:
        cell = read_cell(folder)
        _prepare(cell)
        kind, _, dataset = stage.partition("/")
        for number in signals.PREEMPTING:  # a signal after the work must not end this process before its note
            signal.signal(number, signal.SIG_IGN)
        with signals.raising():
            threading.Thread(target=_watch, args=(folder, owner, os.getppid()), daemon=True).start()
            with images_told(_images_in(folder / IMAGES.format(rank))), signals.children_watched():
                _train(cell, folder) if kind == "train" else _generate(cell, folder, dataset, rank)
        ending = Ending(How.DONE)
    except (Exception, signals.Terminated) as error:
        traceback.print_exc()
        ending = of_error(error)
    note(folder, rank, ending)
    if ending.how not in (How.DONE, How.PREEMPTED):
        return 1
    leave_together(folder, int(os.environ.get("WORLD_SIZE", "1")))
    return 0


def leave_together(folder: Path, processes: int, seconds: float = 60.0) -> None:
    """Wait until every process has noted how it ended. Leaving earlier would reset connections that others still read.

    Args:
        folder: the cell's.
        processes: their number.
        seconds: longest wait, because a process that died notes nothing.
    """
    end = time.monotonic() + seconds
    while len(noted(folder)) < processes and time.monotonic() < end:
        time.sleep(0.05)


def _prepare(cell: CellSpec) -> None:
    neutralise_process(launched=True)
    temporary.settle()  # again: this may be another machine
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DS_ACCELERATOR", cell.device)
    import torch

    torch.set_num_threads(cell.threads)
    local, together = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cell.device == "cuda":
        count = torch.cuda.device_count()
        if local >= count:
            raise UserError(
                f"{together} processes need {together} GPUs, but this machine has {count}. Use GPUS={count} "
                f"(gpus={count}). train.batch_size stays the same: each process takes more micro-batches."
            )
        torch.cuda.set_device(local)


def _train(cell: CellSpec, folder: Path) -> None:
    from benchmark import data
    from benchmark.models.loading import load_model
    from benchmark.running.worker import method_of
    from benchmark.training.train import train

    assert is_tuned(cell)
    method = method_of(cell)
    records = data.load(cell.dataset(cell.target), at_root(cell.data_root), "train", cell.train.limit)
    loaded = load_model(cell.model, cell.dtype, cell.device)
    train(cell, loaded, records, method, folder)


def _generate(cell: CellSpec, folder: Path, dataset: str, rank: int) -> None:
    """Answer this process's share of the batches that a single process would make."""
    from benchmark import data
    from benchmark.data import few_shot
    from benchmark.models.loading import how_to_load, load_model
    from benchmark.running.worker import answer

    how, read = cell.eval, partial(data.load, cell.dataset(dataset), at_root(cell.data_root))
    records = few_shot.questions(how.examples, how.split, how.limit, read)
    loaded = load_model(*how_to_load(cell, answering=True))
    mine = share(loaded, records, how, rank, int(os.environ.get("WORLD_SIZE", "1")))
    part = folder / "answers" / f"{dataset}.part{rank}.jsonl"
    ids = {record.item_id for record in mine}
    earlier = answer_lines(folder / "answers" / f"{dataset}.jsonl")  # generate drops answers to other prompts
    write_atomic(part, "".join(f"{line}\n" for name, line in earlier.items() if name in ids))
    if mine:
        answer(cell, loaded, mine, dataset, folder, part)


def _images_in(path: Path) -> Told:
    """Return a callback that writes to a file, every second, how many images are read before the first step."""
    written = 0.0

    def report(done: int, total: int) -> None:
        nonlocal written
        if done == total or time.monotonic() - written >= POLL:
            written = time.monotonic()
            write_atomic(path, json.dumps([done, total]))

    return report


def share(
    loaded: LoadedModel, records: Sequence[Record], how: EvalSpec, rank: int, processes: int
) -> list[Record]:
    """Return the records of batches rank, rank + processes, and so on, as generate cuts and orders batches.

    Args:
        loaded: tokenises the prompts.
        records: the dataset's.
        how: the batch size, and whether images are shared.
        rank: number of this process.
        processes: number of processes.
    """
    from benchmark.models.batch import encode
    from benchmark.training.generate import cut

    images = [record.image if how.share_images and loaded.inputs is None else None for record in records]
    batches = cut([len(encode(loaded, record, False)[0]) for record in records], images, how.batch_size)
    return [records[index] for batch in batches[rank::processes] for index in batch]


def _watch(folder: Path, owner: dict[str, Any] | None, parent: int) -> None:
    """Send this process SIGTERM, on which training saves its state, when it has to stop.

    It has to stop in three cases: the program that started all puts a file into the cell's folder; that program was
    killed, so it no longer holds the folder's lock; or the launcher between the two was killed, so this process has
    another parent. SIGKILL follows if SIGTERM has no effect for long. A process that waits on a GPU for a dead one
    would otherwise keep its memory for ever.
    """
    event = threading.Event()
    while not event.wait(POLL):
        orphaned = os.getppid() != parent
        if orphaned or (folder / STOP).exists() or (owner is not None and not is_held(folder / "lock", owner)):
            os.kill(os.getpid(), signal.SIGTERM)
            event.wait(GRACE if orphaned else PATIENCE)
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with terminal.guarded():  # the log has the locale's encoding
        code = main(Path(sys.argv[1]), sys.argv[2])
    sys.exit(code)
