"""What a GPU does with full-size models of random weights: training speed, memory, evaluation speed.

    make gpu-check PART=train|memory|eval       each at most eight minutes on one 80 GB GPU, results after every row
    python -m benchmark gpu-check part=train device=cpu       a rehearsal with tiny models, which measures nothing
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from benchmark import data
from benchmark.config.request import request
from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import user_path, write_atomic
from benchmark.core.progress import Lines
from benchmark.data import Record
from benchmark.models import LoadedModel, tuned_names
from benchmark.models.sizes import Architecture, Tower, architecture_of
from benchmark.planning.estimate import GIB, GPUS, OVERHEAD, Setting, memory
from benchmark.profiling.random_model import random_model
from benchmark.profiling.settings import read_settings
from benchmark.running.method_cost import wait
from benchmark.spec import WORK, CellSpec, DatasetSpec, EvalSpec, MethodSpec, at_root, is_tuned
from benchmark.store.provenance import PACKAGES, version
from benchmark.training.checkpoint import snapshot
from benchmark.training.generate import generate
from benchmark.training.train import train
from methods.registry import build

Device = Literal["cuda", "cpu"]
LIMIT = 420.0          # seconds after which no further row is begun
CAP = 24 * GIB         # of the run under a small card's memory
KEPT = ("weights", "optimizer", "base values", "method state")  # parts of the plan that stay between steps
STEP = ("gradients", "activations", "logits")                   # parts that come and go in a step
METHODS = ("full_ft", "spider")
MICRO_BATCHES = (4, 8, 2, 16)
EVAL_BATCHES = (16, 64)
QUESTIONS = 13         # on one image, as in GQA's testdev
NEW_TOKENS = 3         # of an answer: the usual length in VQA
TINY = {
    "llava": Architecture("llava", 32, 48, 2, 2, 2, 32064, Tower(16, 32, 2, 2, 24, 8)),
    "vila": Architecture("vila", 32, 48, 2, 2, 2, 32000, Tower(16, 32, 2, 2, 40, 8)),
}


@dataclass
class Check:
    """One run of the check.

    Args:
        device: cuda or cpu.
        path: JSON file of the results; a Markdown table lies beside it.
        part: train, memory or eval.
        models: id -> (pretty name, sizes).
        steps: optimizer steps of a training, of which the first is not counted.
        images: pictures for evaluation.
        started: when.
    """

    device: Device
    path: Path
    part: str
    models: dict[str, tuple[str, Architecture]]
    steps: int
    images: int
    started: float

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the weights."""
        return "bfloat16" if self.device == "cuda" else "float32"

    def measure(self, row: dict[str, Any], measured: Callable[[], dict[str, Any]]) -> None:
        """Add a row with what is measured for it, or without if the time is up or the GPU has too little memory."""
        if time.monotonic() - self.started > LIMIT:
            self.add({**row, "not_measured": "time is up"})
            return
        _empty()
        try:
            self.add({**row, **measured()})
        except torch.OutOfMemoryError:
            self.add({**row, "out_of_memory": True})

    def add(self, row: dict[str, Any]) -> None:
        """Append a row to the file and print it."""
        content = _read(self.path)
        content |= {"device": _name(self.device), "packages": {name: version(name) for name in PACKAGES}}
        content["rehearsal"] = self.device == "cpu"
        content.setdefault("parts", {}).setdefault(self.part, []).append(row)
        write_atomic(self.path, json.dumps(content, indent=1) + "\n")
        write_atomic(self.path.with_suffix(".md"), markdown(content))
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run one part.

    Args:
        arguments: part=train|memory|eval, device=cuda|cpu (default cuda), out=FOLDER.

    Returns:
        Exit code 0.

    Raises:
        UserError: an unknown part or key, or no GPU.
    """
    given = read_settings("gpu-check", {"part": "", "device": "cuda", "out": ""}, arguments)
    part, large = given["part"], given["device"] == "cuda"
    if part not in PARTS:
        raise UserError(f"part={part}: expected one of them.{did_you_mean(part, PARTS)}")
    device: Device = "cuda" if large else "cpu"
    if given["device"] != device:
        raise UserError(f"device={given['device']}: cuda, or cpu for a rehearsal with tiny models.")
    if large and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device. Run this on one, or rehearse it: device=cpu.")
    folder = user_path(given["out"] or WORK / ("results/gpu" if large else "results/runs/gpu-check"))
    slug = re.sub(r"[^a-z0-9]+", "-", _name(device).lower()).strip("-")
    named = {m.id: (m.name, architecture_of(m.architecture, m.id)) for m in request(["profile=paper"], False).models}
    paper = {name: (pretty, sizes) for name, (pretty, sizes) in named.items() if isinstance(sizes, Architecture)}
    models = paper if large else {f"tiny_{name}": (f"tiny {name}", sizes) for name, sizes in TINY.items()}
    path = folder / f"{slug}.json"
    content = _read(path)
    content.get("parts", {}).pop(part, None)  # a new run of a part replaces the old one's rows
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    check = Check(device, path, part, models, 5 if large else 2, 16 if large else 2, time.monotonic())
    for number, (name, (pretty, sizes)) in enumerate(models.items()):
        # Each model gets its half of the time, so that the second is not left out.
        check.started = time.monotonic() - (LIMIT / len(models) * (len(models) - 1) if number == 0 else 0)
        PARTS[part](check, name, pretty, sizes)
    print(f"Written: {path} and {path.with_suffix('.md').name}")
    return 0


# ---------------------------------------------------------------------------------------------------------------
# Parts


def check_train(check: Check, name: str, pretty: str, sizes: Architecture) -> None:
    """Measure throughput of Full FT and SPIDER at several micro-batches, with and without checkpointing."""
    loaded = random_model(sizes, check.device, check.dtype)
    records = _captions(16 * check.steps)
    for checkpointing, micro, method in itertools.product((True, False), MICRO_BATCHES, METHODS):
        cell = _cell(name, check, method, micro, checkpointing)
        check.measure(
            {"model": pretty, "method": method, "micro_batch": micro, "checkpointing": checkpointing},
            partial(_train_row, check, cell, loaded, records, sizes),
        )


def check_memory(check: Check, name: str, pretty: str, sizes: Architecture) -> None:
    """Measure the memory of a training by one process beside the plan's, also under a cap of 24 GiB."""
    zero2, records = find_spec("deepspeed") is not None, _captions(16 * 2)
    stage = {"stage": 2, "reduce_bucket_size": 50_000_000} if zero2 else {}
    for method, (checkpointing, cap) in itertools.product(METHODS, ((True, None), (True, CAP), (False, None))):
        cell = _cell(name, check, method, 2, checkpointing)
        cell = replace(cell, engine="zero2" if zero2 else "single", zero_optimization=stage)
        check.measure(
            {"model": pretty, "method": method, "engine": cell.engine, "checkpointing": checkpointing,
             "cap_gib": cap and cap / GIB},
            partial(_memory_row, check, cell, sizes, records, cap),
        )


