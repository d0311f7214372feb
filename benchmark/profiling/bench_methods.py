"""What each method costs: optimizer steps timed in turns with Full FT's, bytes kept, bytes moved, host reads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import user_path, write_atomic
from benchmark.core.machine import available_gb
from benchmark.profiling.settings import names_of, read_settings
from benchmark.running.method_cost import kept_bytes, wait
from benchmark.training.attach import Attachment, attach
from methods import fused
from methods.base import Method
from methods.importance import ImportanceMethod
from methods.registry import METHODS, build
from methods.shards import Shards

FLOAT = 4  # bytes
RELEASED = "released code"
# What lives besides the method: weights, gradients, Adam's two moments, and w* in 16 bits; in |M| float32 units.
SHARED = 4.5
# A method's temporary tensors, in float32 units of the largest tensor.
TEMPORARY = 12


TRAINED = tuple(name for name, entry in METHODS.items() if entry.kind == "training")


@dataclass(frozen=True)
class Size:
    """What is tuned, two Llama blocks and a projector of two layers; and how often each method is timed.

    Attributes:
        name: of the model.
        width: of the language model.
        inner: width of its feed-forward layers.
        vision: width of the vision tower's features.
        rounds: timed steps of each method.
    """

    name: str
    width: int
    inner: int
    vision: int
    rounds: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the tuned tensors' shapes by name, as `benchmark.models` names LLaVA's."""
        found: dict[str, tuple[int, ...]] = {}
        for layer in (f"model.language_model.layers.{number}" for number in (30, 31)):
            found |= {f"{layer}.self_attn.{kind}_proj.weight": (self.width, self.width) for kind in "qkvo"}
            found |= {f"{layer}.mlp.{kind}_proj.weight": (self.inner, self.width) for kind in ("gate", "up")}
            found[f"{layer}.mlp.down_proj.weight"] = (self.width, self.inner)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"{layer}.{norm}.weight"] = (self.width,)
        for number, columns in ((1, self.vision), (2, self.width)):
            layer = f"model.multi_modal_projector.linear_{number}"
            found |= {f"{layer}.weight": (self.width, columns), f"{layer}.bias": (self.width,)}
        return found

    def numel(self) -> int:
        """Return |M|."""
        return sum(torch.Size(shape).numel() for shape in self.shapes().values())


SIZES = {
    "small": Size("LLaVA, shipped size", 128, 384, 128, rounds=40),
    "llava15_7b": Size("LLaVA-1.5-7B", 4096, 11008, 1024, rounds=3),
}


class Released(Method):
    """The data movement of the released SPIDER trainer (WenkeHuang/SPIDER, Code/train/SPIDER.py), in our own words.

    After every optimizer step, in three passes over the tensors: the gradient is gathered as a whole and copied, added
    to the sum of all before, and ranked; masks are built; weights are gathered as a whole, copied, blended and written
    back. w*, its ranks, the sum, its ranks and the masks stay as whole float32 tensors. The host waits for the device
    twice per tensor: is it all zero, and how many elements does the mask keep.

    Granularity, tensors, source: as spider_code, whose weights it gives. Acts: `after_step` only. Extra memory: 5 |M|.
    Disagreements: on one process gathering is a copy; over several it would also be communication of 2 |M|. It reads
    the gradient as the optimizer had it, the released code unclipped.
    """

    uses_pretrained = False  # it copies the weights that it finds

    def start(self, shards: Shards) -> None:
        self.base = {shard.name: shard.weight.clone() for shard in shards}
        self.base_rank = {name: self._rank(values) for name, values in self.base.items()}
        self.total: dict[str, Tensor] = {}

    def after_step(self, shards: Shards) -> None:
        self.rank: dict[str, Tensor] = {}
        for shard in shards:
            assert shard.grad is not None
            gradient = shard.grad.clone().clone()
            before = self.total.get(shard.name)
            self.total[shard.name] = gradient if before is None else before + gradient
            self.rank[shard.name] = self._rank(self.total[shard.name])
        self.masks: dict[str, Tensor] = {}
        for shard in shards:
            generic, special = self.base_rank[shard.name], self.rank[shard.name]
            mask = torch.where(generic < special, special / (generic + special), 0.0)
            kept = mask[mask != 0]
            if kept.numel():
                mask /= kept.mean()
                mask = torch.where(mask > 1, 1.0, mask)
            self.masks[shard.name] = mask
        for shard in shards:
            after, mask = shard.weight.clone().clone(), self.masks[shard.name]
            shard.weight.copy_(self.base[shard.name] * (1 - mask) + after * mask)

    @staticmethod
    def _rank(values: Tensor) -> Tensor:
        if torch.all(values == 0):
            return torch.zeros_like(values)
        size = values.abs()
        return torch.sigmoid((size - size.mean()) / size.std())


