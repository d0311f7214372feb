"""Stand-ins for models, data, training and generation, so that plan, store and runner are tested in milliseconds.

A model is one number, `weight`. Training moves it by an amount that depends on method and seed, generation answers
each item from the item's id and the number. Every call is noted in a file, so that tests see what ran.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from benchmark.core.errors import UserError
from benchmark.data.record import Record
from benchmark.running import runner, worker
from benchmark.running.pool import Pool, serve
from benchmark.spec import head_of, seed_part
from benchmark.store.cells import read_cell

if TYPE_CHECKING:
    from tests.forked import Program

BASE = 1.0
ITEMS = 12
# "<stage> <method>=<what>": fail | user | interrupt | kill | usr1 | pause | sleep, comma list. Workers inherit it.
TROUBLE = "SPIDERBENCH_TEST_TROUBLE"
FOLDER = "SPIDERBENCH_TEST_FOLDER"


def trouble(stage: str, method: str) -> None:
    """Do what a test asked for at this point."""
    folder = Path(os.environ[FOLDER])
    for entry in filter(None, os.environ.get(TROUBLE, "").split(",")):
        place, _, what = entry.partition("=")
        if place != f"{stage} {method}":
            continue
        if what == "fail":
            raise RuntimeError("the loss exploded")
        if what == "user":
            raise UserError("Cannot read the image x.png. Restore this file.")
        if what == "interrupt":
            raise KeyboardInterrupt
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "usr1":
            os.kill(os.getpid(), signal.SIGUSR1)
        if what == "pause":
            time.sleep(0.3)
        if what == "sleep":
            (folder / "sleeping").write_text(str(os.getpid()))
            time.sleep(60)


def note(*words: Any) -> None:
    """Append a line to the list of calls."""
    with open(Path(os.environ[FOLDER]) / "calls.txt", "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def calls() -> list[str]:
    """Return the list of calls."""
    path = Path(os.environ[FOLDER]) / "calls.txt"
    return path.read_text().splitlines() if path.is_file() else []


def load_records(spec: Any, root: Path, split: str, limit: int | None = None, seed: int = 0) -> list[Record]:
    text = (Path(root) / spec.options.get("reader", spec.id) / "data.txt").read_text()
    return [
        Record(
            f"{split}{number}", spec.id, split, None, f"{text} {number}?", "A", ("A",) * 10, ("x", "y"), f"g{number}",
            {"question_type": "kind"},
        )
        for number in range(ITEMS)
    ][:limit]


def checkpoint_digest(path: Path) -> str:
    if not (Path(path) / "weights").is_file():
        raise UserError(f"Checkpoint folder {path} does not exist or is empty.")
    return hashlib.sha256((Path(path) / "weights").read_bytes()).hexdigest()


def load_model(spec: Any, dtype: Any) -> SimpleNamespace:
    if (Path(spec.checkpoint) / "weights").read_text() == "truncated":
        raise UserError(f"Checkpoint file {spec.checkpoint}/weights is truncated.")
    note("load", spec.id)
    model = SimpleNamespace(weight=BASE, to=lambda device: None)
    return SimpleNamespace(model=model, digest=checkpoint_digest(Path(spec.checkpoint)))


def train(cell: Any, loaded: Any, records: Any, method: Any, out: Path, on_progress: Any = None) -> None:
    assert loaded.model.weight == BASE, "the model was not reset to its base"
    assert [record.split for record in records] == ["train"] * len(records)
    note("train", cell.model.id, cell.method.id, cell.target, cell.seed, out.name)
    trouble("train", cell.method.id)
    on_progress(1, 2, {"loss": 2.0})
    digest = hashlib.sha256(f"{cell.method.id} {cell.seed} {cell.train.epochs}".encode()).digest()
    loaded.model.weight += digest[0] / 256
    steps = cell.train.epochs * math.ceil(len(records) / cell.train.batch_size)
    rows = [{"step": step, "loss": 1.0, "grad_norm": 1.0, "rms_delta": 0.5} for step in range(1, steps + 1)]
    (out / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "delta.safetensors").write_text(str(loaded.model.weight))


def transform(cell: Any, loaded: Any, records: Any, method: Any, base: Any, sources: Any, out: Path) -> None:
    note("posthoc", cell.model.id, cell.method.id)
    trouble("posthoc", cell.method.id)
    mean = sum(float(source.read_text()) for source in sources) / len(sources)
    out.write_text(str((mean + base) / 2))


def generate(
    loaded: Any, records: Any, spec: Any, out: Path, batch_size: int, on_progress: Any, share_images: bool = False
) -> None:
    note("generate", out.parent.parent.name, spec.id)
    trouble("generate", spec.id)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a") as file:
        for record in records:
            choice = hashlib.sha256(f"{record.prompt} {loaded.model.weight}".encode()).digest()[0] % 2
            file.write(json.dumps({"item_id": record.item_id, "text": "AB"[choice]}) + "\n")
    on_progress(len(records), len(records))


def apply_delta(model: Any, delta: float) -> None:
    model.weight = delta


def modules() -> dict[str, types.ModuleType]:
    """Return the stand-ins by module name."""
    def module(name: str, **content: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        vars(made).update(content)
        return made

    return {
        "benchmark.training.train": module("benchmark.training.train", train=train),
        "benchmark.training.posthoc": module("benchmark.training.posthoc", transform=transform),
        "benchmark.training.checkpoint": module(
            "benchmark.training.checkpoint", apply_delta=apply_delta, snapshot=lambda model, names: model.weight,
            load_delta=lambda path, digest: float(Path(path).read_text()),
        ),
        "benchmark.training.generate": module(
            "benchmark.training.generate", generate=generate, prompt_hash=lambda record: "",
        ),
    }


def world_in(folder: Path, patch: pytest.MonkeyPatch) -> World:
    """Return a fresh world of stand-ins in a folder."""
    patch.setenv(FOLDER, str(folder))
    patch.delenv(TROUBLE, raising=False)
    install(patch)
    return World(folder)


def install(patch: pytest.MonkeyPatch) -> None:
    """Replace what is slow."""
    import benchmark.data
    import benchmark.models
    import benchmark.training.trainable

    for name, made in modules().items():
        patch.setitem(sys.modules, name, made)
        parent, _, child = name.rpartition(".")
        patch.setattr(importlib.import_module(parent), child, made, raising=False)
    patch.setattr(benchmark.data, "load", load_records)
    patch.setattr(benchmark.models, "load", load_model)
    patch.setattr(benchmark.models, "digest", checkpoint_digest)
    patch.setattr(benchmark.models, "tuned_names", lambda *_: ["weight"])
    patch.setattr(benchmark.training.trainable, "trained_counts", lambda delta: {"mlp": 1} if delta.is_file() else {})


def serve_fake(*arguments: Any) -> None:
    """Body of a worker process with the stand-ins."""
    install(pytest.MonkeyPatch())
    serve(*arguments)


def serve_fake_gpu(*arguments: Any) -> None:
    """The same where there are GPUs: notes which one the process would use."""
    patch = pytest.MonkeyPatch()
    install(patch)
    patch.setattr(worker, "prepare_process", lambda threads, device, gpu: note("on", device, gpu))
    patch.setattr("torch.cuda.get_device_name", lambda *_: "stand-in")
    serve(*arguments)


def fork_workers(patch: pytest.MonkeyPatch, body: Callable[..., None]) -> None:
    """Make `run` fork its worker processes with all imports done; body is one of the two above."""
    from tests.forked import context, inherit

    def pool(*arguments: Any, **options: Any) -> Pool:
        return Pool(*arguments, **options, body=partial(inherit, dict(os.environ), body))

    patch.setattr(runner, "Pool", pool)
    patch.setattr("benchmark.running.pool.multiprocessing", SimpleNamespace(get_context=lambda how: context))


class World:
    """A folder with data, checkpoints and results; `run` is the command line on it."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "results"
        self.data = root / "data"
        for name in ("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa", "scienceqa"):
            (self.data / name).mkdir(parents=True)
            (self.data / name / "data.txt").write_text(name)
        self.checkpoint = root / "checkpoint"
        self.checkpoint.mkdir()
        (self.checkpoint / "weights").write_text("base")

    def overrides(self, *more: str) -> list[str]:
        """Return overrides that use the world's folders, on targets that need no Java."""
        return [
            "table=table6", "models=llava_pocket", "targets=iconqa", f"data_root={self.data}",
            f"model.checkpoint={self.checkpoint}", f"results={self.results}", "jobs=1", *more,
        ]

    def grid(self, *more: str) -> list[str]:
        """Return the same for a command that runs no cell."""
        return [item for item in self.overrides(*more) if not item.startswith("jobs=")]

    def cells(self) -> dict[str, Path]:
        """Return the folder of every cell by model, target, method and seed."""
        folders = {path.parent: read_cell(path.parent) for path in self.results.glob("cells/*/cell.yaml")}
        return {"-".join(filter(None, (head_of(cell), seed_part(cell)))): path for path, cell in folders.items()}

    def scores(self) -> dict[str, bytes]:
        """Return all scores.json by cell."""
        return {path.parent.name: path.read_bytes() for path in sorted(self.results.glob("cells/*/scores.json"))}

    def forget_calls(self) -> None:
        """Empty the list of calls."""
        (self.root / "calls.txt").unlink(missing_ok=True)


@contextmanager
def subprocess_main(arguments: list[str]) -> Iterator[Program]:
    """Run the command line with the stand-ins in a process of its own."""
    from tests.forked import Program

    process = Program(installed_main, arguments, folder=Path(os.environ[FOLDER]))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def installed_main(arguments: list[str]) -> int:
    """Run the command line with the stand-ins."""
    install(pytest.MonkeyPatch())
    from benchmark.cli import main

    return main(arguments)
