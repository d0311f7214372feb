"""Replay: samples of other data in every batch, generic ones or training samples of the source sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.core.errors import UserError
from benchmark.spec import CellSpec, TrainSpec, at_root, replay_sets, replayed_per_batch

if TYPE_CHECKING:
    from benchmark.data import Record

NO_DATA = (
    "needs data that show no source set, and this profile has none. Give a module that reads them: "
    "generic=./my_data.py, in the form of examples/my_target.py."
)


def fault_of(train: TrainSpec) -> str | None:
    """Return why a training's replay cannot be used; None if it can."""
    if train.replay != "none" and replayed_per_batch(train) >= train.batch_size:
        return (
            f"train.replay_share={train.replay_share} of train.batch_size={train.batch_size} leaves no sample of the "
            f"target in a batch. Use at most {(train.batch_size - 1) / train.batch_size:.3f}, or a larger batch."
        )
    return None


def records_of(cell: CellSpec) -> list[Record]:
    """Return the samples that a cell replays, the datasets in their order; none without replay.

    Raises:
        UserError: there are no such data, or they cannot be read.
    """
    from benchmark import data

    assert cell.train is not None
    if cell.train.replay == "none":
        return []
    if fault := fault_of(cell.train):
        raise UserError(fault)
    sets = replay_sets(cell)
    if not sets:
        raise UserError(f"train.replay={cell.train.replay} {NO_DATA}")
    root = at_root(cell.data_root)
    return [record for dataset, rows in sets for record in data.load(dataset, root, "train", rows)]
