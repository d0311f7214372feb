"""What a method costs, measured: bytes it keeps, bytes at its peak, time per step (paper, Table 2)."""

from __future__ import annotations

import json
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmark.config.grid import FULL_FT
from benchmark.config.request import Request
from benchmark.core.files import write_atomic
from benchmark.models import LoadedModel, tuned_names
from benchmark.models.batch import Item, Items
from benchmark.models.prompt import IGNORE
from benchmark.planning.plan import Planned
from benchmark.running.worker import Worker
from benchmark.spec import CellSpec, is_tuned
from benchmark.store.cell_measures import FOOTPRINT
from benchmark.store.cells import Store
from benchmark.store.code_version import version
from benchmark.training import importance
from benchmark.training.adapters import insert
from benchmark.training.attach import attach
from benchmark.training.checkpoint import apply_delta, snapshot
from benchmark.training.losses import temperature
from benchmark.training.objective import batch_loss, objective_of, sample_losses, training_batch
from benchmark.training.order import Order
from methods.base import Method
from methods.posthoc import SeedMerge
from methods.registry import build

ROUNDS, STEPS = 3, 6
FIXED = ("shards", "extra_step", "params")  # of a method: the engine's, not its own


def measure(request: Request, plan: Sequence[Planned], store: Store) -> list[str]:
    """Measure every method of a request whose footprint is not known, and write footprint.json beside its cell.

    Training methods run a few steps in turn with Full FT, so that a busy machine slows both; the reported ratio is
    the median over rounds. A post-hoc method's time is that of its cell's merge beside the Full FT cell's training.

    Args:
        request: a table whose columns name the measures.
        plan: its cells.
        store: the results.

    Returns:
        One line per method that was measured.
    """
    told, worker = [], Worker(store)
    planned = {item.id: item for item in plan}
    groups: dict[tuple[Any, ...], list[Planned]] = {}
    for item in plan:
        if item.done and item.cell.train is not None:
            groups.setdefault((item.cell.model.id, item.cell.target), []).append(item)
    for items in groups.values():
        full_ft = replace(items[0].cell, method=request.full_ft)
        told += measure_beside(full_ft, items, planned, store, worker)
    return told


def measure_beside(
    full_ft: CellSpec, items: Sequence[Planned], planned: Mapping[str, Planned], store: Store, worker: Worker
) -> list[str]:
    """Measure cells of one model and target whose footprint is not known, and write footprint.json beside each.

    Args:
        full_ft: the cell that they are held against; it need not be finished.
        items: finished cells.
        planned: by id, with the cells that merges are made from.
        store: the results.
        worker: loads model and records.

    Returns:
        One line per cell that was measured.
    """
    todo = [item for item in items if item.cell.engine == "single" and known(item, store) is None]
    trained = {item.id: item.cell for item in todo if not item.cell.method.posthoc}
    found, told = _trained(trained, full_ft, worker) if trained else {}, []
    for item in todo:
        numbers = found.get(item.id) or _merged(item, planned, store, worker)
        content = {**numbers, "code": _code(item.cell), "device": item.cell.device}
        write_atomic(store.folder(item.cell) / FOOTPRINT, json.dumps(content) + "\n")
        told.append(f"{item.id}: keeps {numbers['memory']:.2f} |M|, time {numbers.get('step_time', 1):.2f}")
    return told


def _code(cell: CellSpec) -> str:
    """Return the versions of the code that a footprint depends on, and the settings that it was measured with."""
    assert cell.train is not None
    code = f"{version('footprint')}, {version(f'method/{cell.method.id}')}"
    code = f"{code}, batch_size {cell.train.batch_size}, last_layers {cell.train.last_layers}"
    later = {"loss": "cross_entropy", "scope": "last_layers", "projector": "full"}  # named where they are not usual
    given = {name: getattr(cell.train, name) for name in later}
    return ", ".join([code, *(f"{name} {value}" for name, value in given.items() if value != later[name])])


