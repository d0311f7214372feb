"""Check a results folder against itself: files, digests, items, answers scored again, averages, tables, provenance.

The folder is only read. It may be a published folder (benchmark.publishing.publish) or a folder of runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.core.files import SUMS, read_sums, sha256_file
from benchmark.publishing.findings import Fault, Findings, Wrong
from benchmark.publishing.verify_tables import check_table
from benchmark.spec import CellSpec, at_root, cell_id, is_name_of
from benchmark.store import provenance
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cell_tables import CellPath
from benchmark.store.cells import Store, output_of, read_cell
from benchmark.store.scores import summarise

if TYPE_CHECKING:
    from benchmark.core.progress import StageTold
    from benchmark.data import Record
    from eval.score import ItemScore

# Another processor or numpy may round the last bits of a logarithm differently. Only then is this tolerance used.
ROUNDING = 1e-9
# Required keys of provenance.json and the types of their values.
PROVENANCE: dict[str, tuple[type, ...]] = {
    "command": (str,), "commit": (str, type(None)), "dirty": (bool, type(None)), "python": (str,), "packages": (dict,),
    "device": (str,), "cpu_flags": (list,), "threads": (int,), "dtype": (str,), "seconds": (dict,),
    "peak_memory_mb": (int, float),
}
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
Data = Callable[[CellSpec, str, str, int | None], Sequence["Record"]]


def verify(
    root: Path, show: Callable[[Fault], None], sample: int = 1, draw: bool = True, told: StageTold | None = None
) -> Findings:
    """Check every finished cell and every table of a results folder.

    Args:
        root: results folder.
        show: called with each fault.
        sample: with n, score answers again and recompute intervals in every nth cell (at least one), chosen by the
            hash of the name. All other checks cover all cells.
        draw: draw missing data if the profile can draw them.
        told: called with (stage, done, total), first for files whose digest is checked, then for cells.

    Returns:
        Counts and faults.

    Raises:
        UserError: the folder does not exist, has no cells, or has another schema.
    """
    store, found = Store(root), Findings(show)
    store.check_schema()
    names = sorted(path.name for path in store.cells.glob("*") if path.is_dir()) if store.cells.is_dir() else []
    if not names:
        raise UserError(f"{root} has no cells. Name a results folder of a run or a published one: verify RESULTS.")
    _sums(root, found, told)
    records, chosen, cells = _reader(draw), _chosen(names, sample), {}
    for done, name in enumerate(names):
        if told is not None:
            told("cells", done, len(names))
        folder = store.cells / name
        cell = _cell(store, folder, records, found, name in chosen)
        if cell is not None:
            cells[name] = cell
    for path in sorted((root / "tables").glob("*.csv")):
        with found.checking("-", f"tables/{path.name}"):
            check_table(store, path, cells, found)
            found.tables += 1
    return found


def summary(found: Findings, root: Path) -> str:
    """Return the lines of the summary; the last one is the verdict."""
    lines = []
    if found.unfinished:
        lines.append(f"{found.unfinished} unfinished cells: not results, not checked.")
    if not found.files and not any((root / "cells").glob("*/status.json")):
        lines.append(f"No {SUMS} in {root}: digests of files were not recorded when it was published.")
    if found.without_items:
        lines.append(f"{found.without_items} cells record no digest of their item ids (made by older code).")
    if found.older:
        lines.append(
            f"{found.older} cells are of older code than this"
            + (f", {found.without_code} of them from before it was recorded" if found.without_code else "")
            + "; tables and report say so."
        )
    if found.dirty:
        lines.append(f"{found.dirty} cells were made with local changes to their commit.")
    if found.rounded:
        lines.append(f"{found.rounded} numbers differ in the last bits only: other processor, numpy or threads.")
    if found.other_layout:
        lines.append(f"{found.other_layout} printed tables have other columns than today's: their CSV was compared.")
    part = "" if found.rescored == found.cells else f" (of {found.rescored} cells)"
    lines.append(
        f"Verified {root}: {found.cells} cells, {found.files} file digests, {found.answers} answers scored again{part}"
        f", {found.tables} tables recomputed: {len(found.faults) or 'no'} fault{'s' * (len(found.faults) != 1)}."
    )
    return "\n".join(lines)


def _chosen(names: Sequence[str], sample: int) -> set[str]:
    """Return 1 / `sample` of the names, at least one: those with the smallest hashes."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(order[: math.ceil(len(order) / sample)])