# ---------------------------------------------------------------------------------------------------------------
# Counting


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, as if nothing stayed in a cache; views move nothing."""

    ONLY_WRITTEN = ("copy_", "zero_", "fill_")  # what they change, they do not read

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.paused = False

    def fused(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Count a function that a compiler makes one pass of: it reads its arguments and writes its result."""
        self.paused = True
        result = function(*arguments)
        self.paused = False
        self._add((arguments, result))
        return result

    def _add(self, tensors: Any) -> None:
        self.bytes += sum(leaf.nbytes for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not self.paused and not func.is_view and not name.startswith("empty"):
            read = [value for key, value in kwargs.items() if key != "out"]
            read += args[1:] if name in self.ONLY_WRITTEN else args
            self._add((read, result))
        return result


class Waits(TorchFunctionMode):
    """Counts how often Python reads a result, for which it waits until a GPU has computed it."""

    READS = frozenset((
        "tolist", "item", "numpy", "cpu", "equal", "allclose", "bincount", "nonzero", "argwhere", "masked_select",
        "unique", "__bool__", "__float__", "__int__", "__index__", "__contains__", "__format__",
    ))

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        self.count += name in self.READS or (name == "where" and len(args) == 1) or (
            name == "__getitem__" and any(
                isinstance(index, Tensor) and index.dtype == torch.bool
                for index in (args[1] if isinstance(args[1], tuple) else (args[1],))
            )
        )
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Cost:
    """What a method costs.

    Attributes:
        step: seconds of an optimizer step with the method, median.
        ratio: over Full FT's step of the same round, median; with the quartiles of the rounds.
        quartiles: see there.
        kept: bytes between steps, beyond Full FT's, in |M| float32 units.
        moved: bytes that the method reads and writes per parameter and step, beyond the optimizer's.
        waits: times per step that the host waits for the device.
        row: seconds that a row of the log takes, median; training writes one every few steps.
    """

    step: float
    ratio: float
    quartiles: tuple[float, float]
    kept: float
    moved: float
    waits: float
    row: float


class StepBench:
    """Weights with random gradients, and optimizers that share one AdamW state; each carries one method.

    Args:
        size: the tensors.
        device: "cpu" or "cuda".
    """

    def __init__(self, size: Size, device: str) -> None:
        self.size = size
        self.device = torch.device(device)
        self.source = torch.Generator(self.device).manual_seed(0)
        self.base: dict[str, Tensor] = {}
        self.named: dict[str, Parameter] = {}
        for name, shape in size.shapes().items():
            values = torch.randn(shape, generator=self.source, device=self.device).mul_(shape[-1] ** -0.5)
            self.base[name] = values.bfloat16()
            self.named[name] = Parameter(self.base[name].float())
            self.named[name].grad = torch.empty_like(values)
        self.plain = self._optimizer()

    def _optimizer(self) -> torch.optim.AdamW:
        return torch.optim.AdamW(self.named.values(), lr=1e-5, weight_decay=0.0)

    def fresh_gradients(self) -> None:
        """Draw gradients anew, because methods change them in place."""
        for gradient in self._gradients():
            gradient.normal_(generator=self.source)

    def attach(self, method: Method) -> tuple[torch.optim.AdamW, Attachment]:
        """Return an optimizer that shares the moments of all others, with a method on it."""
        optimizer = self._optimizer()
        optimizer.state = self.plain.state
        if isinstance(method, ImportanceMethod):
            method.measure([{name: torch.ones_like(values) for name, values in self.named.items()}])
        return optimizer, attach(optimizer, self.named, self.base, method)

    def seconds(self, optimizer: torch.optim.AdamW) -> float:
        """Return the time of one step."""
        self.fresh_gradients()
        return self.timed(optimizer.step)

    def timed(self, work: Callable[[], Any]) -> float:
        """Return what work takes: time of this process's CPU, so that others do not count, or of the GPU."""
        if self.device.type == "cpu":
            start = time.process_time()
            work()
            return time.process_time() - start
        wait(self.device)
        start = time.perf_counter()
        work()
        wait(self.device)
        return time.perf_counter() - start

    def count(self, optimizer: torch.optim.AdamW) -> tuple[int, int]:
        """Return (bytes that one step moves, times that the host waits in it)."""
        self.fresh_gradients()
        return self.counted(optimizer.step)

    @staticmethod
    def counted(work: Callable[[], Any]) -> tuple[int, int]:
        """Return (bytes that work moves, times that the host waits in it)."""
        with Waits() as waits, Traffic() as traffic:
            fused.watch = traffic.fused
            try:
                work()
            finally:
                fused.watch = None
        return traffic.bytes, waits.count

    def measure(self, method: Method, rounds: int) -> Cost:
        """Time a method in turns with Full FT, the order changing from round to round."""
        optimizer, attachment = self.attach(method)
        for _ in range(2):  # the first step allocates
            self.seconds(self.plain)
            self.seconds(optimizer)
        attachment.method.diagnostics()  # as training does every few steps; what it keeps to do so counts
        (moved, waits), (plain_moved, plain_waits) = self.count(optimizer), self.count(self.plain)
        times = []
        for number in range(rounds):
            pair = (self.plain, optimizer) if number % 2 else (optimizer, self.plain)
            found = {which: self.seconds(which) for which in pair}
            times.append((found[self.plain], found[optimizer]))
        rows = [self.timed(attachment.diagnostics) for _ in range(rounds)]
        ratios = [own / plain for plain, own in times]
        low, _, high = statistics.quantiles(ratios)
        cost = Cost(
            step=statistics.median(own for _, own in times),
            ratio=statistics.median(ratios),
            quartiles=(low, high),
            kept=kept_bytes(attachment.method, self._shared()) / (FLOAT * self.size.numel()),
            moved=(moved - plain_moved) / self.size.numel(),
            waits=waits - plain_waits,
            row=statistics.median(rows),
        )
        attachment.remove()
        return cost

    def _shared(self) -> list[Tensor]:
        """Return what is there without any method."""
        state = [leaf for leaf in tree_leaves([*self.plain.state.values()]) if isinstance(leaf, Tensor)]
        return [*self.named.values(), *self._gradients(), *state]

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.named.values() if parameter.grad is not None]