def known(item: Planned, store: Store) -> dict[str, Any] | None:
    """Return a cell's footprint as today's code measured it; None if it did not."""
    try:
        found = json.loads((store.folder(item.cell) / FOOTPRINT).read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("code") == _code(item.cell) else None


# ---------------------------------------------------------------------------------------------------------------
# Methods that act in training


def _trained(
    cells: Mapping[str, CellSpec], full_ft: CellSpec, worker: Worker
) -> dict[str, dict[str, float]]:
    """Return memory, peak and step_time of trained cells of one model and target, by their ids."""
    same = {name for name, cell in cells.items() if (cell.method.id, cell.train) == (FULL_FT, full_ft.train)}
    others = {name: cell for name, cell in cells.items() if name not in same}
    times: dict[str, list[float]] = {name: [] for name in others}
    usual: list[float] = []
    bench = Bench(full_ft, worker)
    for _ in range(ROUNDS):
        usual.append(bench.step_seconds(full_ft))
        for name, cell in others.items():
            times[name].append(bench.step_seconds(cell))
    found = dict.fromkeys(same, bench.bytes_of(full_ft) | {"step_time": 1.0}) if same else {}
    for name, cell in others.items():
        ratios = [own / base for own, base in zip(times[name], usual, strict=True)]
        found[name] = bench.bytes_of(cell) | {"step_time": median(ratios)}
    return found


class Bench:
    """A model with batches of its target's training set, to run a few optimizer steps of any method.

    Args:
        cell: any cell of the model and target.
        worker: loads model and records.
    """

    added = 0    # bytes of the adapter that the last steps trained
    trained = 0  # bytes of all that they trained, in float32

    def __init__(self, cell: CellSpec, worker: Worker) -> None:
        assert is_tuned(cell)
        self.loaded: LoadedModel = worker._load(cell)
        self.records = worker.training_records(cell)
        items = Items(self.loaded, self.records, supervised=True)
        tokens = [sum(label != IGNORE for label in labels) for _, labels in items.encoded]
        pairs = list(Order(cell.seed, tokens, cell.train.batch_size, cell.train.loss_group))
        size = cell.train.batch_size
        starts = range(0, max(1, len(pairs) - size + 1), size)
        self.batches = [[(items[i], weight) for i, weight in pairs[start : start + size]] for start in starts]
        whole = set(tuned_names(self.loaded, cell.train))
        self.unit = 4 * sum(p.numel() for name, p in self.loaded.model.named_parameters() if name in whole)

    def steps(self, cell: CellSpec, method: Method, count: int) -> Iterator[float]:
        """Run optimizer steps from the base weights; yield the seconds of each, and leave the base weights behind."""
        assert is_tuned(cell)
        model, settings = self.loaded.model, cell.train
        names = tuned_names(self.loaded, settings)
        importance.measure(cell, self.loaded, method, names)
        adapter = insert(cell, self.loaded, method, names, self.records, sharded=False)
        self.added = adapter.bytes if adapter else 0
        base = snapshot(model, adapter.trained if adapter else names)
        trained = {name: parameter for name, parameter in model.named_parameters() if name in base}
        self.trained = sum(4 * parameter.numel() for parameter in trained.values())
        model.requires_grad_(False)
        for parameter in trained.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(list(trained.values()), lr=settings.learning_rate, weight_decay=0.0)
        attachment = attach(optimizer, trained, base, method, adapter.unseen if adapter else ())
        objective = objective_of(settings, trained, base, adapted=adapter is not None)
        batches = chain.from_iterable(repeat(self.batches))
        try:
            for _, pairs in zip(range(count), batches, strict=False):
                wait(model.device)
                began = time.perf_counter()
                autocast, size = cell.dtype == "bfloat16", settings.micro_batch_size
                parts = [self._batch(pairs[start : start + size]) for start in range(0, len(pairs), size)]
                if settings.loss == "talr":
                    means = [mean for part in parts for mean in sample_losses(model, part, autocast)]
                    objective.tau = temperature(means)
                for part in parts:
                    batch_loss(model, part, autocast, objective)[0].backward()
                if settings.max_grad_norm:
                    torch.nn.utils.clip_grad_norm_(list(trained.values()), settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                wait(model.device)
                yield time.perf_counter() - began
        finally:
            attachment.remove()
            model.requires_grad_(False)
            for name, parameter in trained.items():
                parameter.grad = None
                parameter.data = parameter.data.to(base[name].dtype)
            apply_delta(model, base)
            if adapter:
                adapter.remove()

    def _batch(self, pairs: Sequence[tuple[Item, float]]) -> dict[str, Tensor]:
        batch = training_batch(self.loaded, pairs)
        batch.pop("item_ids")
        return {name: tensor.to(self.loaded.model.device) for name, tensor in batch.items()}

    def step_seconds(self, cell: CellSpec) -> float:
        """Return the median time of an optimizer step; the first, which allocates, does not count."""
        method = build(cell.method.id, dict(cell.method.params), cell.seed)
        return median(list(self.steps(cell, method, STEPS))[1:])

    def bytes_of(self, cell: CellSpec) -> dict[str, float]:
        """Return memory (kept between steps), peak (while the method acts) and what trains, in float32 copies of M.

        An adapter's tensors count as kept: they are in the model beside its base weights.
        """
        method = build(cell.method.id, dict(cell.method.params), cell.seed)
        counter = LiveBytes()
        _count(counter, method, "start", "before_step", "after_step")
        for _ in self.steps(cell, method, 3):
            with counter:
                method.diagnostics()  # as training does every few steps; what it keeps to do so counts
        pretrained = sum(_storages(_pretrained(method)).values()) + self.added
        kept = kept_bytes(method) + self.added
        peak = pretrained + counter.peak
        return {"memory": kept / self.unit, "peak": peak / self.unit, "trained": self.trained / self.unit}


def wait(device: torch.device) -> None:
    """Wait until a device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _count(counter: LiveBytes, method: Method, *hooks: str) -> None:
    """Let a counter see what hooks of a method make."""
    def counted(hook: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with counter:
                return hook(*arguments)

        return run

    for name in hooks:
        setattr(method, name, counted(getattr(method, name)))


def kept_bytes(method: Method, shared: Iterable[Tensor] = ()) -> int:
    """Return the bytes of all tensors that a method keeps between steps, with w* if it reads it.

    Args:
        method: after a step.
        shared: tensors that are there without the method; what it keeps of them costs nothing.
    """
    own = {name: value for name, value in vars(method).items() if name not in FIXED}
    without = _storages(list(shared))
    return sum(size for place, size in _storages([own, _pretrained(method)]).items() if place not in without)


def _pretrained(method: Method) -> list[Tensor]:
    """Return w* as a method keeps it, a part for each of its tensors; nothing if it does not read it."""
    return [shard.source for shard in method.shards] if method.uses_pretrained else []


def _storages(value: Any) -> dict[int, int]:
    """Return address -> bytes of the storages of every tensor reachable from a value."""
    return {_place(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(value)}


def _tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Yield every tensor reachable from a value; functions and modules are nobody's memory."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, seen)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from _tensors(vars(value), seen)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is active, as long as they live, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._users: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_place(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (_place(leaf) in self._sizes or _place(leaf) not in given):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        place, size = _place(tensor), tensor.untyped_storage().nbytes()
        if not size:
            return
        if place not in self._sizes:
            self._sizes[place] = size
            self.now += size
            self.peak = max(self.peak, self.now)
        self._users[place] += 1
        weakref.finalize(tensor, self._drop, place)

    def _drop(self, place: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self.now -= self._sizes.pop(place)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# ---------------------------------------------------------------------------------------------------------------
# Post-hoc methods


def _merged(item: Planned, planned: Mapping[str, Planned], store: Store, worker: Worker) -> dict[str, float]:
    """Return the footprint of a post-hoc method: nothing during training, its peak and time at the merge."""
    from benchmark.training import posthoc

    assert item.needs and is_tuned(item.cell)
    cell, sources = item.cell, [planned[name].cell for name in item.needs]
    folder, counter = store.folder(cell), LiveBytes()
    method = build(cell.method.id, dict(cell.method.params), cell.seed)
    _count(counter, method, "combine" if isinstance(method, SeedMerge) else "finish")
    scratch = folder / ".footprint.safetensors"
    try:
        with worker.base(cell) as base:
            unit = 4 * sum(tensor.numel() for tensor in base.values())
            pretrained = sum(tensor.nbytes for tensor in base.values())
            records = worker.training_records(cell)
            deltas = [store.folder(source) / "delta.safetensors" for source in sources]
            posthoc.transform(cell, worker._load(cell), records, method, base, deltas, scratch)
    finally:
        Path(scratch).unlink(missing_ok=True)
    own = store.seconds(folder).get("train")
    trained = [store.seconds(store.folder(source)).get("train") for source in sources]
    known = [seconds for seconds in trained if seconds]
    times = {}
    if own is not None and len(known) == len(sources):
        times["step_time"] = (sum(known) + own) / known[0]  # beside one training
    return {"memory": 0.0, "peak": (pretrained + counter.peak) / unit, **times}
