"""Stage keys: a stage is redone when its inputs, settings or the code that makes its number change."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from benchmark.files import canonical_json, digest_of, write_atomic
from benchmark.models import places
from benchmark.sidecar import checkpoint_digest, known_digest
from benchmark.spec import ROOT, CellSpec, DatasetSpec, ModelSpec, at_root, input_form, plain, protocol, training_form

# The code that makes each stage's number, relative to the repository. A method's own module, what it imports from
# methods/, and a model family's modules are added per cell. What data readers make is in the data's digest; spec, plan,
# store and runner only move things.
STAGE_MODULES: dict[str, tuple[str, ...]] = {
    "train": (
        "benchmark/train.py", "benchmark/checkpoint.py", "benchmark/engine.py", "benchmark/fragments.py",
        "benchmark/shards.py",
        "benchmark/models/__init__.py", "benchmark/models/batch.py", "benchmark/models/folder.py",
        "benchmark/models/prompt.py", "benchmark/models/vision.py", "methods/base.py",
    ),
    "posthoc": ("benchmark/posthoc.py", "benchmark/calibration.py", "methods/blocks.py", "methods/masks.py"),
    "generate": (
        "eval/generate.py", "benchmark/models/__init__.py", "benchmark/models/batch.py", "benchmark/models/folder.py",
        "benchmark/models/prompt.py", "benchmark/models/vision.py",
    ),
    "score": (
        "eval/score.py", "eval/caption.py", "eval/exact.py", "eval/format.py", "eval/normalise.py", "eval/scienceqa.py",
        "eval/textvqa.py", "eval/vqa.py",
    ),
    "summary": ("eval/stats.py", "eval/averages.py", "benchmark/scores.py"),
}


@dataclass(frozen=True)
class Keys:
    """The key of every stage of a cell; `stages` lists them in the order in which they run."""

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


def code_of(cell: CellSpec) -> dict[str, str]:
    """Return the digest of the code behind each kind of stage of a cell: train, posthoc, generate, score, summary.

    Raises:
        UserError: the method's module cannot be found.
    """
    family, code = _family_module(cell.model), {}
    if cell.train is not None:
        code["train"] = code_digest((*method_modules(cell.method.id), *STAGE_MODULES["train"], *family))
        if cell.method.posthoc:
            code["posthoc"] = code_digest(STAGE_MODULES["posthoc"])
    code["generate"] = code_digest((*STAGE_MODULES["generate"], *family))
    return {**code, **{kind: code_digest(STAGE_MODULES[kind]) for kind in ("score", "summary")}}


def keys_of(cell: CellSpec, digests: Digests, full_ft: Keys | None = None) -> Keys:
    """Return the stage keys of a cell.

    Args:
        cell: the cell.
        digests: content of checkpoints and data.
        full_ft: keys of the cell that a post-hoc method starts from.

    Returns:
        Its keys.

    Raises:
        UserError: the checkpoint or the data are missing or broken.
    """
    base = {"base": digests.model(cell.model), "input": input_form(cell.model), "dtype": cell.dtype}
    code, train = code_of(cell), None
    if cell.train is not None:
        assert cell.target is not None
        common = {"stage": "train", **base, "method": cell.method.id, "params": cell.method.params, "seed": cell.seed}
        if cell.method.posthoc:
            assert full_ft is not None
            train = digest_of({
                **common, "code": code["train"], "posthoc": code["posthoc"], "full_ft": full_ft.train,
            })
        else:
            data = digests.records(cell.dataset(cell.target), cell.data_root, "train", cell.train.limit)
            train = digest_of({**common, "code": code["train"], "train": training_form(cell.train), "data": data})
    generate, score = {}, {}
    for dataset in cell.datasets:
        generate[dataset.id] = digest_of({
            "stage": "generate", **base, "weights": train, "batch_size": cell.eval.batch_size,
            **({"share_images": True} if cell.eval.share_images else {}),
            "protocol": {key: value for key, value in protocol(dataset).items() if key != "metric"},
            "data": digests.records(dataset, cell.data_root, cell.eval.split, cell.eval.limit),
            "code": code["generate"],
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


# ---------------------------------------------------------------------------------------------------------------
# Code


@functools.cache
def code_digest(modules: tuple[str, ...]) -> str:
    """Return a digest of modules that comments, blank lines and docstrings do not change.

    Args:
        modules: files, relative to the repository or absolute.

    Returns:
        Hex digest of their syntax trees.
    """
    total = hashlib.sha256()
    for name in sorted(set(modules)):
        tree = ast.parse(at_root(name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                _drop_docstring(node)
        total.update(f"{Path(name).name}\0{ast.dump(tree)}\0".encode())
    return total.hexdigest()


def _drop_docstring(node: Any) -> None:
    """Remove the string that opens a module, class or function."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:]


