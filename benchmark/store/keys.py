"""Stage keys: a stage runs again when its inputs, its settings or the version of its code change."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.core.files import canonical_json, digest_of, write_atomic
from benchmark.models import places
from benchmark.models.digest_cache import checkpoint_digest, known_digest
from benchmark.spec import (
    CellSpec,
    DatasetSpec,
    ModelSpec,
    at_root,
    calibrates_on_sources,
    input_form,
    own_dtype,
    plain,
    protocol,
    replay_sets,
    source_samples,
    training_form,
)
from benchmark.store import code_version
from methods.registry import entry

if TYPE_CHECKING:
    from benchmark.core.progress import StageTold


@dataclass(frozen=True)
class Keys:
    """The key of every stage of a cell; `stages` lists them in the order of execution."""

    train: str | None
    generate: Mapping[str, str]
    score: Mapping[str, str]
    summary: str

    @property
    def stages(self) -> dict[str, str]:
        """Stage name -> key: train, then generate/<dataset> and score/<dataset> of each dataset, then summary."""
        stages = {"train": self.train} if self.train else {}
        for name in self.generate:
            stages[f"generate/{name}"] = self.generate[name]
        for name in self.score:
            stages[f"score/{name}"] = self.score[name]
        return {**stages, "summary": self.summary}


def code_of(cell: CellSpec) -> Mapping[str, str]:
    """Return the code version of each kind of stage of a cell: train, posthoc, generate, score, summary.

    Raises:
        UserError: the method's module cannot be found.
    """
    method = None if cell.train is None else cell.method.id
    return code_version.of_cell(cell.model.family, method, cell.method.posthoc)


def keys_of(cell: CellSpec, digests: Digests, sources: Sequence[Keys] = ()) -> Keys:
    """Return the stage keys of a cell.

    Args:
        cell: the cell.
        digests: content digests of checkpoints and data.
        sources: keys of the Full FT cells that a post-hoc cell is made from.

    Returns:
        Its keys.

    Raises:
        UserError: the checkpoint or the data are missing or damaged.
    """
    base = {"base": digests.model(cell.model), "input": input_form(cell.model), "dtype": cell.dtype}
    code, train = code_of(cell), None
    if cell.train is not None:
        assert cell.target is not None
        common = {"stage": "train", **base, "method": cell.method.id, "params": cell.method.params, "seed": cell.seed}
        if cell.method.posthoc:
            weights = [source.train for source in sources]
            content = {
                **common, "code": code["train"], "posthoc": code["posthoc"],
                "full_ft": weights if len(weights) > 1 else weights[0],
            }
            if cell.generic is not None and entry(cell.method.id).sees_generic:
                content["generic"] = _generic(cell, digests)
            train = digest_of(content)
        else:
            data = digests.records(cell.dataset(cell.target), cell.data_root, "train", cell.train.limit)
            content = {**common, "code": code["train"], "train": training_form(cell.train), "data": data}
            if cell.train.replay != "none":
                content["replay"] = [
                    digests.records(dataset, cell.data_root, "train", rows) for dataset, rows in replay_sets(cell)
                ]
            if cell.generic is not None and "samples" in cell.method.params:
                content["generic"] = _generic(cell, digests)
            if calibrates_on_sources(cell):
                count = source_samples(cell)
                content["sources"] = [
                    digests.records(dataset, cell.data_root, "train", count) for dataset in cell.upstream
                ]
            train = digest_of(content)
    # Settings that were added later are part of a key only if they are set, so that older keys stay the same.
    later = {name: value for name, value in (
        ("share_images", cell.eval.share_images), ("eval_dtype", own_dtype(cell)), ("examples", cell.eval.examples),
    ) if value}
    generate, score = {}, {}
    for dataset in cell.datasets:
        generate[dataset.id] = digest_of({
            "stage": "generate", **base, "weights": train, "batch_size": cell.eval.batch_size, **later,
            "protocol": {key: value for key, value in protocol(dataset).items() if key != "metric"},
            "data": digests.records(dataset, cell.data_root, cell.eval.split, cell.eval.limit),
            "code": code["generate"], **_examples(cell, dataset, digests),
        })
        score[dataset.id] = digest_of({
            "stage": "score", "answers": generate[dataset.id], "metric": dataset.metric,
            "code": code["score"],
        })
    roles = {dataset.id: dataset.role for dataset in cell.datasets}
    summary = digest_of({
        "stage": "summary", "scores": score, "roles": roles, "code": code["summary"],
    })
    return Keys(train, generate, score, summary)


def _examples(cell: CellSpec, dataset: DatasetSpec, digests: Digests) -> dict[str, str]:
    """Return what in-context examples depend on, if the cell has any."""
    if not cell.eval.examples:
        return {}
    from benchmark.data import few_shot

    pool = digests.records(dataset, cell.data_root, few_shot.SPLIT, few_shot.POOL)
    return {"pool": pool, "few_shot": code_version.version("few_shot")}


def _generic(cell: CellSpec, digests: Digests) -> str:
    """Return the digest of the generic data that a method measures on."""
    assert cell.generic is not None
    return digests.records(cell.generic, cell.data_root, "train", int(cell.method.params["samples"]))


# ---------------------------------------------------------------------------------------------------------------
# Content


# What turns files into records, beside the reader of each dataset.
RECORDS = (
    "benchmark/data/__init__.py", "benchmark/data/record.py", "benchmark/data/rows.py", "benchmark/data/layout.py",
    "benchmark/data/readers/captions.py",
)


class Unverified(LookupError):
    """A digest is not cached, and `compute` forbids reading the files to make it."""


class Digests:
    """Content digests of checkpoints and data, cached until a file below them changes.

    Args:
        cache: file that keeps them; written only if its folder exists and is writable.
        compute: whether to read files whose digest is not cached; otherwise only small files are read.
        told: callback (stage, images checked, total images), called while data are read for the first time.
    """

    def __init__(self, cache: Path, compute: bool = True, told: StageTold | None = None) -> None:
        self._cache = cache
        self._compute = compute
        self._told = told
        self._fingerprints: dict[Path, str] = {}
        try:
            self._known: dict[str, dict[str, str]] = json.loads(cache.read_text())
        except (OSError, ValueError):
            self._known = {}

    def model(self, model: ModelSpec) -> str:
        """Return the digest of a checkpoint.

        Raises:
            UserError: it is missing or damaged.
            Unverified: its large files have not been read yet, and compute is false.
        """
        def compute() -> str:
            if not self._compute:
                try:
                    known = checkpoint_digest(folders, known_digest)
                except UserError:  # missing or empty: the command that needs it reports that
                    known = None
                if known is None:
                    raise Unverified
                return known
            from benchmark import models
            from benchmark.models import check_weights

            for folder in folders:
                check_weights.check(folder)
            return models.digest(*folders)

        folders = places.folders(model)
        return self._remember(f"model {model.family}", folders, compute)

    def records(self, dataset: DatasetSpec, data_root: str, split: str, limit: int | None) -> str:
        """Return the digest of the records of a split; every image is decoded once, and once more if code changes.

        Raises:
            UserError: files are missing or damaged, images cannot be read, or the item count is not the expected one.
        """
        from benchmark import data

        def compute() -> str:
            if not self._compute:
                raise Unverified
            records = data.load(dataset, at_root(data_root), split, limit)
            told = self._told
            data.check_images(records, told and (lambda *count: told(f"{dataset.id}/{split}: images", *count)))
            return data.digest(records)

        reader = (code_version.module_file(data.reader_module(dataset)),)
        code = [code_version.code_digest(files) for files in (RECORDS, reader)]
        what = canonical_json(["records", plain(dataset), split, limit, code])
        return self._remember(what, [at_root(data_root) / data.reader_of(dataset)], compute)

    def _remember(self, what: str, folders: list[Path], compute: Any) -> str:
        name = digest_of([what, *map(str, folders)])
        state = "".join(map(self._fingerprint, folders))
        known = self._known.get(name)
        if known is None or known["files"] != state:
            known = self._known[name] = {"files": state, "digest": compute()}
            if self._cache.parent.is_dir():
                # Only a cache: the command that needs the folder reports that it cannot be written.
                with contextlib.suppress(UserError):
                    write_atomic(self._cache, json.dumps(self._known, indent=0, sort_keys=True))
        return known["digest"]

    def _fingerprint(self, folder: Path) -> str:
        """Return a digest of names, sizes and times of all files below a folder."""
        if folder not in self._fingerprints:
            self._fingerprints[folder] = digest_of(sorted(_walk(str(folder))))
        return self._fingerprints[folder]


def _walk(folder: str) -> list[list[Any]]:
    """Return path, size and modification time of every file below a folder."""
    files, todo = [], [folder]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        todo.append(entry.path)
                    elif not entry.name.startswith("."):
                        files.append([entry.path, *_state(entry)])
        except OSError:
            continue
    return files


def _state(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Return size and modification time of a file; those of a broken link are -1."""
    try:
        state = entry.stat()
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns
