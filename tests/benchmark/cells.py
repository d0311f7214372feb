"""Cells for tests: one of the small models, for its settings only; a published one as a run leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark import results
from benchmark.spec import CellSpec, EvalSpec, MethodSpec, ModelSpec, TrainSpec
from benchmark.store import cell_tables
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cells import Store
from benchmark.store.scores import write_items

TRAIN = TrainSpec(
    epochs=2, batch_size=8, micro_batch_size=2, learning_rate=1e-3, projector_learning_rate=5e-4, scope="last_layers",
    last_layers=2, warmup_ratio=0.3, scheduler="cosine", weight_decay=0.0, max_grad_norm=0.3, loss_group=2, limit=None,
)


def cell_of_tiny(family: str = "llava", train: dict[str, Any] | None = None, **model: Any) -> CellSpec:
    """Return a cell; `train` changes its settings, `model` its model."""
    base = ModelSpec(
        id="tiny", name="Tiny", family=family, checkpoint="unused", preprocess="pad", max_length=256,
        learning_rate=1e-3, projector_learning_rate=5e-4,
    )
    return CellSpec(
        profile="toy", model=replace(base, **model), method=MethodSpec("full_ft", {}), target="toy", seed=0,
        train=replace(TRAIN, **train or {}), datasets=(), eval=EvalSpec(4), data_root="unused", threads=1,
    )


def unfold(cell: Path, target: Path) -> Path:
    """Write a published cell as the folder that a run leaves, without status and weights; return the folder."""
    target.mkdir(parents=True)
    for name in (cell_tables.SPEC, cell_tables.LOG, *cell_tables.FILES):
        if (cell / name).is_file():
            (target / name).write_text((cell / name).read_text())
    (target / "answers").mkdir()
    for dataset in (path.name.removesuffix(".jsonl.gz") for path in (cell / "items").iterdir()):
        write_items(target / "items" / f"{dataset}.jsonl.gz", read_items(cell, dataset))
        rows = (json.dumps({"item_id": name, "text": text}) for name, text in read_answers(cell, dataset).items())
        (target / "answers" / f"{dataset}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return target


class Tables:
    """The tables of some cells, to change and to write: cells and items are data frames, logs a list of rows."""

    def __init__(self, folders: Iterable[Path]) -> None:
        named = {folder.name: folder for folder in folders}
        self.cells, self.items = results.cells_of(named), results.items_of(named)
        self.logs = results.logs_of(named)

    def edit(self, cell: str, column: str, change: Callable[[dict], object]) -> None:
        """Change the values of a column of JSON."""
        mine = self.cells.cell == cell
        values = json.loads(self.cells.loc[mine, column].iloc[0])
        change(values)
        self.cells.loc[mine, column] = json.dumps(values)

    def rows(self, cell: str, dataset: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        """Replace the items of a cell's dataset."""
        mine = (self.items.cell == cell) & (self.items.dataset == dataset)
        changed = change(self.items[mine].copy())
        first = int(mine.to_numpy().argmax())
        before = self.items.iloc[:first]
        self.items = pd.concat([before, changed, self.items.iloc[first + int(mine.sum()):]], ignore_index=True).astype(
            {"cell": "category", "dataset": "category"}
        )

    def write(self, root: Path) -> Path:
        """Write them to a folder; return it."""
        root.mkdir(parents=True, exist_ok=True)
        cell_tables.write(root, self.cells, self.items, self.logs)
        return root


def change_tables(root: Path, change: Callable[[Tables], object]) -> None:
    """Change the tables of a published folder."""
    tables = Tables(Store(root).all_cells())
    change(tables)
    tables.write(root)
