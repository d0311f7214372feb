"""Finished work on disk: one folder per cell, the state of its stages, one owner at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from benchmark.core.errors import Locked, UserError, did_you_mean
from benchmark.core.files import link_or_copy, lock, sha256_file, sweep, sync, write_atomic
from benchmark.spec import (
    CellSpec,
    cell_hash,
    cell_id,
    cell_of,
    digits_of,
    is_name_of,
    of_same_grid,
    plain,
    samples,
)
from benchmark.store import cell_tables
from benchmark.store.keys import Keys

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 180.0
MARGIN_MEGABYTES = 50.0
SCHEMA = 1  # version of a results folder; a folder without a schema file has version 1


class Store:
    """A results folder, of runs or published. Both are read in the same way; a published one is read only.

    Args:
        root: the folder. Cells are in root/cells; a published folder has them as tables (`cell_tables`).
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.cells = cell_tables.path_of(self.root)
        self._listed: tuple[int, dict[str, list[str]]] = (0, {})

    @property
    def is_published(self) -> bool:
        """Whether the cells are the tables of a published folder."""
        return isinstance(self.cells, cell_tables.CellPath)

    # -- folders ------------------------------------------------------------------------------------------------

    def folder(self, cell: CellSpec) -> Path:
        """Return the folder of a cell, which may not exist. An older version may have given it another name."""
        folder = self.cells / cell_id(cell)
        if folder.is_dir():
            return folder
        same = [name for name in self._names().get(cell_hash(cell), ()) if is_name_of(name, cell)]
        return self.cells / same[0] if same else folder

    def _names(self) -> dict[str, list[str]]:
        """Return digits -> names of folders that end with them; listed again when root/cells has changed."""
        try:
            changed = self.cells.stat().st_mtime_ns
            if changed != self._listed[0]:
                found: dict[str, list[str]] = {}
                for path in sorted(self.cells.iterdir()):
                    found.setdefault(digits_of(path.name), []).append(path.name)
                self._listed = (changed, found)
        except OSError:  # does not exist yet
            return {}
        return self._listed[1]

    def check_schema(self) -> None:
        """Refuse a folder with a schema version that this program cannot read.

        Raises:
            UserError: the schema file names another version, or published tables are damaged or incomplete.
        """
        if self.is_published:
            cell_tables.check(self.root)
        try:
            version = (self.root / "schema").read_text().strip()
        except OSError:
            version = "1"
        if version != str(SCHEMA):
            raise UserError(
                f"{self.root} has results of schema version {version[:20] or '(empty)'}, this program reads and writes "
                f"version {SCHEMA}. Use the program that wrote it, or choose another folder with RESULTS=dir."
            )

    def check_writable(self, megabytes: float = 0.0) -> None:
        """Create the results folder and write to it once, before anything is computed.

        Args:
            megabytes: disk space that the run needs.

        Raises:
            UserError: it cannot be written, or has too little space.
        """
        self.check_schema()
        if self.is_published:
            raise UserError(f"{self.root} holds published results, which only `publish` writes. Choose another folder "
                            "with RESULTS=dir (results=dir).")
        probe = self.cells / f".probe-{os.getpid()}"
        write_atomic(probe, b"\0" * 65536)
        probe.unlink()
        if not (self.root / "schema").is_file():
            write_atomic(self.root / "schema", f"{SCHEMA}\n")
        free = shutil.disk_usage(self.cells).free / 1e6
        if free < megabytes + MARGIN_MEGABYTES:
            raise UserError(
                f"{self.root} has {free:.0f} MB free, but the run needs about {megabytes + MARGIN_MEGABYTES:.0f} MB. "
                "Free some space, or choose another folder with RESULTS=dir (results=dir)."
            )

    def all_cells(self) -> list[Path]:
        """Return the folders of all cells, by name.

        Raises:
            UserError: see `check_schema`.
        """
        self.check_schema()
        return sorted(path.parent for path in self.cells.glob("*/cell.yaml"))

    def finished(self) -> list[Path]:
        """Return the folders of the cells that have scores, by name.

        Raises:
            UserError: see `check_schema`.
        """
        return [folder for folder in self.all_cells() if (folder / "scores.json").is_file()]

    def find(self, name: str) -> Path:
        """Return the folder of a cell by its name, by a unique beginning of its name, or by its last eight digits.

        A beginning without settings, such as vila15_3b-coco-spider-s0, is the cell that has none of its own.

        Raises:
            UserError: no cell or several cells match, or the schema version is another.
        """
        names = [folder.name for folder in self.all_cells()]
        found = [other for other in names if other == name]
        found = found or [other for other in names if other == f"{name}-{digits_of(other)}"]
        found = found or [other for other in names if other.startswith(name)]
        # An older version may have used other words before the digits.
        digits = digits_of(name)
        found = found or [other for other in names if len(digits) == 8 and other.endswith(f"-{digits}")]
        if len(found) != 1:
            raise UserError(f"{len(found)} cells begin with {name!r}: {', '.join(found)}." if found else (
                f"No cell {name!r} in {self.cells}.{did_you_mean(name, names) if names else ' There are none yet.'}"
            ))
        return self.cells / found[0]

    # -- state --------------------------------------------------------------------------------------------------

    def status(self, folder: Path) -> dict[str, Any]:
        """Return the content of a cell's status.json; a new status if it cannot be read."""
        try:
            status = json.loads((folder / "status.json").read_text())
        except (OSError, ValueError, RecursionError):
            status = {}
        if not isinstance(status, dict) or not _is_table(status.get("stages", {})):
            status = {}
        return {"state": "new", "stages": {}, "error": None, **status}

    def missing(self, cell: CellSpec, keys: Keys) -> list[str]:
        """Return the stages that have to run, in order; empty for a finished cell.

        A cell that was killed after its last stage, before provenance.json was written, is summarised again.
        """
        folder = self.folder(cell)
        stages = self.status(folder)["stages"]
        found = [stage for stage, key in keys.stages.items() if not _done(folder, stages, stage, key)]
        if not found and not (folder / "provenance.json").is_file():
            return ["summary"]
        answers = any(stage.startswith("generate/") for stage in found)
        return ["train", *found] if answers and "train" not in found and self.lacks_weights(cell) else found

    def lacks_weights(self, cell: CellSpec) -> bool:
        """Whether a cell was restored from published results, without its weights; see `finish_elsewhere`."""
        return self.status(self.folder(cell))["stages"].get("train", {}).get("weights") is False

    def reopen(self, cell: CellSpec) -> None:
        """Forget that any stage of a cell is finished, so that it runs again, whole."""
        with self.lock(cell):
            self._update(self.folder(cell), state="new", stages={})

    def seconds(self, folder: Path) -> dict[str, float]:
        """Return how long each finished stage of a cell took."""
        stages = self.status(folder)["stages"]
        return {name: stage["seconds"] for name, stage in stages.items() if stage.get("state") == "done"}

    def begin(self, cell: CellSpec) -> None:
        """Create the folder of a cell and record that the cell runs; the caller holds its lock."""
        folder = self.folder(cell)
        sweep(folder)
        write_atomic(folder / "cell.yaml", yaml.safe_dump(plain(cell), sort_keys=False, allow_unicode=True))
        about = {
            "model": cell.model.id, "method": cell.method.id, "posthoc": cell.method.posthoc, "target": cell.target,
            "seed": cell.seed, "samples": samples(cell),
        }
        self._update(folder, state="running", error=None, about=about)

    def start_stage(self, cell: CellSpec, stage: str, key: str) -> float:
        """Record that a stage runs. Its files stay if they have this key, to resume; otherwise they are deleted.

        Returns:
            How long earlier runs worked on it before they were stopped, in seconds.
        """
        folder = self.folder(cell)
        stages = self.status(folder)["stages"]
        before = stages.get(stage, {})
        spent = float(before.get("spent", 0.0)) if before.get("key") == key else 0.0
        if before.get("key") != key:
            for path in _outputs(folder, stage):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        now = {"key": key, "state": "running"} | ({"spent": spent} if spent else {})
        self._update(folder, stages={**stages, stage: now})
        return spent

    def stop_stage(self, cell: CellSpec, stage: str, seconds: float) -> None:
        """Record how long a stage ran, all runs together, when it is stopped and keeps its files."""
        folder = self.folder(cell)
        stages = self.status(folder)["stages"]
        if stage in stages:
            self._update(folder, stages={**stages, stage: {**stages[stage], "spent": round(seconds, 3)}})

    def finish_stage(self, cell: CellSpec, stage: str, key: str, seconds: float) -> None:
        """Record that a stage's files are complete.

        Raises:
            UserError: they, or the cell's folder, were taken away meanwhile.
        """
        folder = self.folder(cell)
        try:
            # On the disk before the record is: it must not say more than the disk holds when the power goes.
            for path in (folder / "cell.yaml", _outputs(folder, stage)[0]):
                sync(path)
        except OSError as error:
            raise UserError(
                f"{error.filename} was deleted while {stage} ran ({error.strerror}). Run the same command again."
            ) from error
        done = {"key": key, "state": "done", "seconds": round(seconds, 3)}
        if stage != "train":  # a delta stores the digest of its tensors
            done["sha256"] = sha256_file(output_of(folder, stage))
        self._update(folder, stages={**self.status(folder)["stages"], stage: done})
        if stage == "train":  # last: a kill before this loses only the steps since the last saved state
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)

    def take_weights(self, cell: CellSpec, key: str) -> float | None:
        """Put the weights of a finished training under a cell that differs from it only in how it answers.

        Args:
            cell: its training stage runs; the caller holds its lock.
            key: of its training.

        Returns:
            How long the training took, in seconds; None if no cell here has its weights.
        """
        source = self.trained(cell, key)
        if source is None:
            return None
        folder = self.folder(cell)
        for path in _outputs(source, "train"):
            if path.is_file():
                link_or_copy(path, folder / path.name)
        return self.seconds(source)["train"]

    def trained(self, cell: CellSpec, key: str) -> Path | None:
        """Return the folder of another cell with the weights of a training; None if there is none."""
        if self.is_published:
            return None
        own = self.folder(cell)
        for name in (name for names in self._names().values() for name in names if of_same_grid(name, cell)):
            folder = self.cells / name
            if folder != own:
                stages = self.status(folder)["stages"]
                if _done(folder, stages, "train", key) and output_of(folder, "train").is_file():
                    return folder
        return None

    def finish_elsewhere(self, cell: CellSpec, keys: Keys, seconds: Mapping[str, float]) -> None:
        """Record that every stage was finished on another machine, whose weights are not here.

        Args:
            cell: its answers, items, scores and log are in its folder; the caller holds its lock.
            keys: of its stages.
            seconds: how long each stage took there.
        """
        folder, stages = self.folder(cell), {}
        for stage, key in keys.stages.items():
            files = {"weights": False} if stage == "train" else {"sha256": sha256_file(output_of(folder, stage))}
            stages[stage] = {"key": key, "state": "done", "seconds": seconds.get(stage, 0.0), **files}
        self._update(folder, state="done", stages=stages)

    def finish(self, cell: CellSpec, state: str, error: dict[str, str] | None = None) -> None:
        """Record the end of a cell: done, failed (with its error) or interrupted."""
        self._update(self.folder(cell), state=state, error=error)

    def _update(self, folder: Path, **changes: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        status = {**self.status(folder), **changes, "updated": now}
        write_atomic(folder / "status.json", json.dumps(status, indent=1) + "\n")

    # -- one owner ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, cell: CellSpec) -> Iterator[None]:
        """Hold a cell while working on it.

        The folder's `lock` file names the owner (host, process), who touches it every few seconds. A lock is taken over
        if its process is gone, or if its owner on another host has not touched it for minutes.

        Raises:
            Locked: another living process holds it.
        """
        folder = self.folder(cell)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot create {folder}: {error.strerror}. Choose another with RESULTS=dir.") from error
        path, owner = folder / "lock", _owner()
        with short_lock(self.cells / ".lock"):
            held = read_lock(path)
            if held is not None and _alive(held, path):
                raise Locked(f"process {held['pid']} on {held['host']}")
            write_atomic(path, json.dumps(owner))
        stop = threading.Event()
        thread = threading.Thread(target=_beat, args=(path, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(HEARTBEAT_SECONDS)  # a disk that hangs would block it
            if read_lock(path) == owner:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if nothing was written


def read_cell(folder: Path) -> CellSpec:
    """Return the cell that a folder holds.

    Raises:
        UserError: cell.yaml is missing, or does not describe a cell.
    """
    return cell_of(read_values(folder), str(folder / "cell.yaml"))


def read_values(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's cell.yaml.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / "cell.yaml"
    try:
        if isinstance(folder, cell_tables.CellPath):
            values = folder.spec()
        else:
            text = path.read_text(encoding="utf-8")
            if "&" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
                raise ValueError("it has YAML aliases")  # nine lines can expand to a billion
            values = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read {path}: {str(error).splitlines()[0]}. Name a cell of `list cells`.") from error
    return values if isinstance(values, dict) else {}


def published_key(folder: Path) -> str | None:
    """Return the key of a published cell; None if it has none or belongs to a run."""
    try:
        return (folder / cell_tables.KEY).read_text().strip()
    except OSError:
        return None


def _outputs(folder: Path, stage: str) -> list[Path]:
    """Return the files of a stage; the first one proves it complete."""
    kind, _, dataset = stage.partition("/")
    return {
        "train": [folder / "delta.safetensors", folder / "train.jsonl", folder / "checkpoint"],
        "generate": [folder / "answers" / f"{dataset}.jsonl"],
        "score": [folder / "items" / f"{dataset}.jsonl.gz"],
        "summary": [folder / "scores.json"],
    }[kind]


def _is_table(stages: Any) -> bool:
    """Return whether a record of stages has the form that `start_stage` and `finish_stage` write."""
    return isinstance(stages, dict) and all(isinstance(entry, dict) for entry in stages.values())


def stages_of(cell: CellSpec) -> list[str]:
    """Return the names of a cell's stages, in order."""
    names = [dataset.id for dataset in cell.datasets]
    train = ["train"] if cell.train is not None else []
    return [*train, *(f"generate/{name}" for name in names), *(f"score/{name}" for name in names), "summary"]


def output_of(folder: Path, stage: str) -> Path:
    """Return the file that proves a stage of a cell complete."""
    return _outputs(folder, stage)[0]


def _done(folder: Path, stages: dict[str, Any], stage: str, key: str) -> bool:
    """Return whether a stage was finished under this key and its file still exists, or never was on this machine."""
    entry = stages.get(stage, {})
    there = entry.get("weights") is False or output_of(folder, stage).is_file()
    return entry.get("key") == key and entry.get("state") == "done" and there


# ---------------------------------------------------------------------------------------------------------------
# Locks


def _owner() -> dict[str, Any]:
    """Return the identity of this process; the start time tells it from a later process with the same number."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks after boot; None without such a process or without /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def read_lock(path: Path) -> dict[str, Any] | None:
    """Return the owner that a lock file names; None if the file is missing or incomplete."""
    try:
        owner = json.loads(path.read_text())
        return owner if {"host", "pid", "started"} <= owner.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def is_held(path: Path, owner: dict[str, Any]) -> bool:
    """Return whether a lock file still names this owner, and the owner is alive."""
    return read_lock(path) == owner and _alive(owner, path)


def _alive(owner: dict[str, Any], path: Path) -> bool:
    """Return whether a lock's owner is alive."""
    if owner["host"] == socket.gethostname():
        if Path("/proc/self/stat").exists():
            return owner["started"] is not None and _started(owner["pid"]) == owner["started"]
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    try:
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    except OSError:
        return False


@contextlib.contextmanager
def short_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a file lock for a moment, so that processes take a few steps one after another.

    Args:
        path: the lock file.
        waiting: called once if another process holds the lock.

    Raises:
        UserError: the file cannot be written, or its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w"))
        except OSError as error:
            raise UserError(
                f"Cannot write {path}: {error.strerror}. Give a writable folder: results=DIR for results, "
                "data_root=DIR for data."
            ) from error
        lock(file, waiting=waiting)
        yield


def _beat(path: Path, stop: threading.Event) -> None:
    """Touch a lock file until `stop` is set."""
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def scored_datasets(folder: Path) -> list[str]:
    """Return the ids of the datasets of which a cell has item scores, in alphabetical order."""
    ending = cell_tables.SETS["items"]
    return sorted(path.name.removesuffix(ending) for path in (folder / "items").glob(f"*{ending}"))