def check_eval(check: Check, name: str, pretty: str, sizes: Architecture) -> None:
    """Measure items per second one by one, in batches, and with the image run once for its questions."""
    loaded = random_model(sizes, check.device, check.dtype)
    questions = _questions(check.images)
    ways = [(1, False), *((size, False) for size in EVAL_BATCHES), *((size, True) for size in EVAL_BATCHES[:1])]
    rates: dict[int, float] = {}
    for batch, shared in ways:
        used = questions if batch > 1 else questions[: len(questions) // 4]
        check.measure(
            {"model": pretty, "batch": batch, "shared_image": shared},
            partial(_eval_row, loaded, used, batch, shared, rates),
        )


PARTS: dict[str, Callable[[Check, str, str, Architecture], None]] = {
    "train": check_train, "memory": check_memory, "eval": check_eval,
}


# ---------------------------------------------------------------------------------------------------------------
# Rows


def _train_row(
    check: Check, cell: CellSpec, loaded: LoadedModel, records: Sequence[Record], sizes: Architecture
) -> dict[str, Any]:
    times: list[float] = []

    def told(*_: Any) -> None:
        wait(torch.device(check.device))
        times.append(time.monotonic())

    assert is_tuned(cell)
    try:
        with _folder() as folder:
            train(cell, loaded, records, build(cell.method.id, {}, 0), folder, told)
            waiting = json.loads((folder / "speed.json").read_text())["share_waiting_for_data"]
    except torch.OutOfMemoryError:
        # What training left behind: float32 weights of the trained tensors, and their gradients.
        loaded.model.requires_grad_(False).to(getattr(torch, check.dtype)).zero_grad()
        _empty()
        raise
    rate = 16 * (len(times) - 1) / (times[-1] - times[0])
    length = _mean_length(loaded, records)
    blocks = sizes.layers * sizes.block + sizes.projector
    trained = sizes.trainable(cell.train.scope, cell.train.last_layers, cell.train.projector)
    flops = (4.0 * blocks + 2.0 * trained) * length  # 2P forward, 2P activation gradient, 2P of what trains
    peak = _peak(check.device)
    return {
        "samples_per_second": round(rate, 3), "tokens_per_sample": round(length, 1),
        "mfu": round(rate * flops / peak, 4) if peak else None, "share_waiting_for_data": waiting,
        "peak_gib": _allocated(check.device, peak=True),
    }


def _memory_row(
    check: Check, cell: CellSpec, sizes: Architecture, records: Sequence[Record], cap: float | None
) -> dict[str, Any]:
    assert is_tuned(cell)
    setting = Setting(
        sizes, cell.engine, 1, 2, 16, cell.train.gradient_checkpointing, cell.train.scope, cell.train.last_layers, 640
        if sizes.family == "llava" else 260, cell.method.id, 50_000_000,
    )
    planned = {part: round(value / GIB, 3) for part, value in memory(setting).items()}
    eight = memory(replace(setting, engine="zero2", processes=8))
    row: dict[str, Any] = {
        "plan_gib": planned, "plan_weights_gib": planned["weights"],
        "plan_kept_gib": round(sum(planned[part] for part in KEPT), 3),
        "plan_step_gib": round(sum(planned[part] for part in STEP), 3),
        "plan_peak_gib": round(sum(planned.values()) - OVERHEAD / GIB, 2),
        "computed_8_ranks_gib": round(sum(eight.values()) / GIB, 2),
    }
    kept: list[float | None] = []
    if cap is not None and check.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total))
    loaded, base = None, None
    try:
        loaded = random_model(sizes, check.device, check.dtype)
        row["weights_gib"] = _allocated(check.device)
        if cell.engine == "single":  # as the worker holds in a run
            base = snapshot(loaded.model, tuned_names(loaded, cell.train))
        with _folder() as folder:
            train(
                cell, loaded, records, build(cell.method.id, {}, 0), folder,
                lambda *_: kept.append(_allocated(check.device)),
            )
        peak = _allocated(check.device, peak=True)
        row |= {"kept_gib": kept[-1], "peak_gib": peak, "fits": True}
        if peak is not None and kept[-1] is not None:
            row["step_gib"] = round(peak - kept[-1], 3)
    except torch.OutOfMemoryError:
        row["fits"] = False
    finally:
        del loaded, base
        if check.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
        _empty()
    return row