def needed_gb(size: Size, methods: Sequence[str]) -> float:
    """Return the memory that a bench takes: what all share, the most that a method keeps, and temporary tensors.

    Args:
        size: the tensors.
        methods: ids; the released code's recreation keeps five copies, ours at most three.
    """
    kept = 5 if RELEASED in methods else 3
    largest = max(torch.Size(shape).numel() for shape in size.shapes().values())
    return FLOAT * ((SHARED + kept) * size.numel() + TEMPORARY * largest) / 1e9


def run(size: Size, methods: Sequence[str], device: str) -> dict[str, Cost]:
    """Measure methods one after the other, each in turns with Full FT.

    Args:
        size: the tensors.
        methods: ids, or RELEASED.
        device: "cpu" or "cuda".

    Returns:
        The costs by method.

    Raises:
        UserError: not enough memory.
    """
    needed, free = needed_gb(size, methods), _free_gb(device)
    if free is not None and free < needed:
        raise UserError(
            f"{size.name} has {size.numel() / 1e6:.1f} M trained weights: the bench needs {needed:.1f} GB of memory on "
            f"{device}, {free:.1f} GB are free. Use a machine with more, or SIZE=small."
        )
    bench, costs = StepBench(size, device), {}
    for name in methods:
        costs[name] = bench.measure(Released(None, 0) if name == RELEASED else build(name, {}, 0), size.rounds)
    return costs


def _free_gb(device: str) -> float | None:
    return torch.cuda.mem_get_info()[0] / 1e9 if device == "cuda" else available_gb()


def report(size: Size, device: str, costs: Mapping[str, Cost]) -> str:
    """Return the costs as Markdown, with where they were measured."""
    place = torch.cuda.get_device_name() if device == "cuda" else (
        f"CPU {_cpu()}, {torch.get_num_threads()} thread(s), CPU time"
    )
    lines = [
        "# What each method's optimizer step costs",
        "",
        f"{size.name}: {size.numel() / 1e6:.2f} M trained weights, float32 masters, AdamW, one process. {place}; torch "
        f"{torch.__version__}. {size.rounds} rounds, each method's step in turns with Full FT's. SPIDER's passes are "
        f"{'compiled' if device in fused.devices else 'not compiled'}.",
        "",
        "| method | step, ms | step / Full FT's (quartiles) | kept, units of |M| float32 | moved, bytes per weight | "
        "host waits per step | log row, ms |".replace("|M|", "\\|M\\|"),
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, cost in costs.items():
        low, high = cost.quartiles
        lines.append(
            f"| {name} | {1e3 * cost.step:.2f} | {cost.ratio:.2f} ({low:.2f} to {high:.2f}) | {cost.kept:.2f} | "
            f"{cost.moved:.0f} | {cost.waits} | {1e3 * cost.row:.2f} |"
        )
    lines += [
        "",
        "Kept and moved are beyond Full FT's step: tensors that the method holds between steps (w* included, in the "
        "checkpoint's 16 bits), and what its operations read and write if nothing stays in a cache (a compiled pass: "
        "its arguments and its result). A host wait: Python reads a result, which on a GPU stops it until all work "
        "before is done (AdamW's step counters and half_ft_step's draws, always on the CPU, are counted too). "
        "A log row: the numbers on weights and mask that training writes every 10 steps. The row full_ft is Full FT's "
        "step beside itself: what differs from 1 is noise. "
        f"{RELEASED}: the released SPIDER trainer's copies and reads, re-created for one process "
        "(benchmark/profiling/bench_methods.py).",
    ]
    return "\n".join(lines)


def _cpu() -> str:
    """Return the processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    return next((line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")), "unknown")


def main(overrides: Sequence[str]) -> int:
    """Run the bench and print its table.

    Args:
        overrides: size=, methods= (a comma list), device=, threads=, compiled=cpu (also on the CPU, where methods do
            not compile anything by default), out= (a file for the table).

    Returns:
        Exit code.

    Raises:
        UserError: an unknown key or value, too little memory, or no GPU.
    """
    defaults = {"size": "small", "methods": "", "device": "cpu", "threads": "1", "compiled": "", "out": ""}
    given = read_settings("bench", defaults, overrides)
    methods = names_of(given["methods"])
    faults = [
        f"{key}={value}: unknown value.{did_you_mean(value, valid)}"
        for key, value, valid in (
            ("size", given["size"], SIZES), ("device", given["device"], ("cpu", "cuda")),
            ("compiled", given["compiled"], ("", "cpu")),
            *(("methods", name, (*TRAINED, RELEASED)) for name in methods),
        )
        if value not in valid
    ]
    if not given["threads"].isdigit() or int(given["threads"]) < 1:
        faults.append(f"threads={given['threads']}: expected a whole number of 1 or more.")
    if given["device"] == "cuda" and not torch.cuda.is_available():
        faults.append("device=cuda, but torch sees no CUDA device. Use a machine with a GPU, or device=cpu.")
    if faults:
        raise UserError(" ".join(faults))
    torch.set_num_threads(int(given["threads"]))
    size = SIZES[given["size"]]
    devices = set(fused.devices)
    fused.devices.update(filter(None, [given["compiled"]]))
    try:
        table = report(size, given["device"], run(size, methods or (*TRAINED, RELEASED), given["device"]))
    finally:
        fused.devices.intersection_update(devices)
    try:
        if given["out"]:
            write_atomic(user_path(given["out"]), table + "\n")
    finally:
        print(table)
    return 0
