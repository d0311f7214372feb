"""One cell of a results folder, checked against its data, its own files and the code that scores."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.files import sha256_file
from benchmark.data import few_shot
from benchmark.publishing.findings import Findings, Wrong
from benchmark.spec import CellSpec, steps_per_epoch
from benchmark.store import provenance
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cell_tables import CellPath
from benchmark.store.cells import output_of, stages_of
from benchmark.store.scores import summarise

if TYPE_CHECKING:
    from benchmark.data import Record
    from eval.score import ItemScore

# Another processor or numpy may round the last bits of a logarithm in another way; only there this much is equal.
ROUNDING = 1e-9
# Required keys of provenance.json and the types of their values.
PROVENANCE: dict[str, tuple[type, ...]] = {
    "command": (str,), "commit": (str, type(None)), "dirty": (bool, type(None)), "python": (str,), "packages": (dict,),
    "device": (str,), "cpu_flags": (list,), "threads": (int,), "dtype": (str,), "seconds": (dict,),
    "peak_memory_mb": (int, float),
}
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
Data = Callable[[CellSpec, str, str, int | None], Sequence["Record"]]


@dataclass
class CellCheck:
    """A finished cell, and what its check has read so far.

    Args:
        cell: its spec.
        folder: its files, of a run or published.
        records: reads the records of (cell, dataset, split, limit).
        found: gets the faults and counts.
        rescore: score the answers again and recompute intervals.
    """

    cell: CellSpec
    folder: Path
    records: Data
    found: Findings
    rescore: bool
    exact: bool = False  # the cell was made by the same arithmetic as here, so no number may differ
    answers: dict[str, dict[str, str]] = field(default_factory=dict)           # by dataset; only what could be read
    items: dict[str, list[ItemScore]] = field(default_factory=dict)
    used: dict[str, Sequence[Record]] = field(default_factory=dict)

    def run(self, stages: Mapping[str, Any] | None) -> None:
        """Check every file of the cell.

        Args:
            stages: as status.json records them; None for a published cell.
        """
        name, found = self.folder.name, self.found
        with found.checking(name, "provenance.json"):
            self.exact = self._provenance(stages is not None)
        with found.checking(name, "train.jsonl"):
            self._training()
        if stages is not None:
            self._stages(stages)
        for kind in ("answers", "items"):
            for path in sorted((self.folder / kind).glob("*")):
                if path.name.partition(".")[0] not in {dataset.id for dataset in self.cell.datasets}:
                    found.add(name, f"{kind}/{path.name}", "belongs to no dataset of cell.yaml")
        before = len(found.faults)
        for dataset in self.cell.datasets:
            with found.checking(name, f"answers/{dataset.id}.jsonl"):
                self._answers(dataset.id)
            with found.checking(name, f"items/{dataset.id}.jsonl.gz"):
                self._items(dataset.id)
        found.rescored += self.rescore
        with found.checking(name, "scores.json"):
            stored = json.loads((self.folder / "scores.json").read_text(encoding="utf-8"))
            _plain_averages(self.cell, stored)
            if self.rescore and before == len(found.faults):
                _same(stored, summarise(self.cell, self.items, self.used, self.answers), self.exact, found)

    # -- what is recorded ---------------------------------------------------------------------------------------

    def _provenance(self, run: bool) -> bool:
        """Check that provenance.json is complete and true; return whether the cell was made by equal arithmetic."""
        cell, found = self.cell, self.found
        known = json.loads((self.folder / "provenance.json").read_text(encoding="utf-8"))
        for key, kinds in PROVENANCE.items():
            if not isinstance(known[key], kinds) or (isinstance(known[key], bool) and bool not in kinds):
                raise Wrong(f"{key} is {known[key]!r}")
        commit = known["commit"]
        if (commit is None and not run) or (commit is not None and not re.fullmatch(r"[0-9a-f]{40}", commit)):
            raise Wrong(f"commit is {commit!r}, which does not identify the code")
        lost = [name for name in PACKAGES if not known["packages"].get(name)]
        if lost:
            raise Wrong(f"has no version of {', '.join(lost)}")
        if known["dtype"] != cell.dtype:
            raise Wrong(f"dtype is {known['dtype']}, cell.yaml has {cell.dtype}")
        lost = [stage for stage in stages_of(cell) if not isinstance(known["seconds"].get(stage), float | int)]
        if lost:
            raise Wrong(f"has no time of {', '.join(lost)}")
        found.dirty += known["dirty"] is True
        found.older += bool(provenance.older_code(cell, self.folder))
        found.without_code += "code" not in known
        found.without_items += not known.get("items")
        if known.get("items"):
            self._item_ids(known["items"])
        return known["cpu_flags"] == provenance.cpu()["flags"] and (
            known["packages"]["numpy"] == provenance.version("numpy")
        )

    def _item_ids(self, recorded: Mapping[str, Any]) -> None:
        """Compare the recorded numbers and digests of items with those of the data."""
        from benchmark.data import ids_digest

        cell = self.cell
        splits: list[tuple[str, str, int | None]]
        splits = [(dataset.id, cell.eval.split, cell.eval.limit) for dataset in cell.datasets]
        if cell.train is not None and cell.target is not None:
            splits.append((cell.target, "train", cell.train.limit))
        for name, split, limit in splits:
            entry, used = recorded[name][split], self.records(cell, name, split, limit)
            if entry["n"] != len(used) or entry["ids"] != ids_digest(used):
                raise Wrong(f"{name}/{split} had {entry['n']} items {entry['ids'][:8]}, the data have {len(used)} "
                            f"{ids_digest(used)[:8]}")

    def _training(self) -> None:
        """Check that the log has a finite loss for every step; a post-hoc cell has one row without one, or no log."""
        cell, path = self.cell, self.folder / "train.jsonl"
        if cell.train is None or cell.target is None:
            if path.is_file():
                raise Wrong("is there, but the cell is not trained")
            return
        if cell.method.posthoc and not path.is_file():
            return
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not rows:
            raise Wrong("is empty")
        if cell.method.posthoc:
            return
        size = len(self.records(cell, cell.target, "train", cell.train.limit))
        steps = cell.train.epochs * steps_per_epoch(cell.train, size)
        if [row["step"] for row in rows] != list(range(1, steps + 1)):
            raise Wrong(f"has {len(rows)} rows up to step {rows[-1]['step']}, the training has steps 1 to {steps}")
        wrong = next((row for row in rows if not all(map(math.isfinite, (row["loss"], row["grad_norm"])))), None)
        if wrong is not None:
            raise Wrong(f"step {wrong['step']} has the loss {wrong['loss']} and the gradient norm {wrong['grad_norm']}")

    def _stages(self, stages: Mapping[str, Any]) -> None:
        """Check that each stage of a run is done, its file unchanged since then, and the delta complete."""
        for stage in stages_of(self.cell):
            path = output_of(self.folder, stage)
            with self.found.checking(self.folder.name, path.relative_to(self.folder).as_posix()):
                if stages.get(stage, {}).get("state") != "done":
                    raise Wrong(f"status.json says that the stage {stage} is not done")
                if stage == "train" and stages[stage].get("weights") is False:
                    continue  # restored from published results, which have no weights
                if not path.is_file():
                    raise Wrong("is missing")
                if stage == "train":
                    _delta(path)
                    continue
                digest = stages[stage].get("sha256")
                if digest is not None:
                    self.found.files += 1
                    if digest != sha256_file(path):
                        raise Wrong("its digest is not the one in status.json: the file was altered after the run")

    # -- one test set -------------------------------------------------------------------------------------------

    def _wanted(self, dataset: str) -> Sequence[Record]:
        """Return the records that the protocol evaluates."""
        return self.records(self.cell, dataset, self.cell.eval.split, self.cell.eval.limit)

    def _answers(self, dataset: str) -> None:
        """Check that every item, and no other, has one answer; in a run also what was asked."""
        path = self.folder / "answers" / f"{dataset}.jsonl"
        if not path.is_file():
            raise Wrong("is missing")
        wanted = self._wanted(dataset)
        published = isinstance(self.folder, CellPath)
        texts = read_answers(self.folder, dataset) if published else _answers_of_run(path)
        if absent := [item for item, text in texts.items() if not isinstance(text, str)]:
            raise Wrong(f"item {absent[0]!r} has no answer")
        _ids(list(texts), [record.item_id for record in wanted])
        if not published:
            how, read = self.cell.eval, partial(self.records, self.cell, dataset)
            _prompts(path, few_shot.questions(how.examples, how.split, how.limit, read))
        self.answers[dataset], self.used[dataset] = texts, wanted

    def _items(self, dataset: str) -> None:
        """Check item scores against the data, and against the answers scored again."""
        from eval.score import score

        stored = read_items(self.folder, dataset)
        for item in stored:
            if not isinstance(item.score, float | int) or not math.isfinite(item.score) or item.score < 0:
                raise Wrong(f"item {item.item_id} has the score {item.score!r}")
        wanted = self._wanted(dataset)
        _ids([item.item_id for item in stored], [record.item_id for record in wanted], ordered=True)
        groups = {record.item_id: record.group for record in wanted}
        wrong = next((item for item in stored if item.group != groups[item.item_id]), None)
        if wrong is not None:
            raise Wrong(f"item {wrong.item_id} is in group {wrong.group!r}, in the data in {groups[wrong.item_id]!r}")
        if self.rescore and dataset in self.answers:
            again = score(self.cell.dataset(dataset).metric, wanted, self.answers[dataset])
            _scores(stored, again, self.exact, self.found)
            self.found.answers += len(again)
        self.items[dataset] = stored


def _answers_of_run(path: Path) -> dict[str, str]:
    """Return item id -> text of a run's answers."""
    texts: dict[str, str] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("item_id"), str) or (
                not isinstance(row.get("text"), str)
            ):
                raise Wrong(f"line {number} is not an answer (item_id and text)")
            if row["item_id"] in texts:
                raise Wrong(f"item {row['item_id']!r} is answered twice (line {number})")
            texts[row["item_id"]] = row["text"]
    return texts