def _eval_row(
    loaded: LoadedModel, questions: Sequence[Record], batch: int, shared: bool, rates: dict[int, float]
) -> dict[str, Any]:
    """Return items per second, also as a multiple of the rate one by one, which `rates` keeps."""
    _answer(loaded, questions[: 2 * QUESTIONS], batch, shared)  # what a first call compiles and allocates
    rate = len(questions) / _answer(loaded, questions, batch, shared)
    rates.setdefault(batch, rate)
    return {
        "items": len(questions), "items_per_second": round(rate, 3),
        "times_batch_1": round(rate / rates[1], 2) if 1 in rates else None,
    }


def _answer(loaded: LoadedModel, questions: Sequence[Record], batch: int, shared: bool) -> float:
    """Return the seconds that answering takes, image preprocessing and tower included."""
    spec = replace(request(["profile=paper"], False).datasets["gqa"], max_new_tokens=NEW_TOKENS)
    loaded.features.clear()
    with _folder() as folder:
        wait(loaded.model.device)
        began = time.monotonic()
        generate(loaded, questions, spec, folder / "answers.jsonl", batch, share_images=shared)
        wait(loaded.model.device)
        return time.monotonic() - began


# ---------------------------------------------------------------------------------------------------------------
# Inputs


def _cell(name: str, check: Check, method: str, micro: int, checkpointing: bool) -> CellSpec:
    paper = request(["profile=paper", "model=llava15_7b", "method=full_ft", "dataset=coco"])
    base = paper.cells[0]
    assert base.train is not None
    settings = replace(
        base.train, epochs=1, micro_batch_size=micro, learning_rate=1e-6, projector_learning_rate=1e-6,
        gradient_checkpointing=checkpointing,
    )
    return replace(
        base, model=replace(base.model, id=name, architecture={}), method=MethodSpec(method, {}), train=settings,
        device=check.device, dtype=check.dtype, engine="single", zero_optimization={}, processes=1, threads=2,
        eval=EvalSpec(16),
    )