def method_modules(method: str) -> tuple[str, ...]:
    """Return the file of a method's class and the files of methods/ that it imports, directly or through others."""
    from methods.registry import METHODS

    path = METHODS[method].cls if method in METHODS else method
    found, todo = {}, [_module_file(path.partition(":")[0])]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = True
            todo += _imported_methods(name)
    return tuple(found)


@functools.cache
def _imported_methods(name: str) -> tuple[str, ...]:
    """Return the files of methods/ that a module imports, wherever in it."""
    modules = []
    for node in ast.walk(ast.parse(at_root(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # One dot in a file of methods/ is methods; more, or dots elsewhere, lead to no helper of ours.
            source = ".".join(filter(None, ["methods" if node.level else "", node.module]))
            modules += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    files = [ROOT / (module.replace(".", "/") + ".py") for module in modules if module.startswith("methods.")]
    return tuple(sorted({str(file.relative_to(ROOT)) for file in files if file.is_file()}))


def _family_module(model: ModelSpec) -> tuple[str, ...]:
    """Return the files of a model family: its module, and those whose names begin with its own."""
    from benchmark.models import FAMILIES

    module = _module_file(FAMILIES[model.family])
    beside = sorted(at_root(module).parent.glob(f"{Path(module).stem}_*.py"))
    return (module, *(str(path.relative_to(ROOT)) for path in beside if path.is_relative_to(ROOT)))


def _module_file(module: str) -> str:
    """Return where a module is, without importing it if it is ours (a method's module imports torch)."""
    own = ROOT / (module.replace(".", "/") + ".py")
    if own.is_file():
        return str(own.relative_to(ROOT))
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin:
        raise UserError(f"Cannot find the module {module!r}. Write module:Class, with its folder on PYTHONPATH.")
    return found.origin


# ---------------------------------------------------------------------------------------------------------------
# Content


class Unverified(LookupError):
    """A digest is not known, and reading everything to make it was not asked for."""


class Digests:
    """Content digests of checkpoints and data, remembered as long as no file below them changes.

    Args:
        cache: file to remember them in; it is written if its folder exists and can be written.
        compute: read what is not remembered; without, only small files are read.
    """

    def __init__(self, cache: Path, compute: bool = True) -> None:
        self._cache = cache
        self._compute = compute
        self._fingerprints: dict[Path, str] = {}
        try:
            self._known: dict[str, dict[str, str]] = json.loads(cache.read_text())
        except (OSError, ValueError):
            self._known = {}

    def model(self, model: ModelSpec) -> str:
        """Return the digest of a checkpoint.

        Raises:
            UserError: it is missing or broken.
            Unverified: its large files have not been read yet, and compute is false.
        """
        def compute() -> str:
            if not self._compute:
                try:
                    known = checkpoint_digest(folders, known_digest)
                except UserError:  # missing or empty: the command that needs it says so
                    known = None
                if known is None:
                    raise Unverified
                return known
            from benchmark import models, weights

            for folder in folders:
                weights.check(folder)
            return models.digest(*folders)

        folders = places.folders(model)
        return self._remember(f"model {model.family}", folders, compute)

    def records(self, dataset: DatasetSpec, data_root: str, split: str, limit: int | None) -> str:
        """Return the digest of the records of a split; the first time, every image is decoded once.

        Raises:
            UserError: files are missing or broken, images cannot be read, or the count is not the asserted one.
        """
        from benchmark import data

        def compute() -> str:
            if not self._compute:
                raise Unverified
            records = data.load(dataset, at_root(data_root), split, limit)
            data.check_images(records)
            return data.digest(records)

        what = canonical_json(["records", plain(dataset), split, limit])
        return self._remember(what, [at_root(data_root) / data.reader_of(dataset)], compute)

    def _remember(self, what: str, folders: list[Path], compute: Any) -> str:
        name = digest_of([what, *map(str, folders)])
        state = "".join(map(self._fingerprint, folders))
        known = self._known.get(name)
        if known is None or known["files"] != state:
            known = self._known[name] = {"files": state, "digest": compute()}
            if self._cache.parent.is_dir():
                # Only a cache: a folder that cannot be written is reported by the command that needs it.
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
                        state = entry.stat()
                        files.append([entry.path, state.st_size, state.st_mtime_ns])
        except OSError:
            continue
    return files