def _reader(draw: bool) -> Data:
    """Return a function that reads and caches records. `draw` draws missing data of profiles that can draw them."""
    from benchmark import data

    known: dict[tuple[Any, ...], Sequence[Record] | UserError] = {}

    def read(cell: CellSpec, name: str, split: str, limit: int | None) -> Sequence[Record]:
        spec = cell.dataset(name)
        key = (repr(spec), cell.data_root, split, limit)
        if key not in known:
            try:
                if draw:
                    _draw(cell)
                known[key] = data.load(spec, at_root(cell.data_root), split, limit)
            except UserError as error:
                known[key] = error
        result = known[key]
        if isinstance(result, UserError):
            raise UserError(f"cannot be checked: {result}")
        return result

    return read


def _draw(cell: CellSpec) -> None:
    from benchmark.config.compose import options_of, request
    from benchmark.core.progress import Lines
    from benchmark.planning import plan
    from benchmark.running import runner

    if plan.data_missing(cell) and cell.profile in options_of("profile"):
        profile = request([f"profile={cell.profile}"], grid=False).profile
        if profile.prepare and cell.data_root == f"data/{profile.id}":
            runner.draw(profile, cell.data_root, Lines())


# ---------------------------------------------------------------------------------------------------------------
# Digests of a published folder


def _sums(root: Path, found: Findings, told: StageTold | None = None) -> None:
    """Compare files with SHA256SUMS: none altered, missing or added. Text files that people write are exempt."""
    if not (root / SUMS).is_file():
        return
    listed: dict[str, str] = {}
    with found.checking("-", SUMS):
        listed = read_sums(root / SUMS)
    for done, (name, digest) in enumerate(listed.items()):
        if told is not None:
            told("files", done, len(listed))
        with found.checking(*_place(name)):
            if not (root / name).is_file():
                raise Wrong(f"is missing; {SUMS} lists it")
            if sha256_file(root / name) != digest:
                raise Wrong(f"its digest is not the one in {SUMS}: the file was altered or damaged")
            found.files += 1
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name not in listed and name != SUMS and path.parent != root:
            found.add(*_place(name), f"is not in {SUMS}: it was added later")


def _place(name: str) -> tuple[str, str]:
    """Return (cell, file) of a path relative to the results folder."""
    parts = name.split("/", 2)
    return (parts[1], parts[2]) if parts[0] == "cells" and len(parts) == 3 else ("-", name)


# ---------------------------------------------------------------------------------------------------------------
# One cell


def _cell(store: Store, folder: Path, records: Data, found: Findings, rescore: bool) -> CellSpec | None:
    """Check a cell; return its spec if it is readable and the cell is finished."""
    name, cell = folder.name, None
    run = (folder / "status.json").is_file()
    status = store.status(folder)
    if run and status["state"] != "done":
        found.unfinished += 1
        return None
    found.cells += 1
    with found.checking(name, "cell.yaml"):
        cell = read_cell(folder)
        if not is_name_of(name, cell):
            raise Wrong(f"describes the cell {cell_id(cell)}, not this folder's")
    if cell is None:
        return None
    made_here = False
    with found.checking(name, "provenance.json"):
        made_here = _provenance(cell, folder, records, run, found)
    with found.checking(name, "train.jsonl"):
        _training(cell, folder, records)
    if run:
        _stages(cell, folder, status["stages"], found)
    for kind in ("answers", "items"):
        for path in sorted((folder / kind).glob("*")):
            if path.name.partition(".")[0] not in {dataset.id for dataset in cell.datasets}:
                found.add(name, f"{kind}/{path.name}", "belongs to no dataset of cell.yaml")
    before = len(found.faults)
    answers: dict[str, Any] = {}
    items: dict[str, Any] = {}
    used: dict[str, Any] = {}
    for dataset in cell.datasets:
        _dataset(cell, folder, dataset.id, records, found, rescore, made_here, answers, items, used)
    found.rescored += rescore
    with found.checking(name, "scores.json"):
        stored = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        _plain_averages(cell, stored)
        if rescore and before == len(found.faults):
            _same(stored, summarise(cell, items, used, answers), made_here, found)
    return cell