def _ids(have: Sequence[str], wanted: Sequence[str], ordered: bool = False) -> None:
    """Compare item ids with those of the protocol's evaluation split."""
    present = set(have)
    if len(present) < len(have):
        raise Wrong(f"holds item {next(name for name in have if have.count(name) > 1)!r} twice")
    absent, strange = [name for name in wanted if name not in present], sorted(present - set(wanted))
    if absent:
        raise Wrong(f"{len(absent)} of {len(wanted)} items are missing, the first is {absent[0]!r}")
    if strange:
        raise Wrong(f"{len(strange)} items are not in the evaluated split, the first is {strange[0]!r}")
    if ordered and list(have) != list(wanted):
        raise Wrong("the items are not in the order of the data")


def _prompts(path: Path, records: Sequence[Record]) -> None:
    """Compare the prompt hashes that a run keeps beside its answers; published answers have none."""
    from benchmark.training.generate import prompt_hash

    rows = {row["item_id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    for record in records:
        known = rows[record.item_id].get("prompt_hash")
        if known is not None and known != prompt_hash(record):
            raise Wrong(f"item {record.item_id!r} was asked with another prompt than the data give now")


def _scores(stored: Sequence[ItemScore], again: Sequence[ItemScore], exact: bool, found: Findings) -> None:
    """Compare item scores with those of the answers scored again."""
    wrong = [
        (old, new) for old, new in zip(stored, again, strict=True)
        if old.type != new.type or not _equal(old.score, new.score, exact, found)
    ]
    if wrong:
        old, new = wrong[0]
        what = (f"type {old.type!r}", f"{new.type!r}") if old.type != new.type else (f"{old.score!r}", f"{new.score!r}")
        raise Wrong(
            f"{len(wrong)} of {len(again)} scores are not those of the answers; item {old.item_id}: stored {what[0]}, "
            f"scored again {what[1]}"
        )


def _equal(old: float, new: float, exact: bool, found: Findings) -> bool:
    if old == new:
        return True
    if not exact and abs(old - new) <= ROUNDING * max(1.0, abs(new)):
        found.rounded += 1
        return True
    return False


def _same(stored: Any, again: Any, exact: bool, found: Findings, where: str = "") -> None:
    """Compare scores.json with its recomputed content, down to the last number."""
    if isinstance(stored, Mapping) and isinstance(again, Mapping):
        for key in {**again, **stored}:
            if key not in stored or key not in again:
                raise Wrong(f"{where}{key} is {'missing' if key in again else 'no number of this cell'}")
            # Bounds are quantiles of matrix products, whose last bits depend on the number of threads.
            _same(stored[key], again[key], exact and key not in ("low", "high"), found, f"{where}{key}.")
    elif isinstance(stored, float | int) and isinstance(again, float | int) and not isinstance(stored, bool):
        if not _equal(stored, again, exact, found):
            raise Wrong(f"{where.rstrip('.')} is {stored!r}, from the item scores it is {again!r}")
    elif stored != again:
        raise Wrong(f"{where.rstrip('.')} is {stored!r}, recomputed {again!r}")


def _plain_averages(cell: CellSpec, scores: Mapping[str, Any]) -> None:
    """Recompute A^S, A^T, H, O from the scores in the same file (Eqs. 9 and 10), and check counts and metrics."""
    from eval.averages import a_s, h_average, o_average

    if set(scores["datasets"]) != {dataset.id for dataset in cell.datasets}:
        raise Wrong(f"has scores of {', '.join(sorted(scores['datasets']))}, cell.yaml names other datasets")
    for dataset in cell.datasets:
        entry = scores["datasets"][dataset.id]
        expected = (dataset.counts or {}).get(cell.eval.split)
        if cell.eval.limit is None and expected is not None and entry["n"] != expected:
            raise Wrong(f"{dataset.id} has n={entry['n']}, the protocol has {expected} items")
        if entry["metric"] != dataset.metric:
            raise Wrong(f"{dataset.id} has the metric {entry['metric']}, the protocol {dataset.metric}")
    if set(scores["averages"]) != {dataset.id for dataset in cell.targets}:
        raise Wrong("has averages of other targets than cell.yaml")
    source = a_s([scores["datasets"][dataset.id]["value"] for dataset in cell.upstream]) if cell.upstream else None
    for target, values in scores["averages"].items():
        goal = scores["datasets"][target]["value"]
        expected = {"A_S": source, "A_T": goal, "H": h_average(source, goal), "O": o_average(source, goal)}
        for name, value in expected.items():
            if values[name]["value"] != value:
                raise Wrong(f"{target} {name} is {values[name]['value']!r}, from the scores beside it {value!r}")


def _delta(path: Path) -> None:
    """Read a whole delta and check it against the digest in its metadata."""
    import torch

    from benchmark.training.checkpoint import load_delta, read_metadata

    tensors = load_delta(path, read_metadata(path)["base_digest"])
    wrong = next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
    if wrong is not None:
        raise Wrong(f"{wrong} holds values that are not finite")
