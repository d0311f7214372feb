"""Forgetting over training: the scores of a cell after every epoch of its one schedule.

A cell is trained again with identical bits, and its weights are saved after every epoch but the last. They become
cells of separate stores, <results>/epochs/<k>, which are generated and scored like any other cell.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.config.request import Request
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.core.progress import Lines, Progress, StageTold, images_told, long_work
from benchmark.planning import plan as planning
from benchmark.planning.plan import Planned
from benchmark.reporting import outputs
from benchmark.running import runner
from benchmark.running.worker import Worker, method_of, prepare_process
from benchmark.spec import CellSpec, TunedCell, is_tuned, steps_per_epoch
from benchmark.store.cells import Store
from methods.registry import entry


def store_of(root: Path, epoch: int) -> Store:
    """Return the store of the weights after an epoch, counted from 1."""
    return Store(root / "epochs" / str(epoch))


def run(asked: Request, show: Progress | None = None) -> int:
    """Run the cells of a request, then their earlier epochs. Finished work is not repeated.

    Args:
        asked: training methods (and zero_shot, which is epoch 0); one setting.
        show: receives progress.

    Returns:
        The runner's exit code, the first that is not 0.

    Raises:
        UserError: a post-hoc method, another engine than single, or epochs that differ between cells.
    """
    check(asked)
    code = runner.run(asked)
    if code:
        return code
    store, show = Store(asked.results), show or Lines()
    plan = planning.make(asked, store)
    trained = [item for item in plan if is_tuned(item.cell)]
    place = asked.cells[0]
    prepare_process(place.threads, place.device, asked.gpus[0] if asked.gpus else None)
    worker = Worker(store)
    for item in trained:
        if not _kept(item, store):
            show.note(f"{item.id}: trained once more to keep the weights of every epoch")
            _keep(item, store, worker)
    for epoch in range(1, _epochs(asked)):
        own = replace(asked.of(item.cell for item in trained), results=store_of(store.root, epoch).root)
        digests = store.root / "digests.json"
        if digests.is_file():  # otherwise every store would decode every image again
            write_atomic(own.results / "digests.json", digests.read_bytes())
        code = runner.run(own)
        if code:
            return code
    return 0


def check(asked: Request) -> None:
    """Refuse cells that have no epochs.

    Raises:
        UserError: see `run`.
    """
    cells = [cell for cell in asked.cells if is_tuned(cell)]
    if not cells:
        raise UserError("No method of this request is trained. Add one that trains to methods=, such as full_ft.")
    if wrong := sorted({cell.method.id for cell in cells if cell.method.posthoc}):
        raise UserError(f"{', '.join(wrong)}: made after training, without epochs. Leave them out of methods=.")
    if wrong := sorted({cell.method.id for cell in cells if entry(cell.method.id).kind == "adapter"}):
        raise UserError(
            f"{', '.join(wrong)}: an adapter is merged only when the training ends, so earlier epochs have no weights. "
            "Leave them out of methods=."
        )
    if len({cell.train.epochs for cell in cells}) > 1:
        raise UserError("One number of epochs per figure: train.epochs= has several values.")
    if any(cell.engine != "single" for cell in cells):
        raise UserError("Scores at every epoch need engine=single.")


def _kept(item: Planned, store: Store) -> bool:
    """Return whether the weights of every earlier epoch are stored under the cell's current key."""
    cell, keys = item.cell, item.keys
    assert is_tuned(cell) and keys is not None
    return all("train" not in store_of(store.root, epoch).missing(cell, keys) for epoch in range(1, cell.train.epochs))


@dataclass
class _Keeper:
    """Writes the delta at the end of every epoch but the last; called by the training after each step."""

    cell: TunedCell
    model: Any
    base: Mapping[str, Any]
    digest: str
    steps: int
    out: Path
    told: StageTold

    def __call__(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        from benchmark.training.checkpoint import save_delta

        self.told("train", done, total)
        if done % self.steps == 0 and done < total:
            path = self.out / f"{done // self.steps}.safetensors"
            save_delta(path, self.model, self.base, list(self.base), self.digest, {"method": self.cell.method.id})


def _keep(item: Planned, store: Store, worker: Worker) -> None:
    """Train a cell again in a scratch folder and move its epochs to their stores.

    Raises:
        UserError: the new training ended with other weights than the cell.
    """
    from benchmark.training.checkpoint import read_metadata
    from benchmark.training.train import train

    cell, keys, scratch = item.cell, item.keys, store.root / "epochs" / f".{item.id}"
    assert is_tuned(cell) and keys is not None and keys.train is not None
    loaded, records = worker._load(cell), worker.training_records(cell)
    with (
        store.lock(cell), worker.base(cell) as base, long_work(item.id) as told,
        images_told(partial(told, "train: images")),
    ):
        method = method_of(cell)
        steps = steps_per_epoch(cell.train, len(records))
        scratch.mkdir(parents=True, exist_ok=True)
        train(cell, loaded, records, method, scratch,
              _Keeper(cell, loaded.model, base, loaded.digest, steps, scratch, told))
        new, old = (read_metadata(folder / "delta.safetensors")["digest"] for folder in (scratch, store.folder(cell)))
    if new != old:
        shutil.rmtree(scratch)
        raise UserError(
            f"{item.id}: trained again, it ended with other weights than before (another machine or version?). "
            "Delete its folder and run it again, then draw this figure."
        )
    for epoch in range(1, cell.train.epochs):
        own = store_of(store.root, epoch)
        own.begin(cell)
        own.start_stage(cell, "train", keys.train)
        (scratch / f"{epoch}.safetensors").replace(own.folder(cell) / "delta.safetensors")
        own.finish_stage(cell, "train", keys.train, 0.0)
        own.finish(cell, "interrupted")
    shutil.rmtree(scratch)


def _epochs(asked: Request) -> int:
    """Return the number of epochs, which all trained cells share; 0 without one."""
    return next((cell.train.epochs for cell in asked.cells if cell.train is not None), 0)


def tidy(asked: Request) -> pd.DataFrame:
    """Return the table lines of every epoch, from what is finished; epoch 0 is the untuned model."""
    store = Store(asked.results)
    trained = tuple(cell for cell in asked.cells if is_tuned(cell))
    untuned = tuple(cell for cell in asked.cells if cell.method.id == outputs.ZERO_SHOT)
    epochs = _epochs(asked)
    frames = []
    for epoch in range(1, epochs + 1):
        own = store if epoch == epochs else store_of(store.root, epoch)
        frames.append(_lines(asked, trained, own).assign(epoch=epoch))
    start = _lines(asked, untuned, store) if untuned else pd.DataFrame()
    names = dict(zip(frames[-1]["method"], frames[-1]["method_name"], strict=True)) if frames else {}
    # Every method starts at the untuned model.
    frames += [start.assign(epoch=0, method=name, method_name=title) for name, title in names.items()]
    frames = [frame for frame in frames if not frame.empty]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _lines(asked: Request, cells: Sequence[CellSpec], store: Store) -> pd.DataFrame:
    own = replace(asked.of(cells), results=store.root)
    frame = outputs.build_table(own, planning.make(own, store), store).frame
    return frame[frame["value"].notna() & frame["target"].isin([cell.target for cell in asked.cells])]