def _dataset(
    cell: CellSpec, folder: Path, dataset: str, records: Data, found: Findings, rescore: bool, made_here: bool,
    answers: dict[str, Any], items: dict[str, Any], used: dict[str, Any],
) -> None:
    """Check answers and item scores of one test set; what can be read is added to the last three."""
    from eval.score import score

    name = folder.name
    path = folder / "answers" / f"{dataset}.jsonl"
    with found.checking(name, f"answers/{path.name}"):
        if not path.is_file():
            raise Wrong("is missing")
        wanted = records(cell, dataset, cell.eval.split, cell.eval.limit)
        if isinstance(folder, CellPath):
            texts = read_answers(folder, dataset)
            if absent := [item for item, text in texts.items() if not isinstance(text, str)]:
                raise Wrong(f"item {absent[0]!r} has no answer")
        else:
            texts = _answers(path)
        _ids(list(texts), [record.item_id for record in wanted])
        if not isinstance(folder, CellPath):
            _prompts(path, wanted)
        answers[dataset], used[dataset] = texts, wanted
    file = f"items/{dataset}.jsonl.gz"
    with found.checking(name, file):
        stored = read_items(folder, dataset)
        for item in stored:
            if not isinstance(item.score, float | int) or not math.isfinite(item.score) or item.score < 0:
                raise Wrong(f"item {item.item_id} has the score {item.score!r}")
        wanted = records(cell, dataset, cell.eval.split, cell.eval.limit)
        _ids([item.item_id for item in stored], [record.item_id for record in wanted], ordered=True)
        groups = {record.item_id: record.group for record in wanted}
        wrong = next((item for item in stored if item.group != groups[item.item_id]), None)
        if wrong is not None:
            raise Wrong(f"item {wrong.item_id} is in group {wrong.group!r}, in the data in {groups[wrong.item_id]!r}")
        if rescore and dataset in answers:
            again = score(cell.dataset(dataset).metric, wanted, answers[dataset])
            _scores(stored, again, made_here, found)
            found.answers += len(again)
        items[dataset] = stored


def _answers(path: Path) -> dict[str, str]:
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


# ---------------------------------------------------------------------------------------------------------------
# What is recorded about a cell


def _provenance(cell: CellSpec, folder: Path, records: Data, run: bool, found: Findings) -> bool:
    """Check that provenance.json is complete and correct; return whether the same arithmetic applies here."""
    known = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
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
    older = provenance.older_code(cell, folder)
    found.older += bool(older)
    found.without_code += "code" not in known
    splits: list[tuple[str, str, int | None]]
    splits = [(dataset.id, cell.eval.split, cell.eval.limit) for dataset in cell.datasets]
    if cell.train is not None and cell.target is not None:
        splits.append((cell.target, "train", cell.train.limit))
    found.without_items += not known.get("items")
    for name, split, limit in splits if known.get("items") else []:
        from benchmark.data import ids_digest

        entry, used = known["items"][name][split], records(cell, name, split, limit)
        if entry["n"] != len(used) or entry["ids"] != ids_digest(used):
            raise Wrong(f"{name}/{split} had {entry['n']} items {entry['ids'][:8]}, the data have {len(used)} "
                        f"{ids_digest(used)[:8]}")
    return known["cpu_flags"] == provenance.cpu()["flags"] and (
        known["packages"]["numpy"] == provenance.version("numpy")
    )


def stages_of(cell: CellSpec) -> list[str]:
    """Return the names of a cell's stages, in order."""
    names = [dataset.id for dataset in cell.datasets]
    train = ["train"] if cell.train is not None else []
    return [*train, *(f"generate/{name}" for name in names), *(f"score/{name}" for name in names), "summary"]


def _training(cell: CellSpec, folder: Path, records: Data) -> None:
    """Check that the log has a finite loss for every step; a post-hoc cell has one row without a loss, or no log."""
    there = (folder / "train.jsonl").is_file()
    if cell.train is None or cell.target is None:
        if there:
            raise Wrong("is there, but the cell is not trained")
        return
    if cell.method.posthoc and not there:
        return
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    if not rows:
        raise Wrong("is empty")
    if cell.method.posthoc:
        return
    size = len(records(cell, cell.target, "train", cell.train.limit))
    steps = cell.train.epochs * math.ceil(size / cell.train.batch_size)
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        raise Wrong(f"has {len(rows)} rows up to step {rows[-1]['step']}, the training has steps 1 to {steps}")
    wrong = next((row for row in rows if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"])), None)
    if wrong is not None:
        raise Wrong(f"step {wrong['step']} has the loss {wrong['loss']} and the gradient norm {wrong['grad_norm']}")


def _stages(cell: CellSpec, folder: Path, stages: Mapping[str, Any], found: Findings) -> None:
    """Check that each stage of a run is done, its file unchanged since then, and the delta complete."""
    for stage in stages_of(cell):
        path = output_of(folder, stage)
        file = path.relative_to(folder).as_posix()
        with found.checking(folder.name, file):
            if stages.get(stage, {}).get("state") != "done":
                raise Wrong(f"status.json says that the stage {stage} is not done")
            if not path.is_file():
                raise Wrong("is missing")
            if stage == "train":
                _delta(path)
                continue
            digest = stages[stage].get("sha256")
            if digest is not None:
                found.files += 1
                if digest != sha256_file(path):
                    raise Wrong("its digest is not the one in status.json: the file was altered after the run")


def _delta(path: Path) -> None:
    """Read a whole delta and check it against the digest in its metadata."""
    import torch

    from benchmark.training.checkpoint import load_delta, read_metadata

    tensors = load_delta(path, read_metadata(path)["base_digest"])
    wrong = next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
    if wrong is not None:
        raise Wrong(f"{wrong} holds values that are not finite")