def _drawn() -> Path:
    """Return the folder of the default profile's datasets, which are drawn if they are missing."""
    asked = request([], False)
    root = at_root(asked.data_root)
    if not (root / "coco").is_dir():
        from benchmark.running.runner import draw

        draw(asked.profile, asked.data_root, Lines())
    return root


def _dataset(name: str) -> DatasetSpec:
    spec = request([], False).datasets[name]
    return replace(spec, counts=dict.fromkeys(spec.counts))  # speed does not depend on how many were drawn


def _captions(count: int) -> list[Record]:
    return data.load(_dataset("coco"), _drawn(), "train")[:count]


def _questions(images: int) -> list[Record]:
    """Return GQA-shaped questions: so many on each image."""
    records = data.load(_dataset("gqa"), _drawn(), "test")
    prompts = list(dict.fromkeys(record.prompt for record in records))[:QUESTIONS]
    pictures = list({record.image: record for record in records}.values())[:images]
    return [
        replace(record, item_id=f"{record.item_id}/{number}", prompt=prompt)
        for record in pictures for number, prompt in enumerate(prompts)
    ]


def _mean_length(loaded: LoadedModel, records: Sequence[Record]) -> float:
    from benchmark.models.batch import Items

    encoded = Items(loaded, records, supervised=True).encoded
    return sum(len(ids) for ids, _ in encoded) / len(encoded)


# ---------------------------------------------------------------------------------------------------------------
# The device


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu rehearsal"


def _empty() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _allocated(device: str, peak: bool = False) -> float | None:
    if device != "cuda":
        return None
    return round((torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / GIB, 3)


def _peak(device: str) -> float | None:
    """Return the bf16 peak of the card, FLOP/s, if it is known."""
    name = _name(device).lower().replace(" ", "")
    found = [gpu.peak for gpu in GPUS.values() if gpu.name.partition("-")[0] in name]
    return found[0] * 1e12 if found else None


# ---------------------------------------------------------------------------------------------------------------
# The file


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def markdown(content: dict[str, Any]) -> str:
    """Return the results as Markdown tables, one per part."""
    lines = [f"# {content['device']}", ""]
    if content.get("rehearsal"):
        lines += ["A rehearsal with tiny models on a CPU: it shows that the check runs, and measures nothing.", ""]
    lines += ["Random weights, small drawn images. The figures for 8 ranks are computed, not measured.", ""]
    for part, rows in content.get("parts", {}).items():
        columns = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], dict)))
        lines += [f"## {part}", "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(_cell_text(row.get(column)) for column in columns)} |" for row in rows] + [""]
    return "\n".join(lines)


def _cell_text(value: Any) -> str:
    return {None: "", True: "yes", False: "no"}.get(value, str(value)) if not isinstance(value, float) else f"{value:g}"
