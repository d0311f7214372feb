"""How far each finished cell has moved from its base, in weights and in outputs. A stage of its own: no score needs it.

It writes drift.json into the cell's folder, under a key of its own, and stops and resumes cell by cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.core.files import digest_of, write_atomic
from benchmark.core.progress import StageTold, images_told
from benchmark.running.worker import Worker
from benchmark.spec import CellSpec, TunedCell, answering_dtype, input_form, is_tuned
from benchmark.store import code_version
from benchmark.store.cells import Store, read_cell
from benchmark.store.keys import Digests

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.models import LoadedModel
    from benchmark.training.drift import Reference

FILE = "drift.json"
SPLIT = "validation"  # no test item is looked at


@dataclass(frozen=True)
class Amount:
    """How many records are run: of the target, and of each source set."""

    targets: int
    sources: int


def recorded(folder: Path) -> dict[str, Any]:
    """Return a cell's drift as it was measured; empty if it was not."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Stage:
    """Measures cells one after another; cells of one model and target share the outputs of the base.

    Args:
        store: the cells.
        amount: how many records are run.
        worker: loads models and records.
    """

    def __init__(self, store: Store, amount: Amount, worker: Worker) -> None:
        self._store, self._amount, self._worker = store, amount, worker
        self._digests = Digests(store.root / "digests.json")
        self._reference: tuple[LoadedModel, str, Reference] | None = None

    def missing(self, folders: Sequence[Path]) -> list[Path]:
        """Return the cells with weights that were not measured as today's code, settings and data would.

        Args:
            folders: of finished cells. Cells of one model and target stand together in the result.

        Raises:
            UserError: the validation data of a cell are missing.
        """
        found = []
        for folder in folders:
            cell = read_cell(folder)
            if is_tuned(cell) and (key := self._key(cell, folder)) and recorded(folder).get("key") != key:
                found.append((repr(cell.model), cell.target, folder))
        return [folder for *_, folder in sorted(found)]

    def run(self, folder: Path, told: StageTold) -> None:
        """Measure a cell and write its drift.json.

        Args:
            folder: from `missing`.
            told: callback (stage, done, total).

        Raises:
            Locked: another process works on the cell.
            UserError: the model, its data or its delta cannot be read.
        """
        from benchmark.training.checkpoint import load_delta
        from benchmark.training.tuned import tuned

        cell = read_cell(folder)
        assert is_tuned(cell)
        with self._store.lock(cell):
            key = self._key(cell, folder)
            with (
                self._worker.base(cell, answering=True) as base,
                images_told(lambda done, total: told("images", done, total)),
            ):
                loaded = self._worker._load(cell, answering=True)
                reference = self._base(cell, told)
                size = sum(parameter.numel() for parameter in loaded.model.parameters())
                with tuned(cell, loaded, folder):
                    found = reference.drift(lambda done, total: told("tuned model", done, total))
                delta = load_delta(folder / "delta.safetensors", loaded.digest)
            if delta.keys() <= base.keys():  # an adapter that is not merged is no distance
                found |= distance(delta, base, size)
            write_atomic(folder / FILE, json.dumps({"key": key, **found}, indent=1) + "\n")

    def _base(self, cell: TunedCell, told: StageTold) -> Reference:
        """Return the base's outputs for a cell; the last ones are kept. The model must have base weights."""
        from benchmark.training.drift import Reference

        key, loaded = digest_of(self._inputs(cell)), self._worker._load(cell, answering=True)
        if self._reference is None or self._reference[0] is not loaded or self._reference[1] != key:
            self._reference = None  # first: memory may not hold two
            sources = [record for one in cell.upstream for record in self._records(cell, one.id, self._amount.sources)]
            self._reference = loaded, key, Reference(
                loaded, self._records(cell, cell.target, self._amount.targets), sources, cell.eval.batch_size,
                lambda done, total: told("base model", done, total),
            )
        return self._reference[2]

    def _records(self, cell: CellSpec, dataset: str, limit: int) -> list[Any]:
        return self._worker.records(cell, dataset, SPLIT, limit)

    def _inputs(self, cell: TunedCell) -> dict[str, Any]:
        """Return what the base's outputs depend on."""
        data = [
            self._digests.records(one, cell.data_root, SPLIT, self._amount.targets if one.id == cell.target
                                  else self._amount.sources)
            for one in (cell.dataset(cell.target), *cell.upstream)
        ]
        return {
            "base": self._digests.model(cell.model), "input": input_form(cell.model), "data": data,
            "dtype": [cell.dtype, answering_dtype(cell)], "batch_size": cell.eval.batch_size,
            "code": code_version.version("drift"), "family": code_version.version(f"family/{cell.model.family}"),
        }

    def _key(self, cell: TunedCell, folder: Path) -> str | None:
        """Return the key of a cell's drift; None for a cell whose weights are not here."""
        from benchmark.training.checkpoint import read_metadata

        try:
            delta = read_metadata(folder / "delta.safetensors")["digest"]
        except (UserError, OSError):
            return None
        return digest_of({"stage": "drift", "weights": delta, **self._inputs(cell)})


def distance(delta: Mapping[str, Tensor], base: Mapping[str, Tensor], size: int) -> dict[str, float]:
    """Return how far weights moved.

    Args:
        delta: name -> tuned tensor; tensors that are not in it are those of the base.
        base: name -> tensor of the base.
        size: number of the model's weights.

    Returns:
        distance: ||w - w*||_2; changed: the share of all weights with w != w*, from 0 to 1.
    """
    squares, changed = 0.0, 0
    for name, tensor in delta.items():
        difference = tensor.to(base[name]).double() - base[name].double()
        squares += float(difference.square().sum())
        changed += int(difference.count_nonzero())
    return {"distance": squares**0.5, "changed": changed / size}
