"""The bench: what it times is what it says, and its counts are right where they can be worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmark import cli
from benchmark.core.errors import UserError
from benchmark.models import trainable_names
from benchmark.planning.estimate import METHOD_BYTES, METHOD_OTHER
from benchmark.profiling import bench_methods
from benchmark.profiling.bench_methods import (
    FLOAT,
    RELEASED,
    SIZES,
    TRAINED,
    Released,
    Size,
    StepBench,
    Traffic,
    Waits,
    report,
    run,
)
from benchmark.spec import at_root
from benchmark.training.trainer import DIAGNOSTICS_EVERY
from methods.base import Method, NoParams
from methods.registry import METHODS, build
from tests.benchmark.models import tiny

TOY = Size("Toy", 8, 12, 6, rounds=3)


def test_sizes_are_those_of_the_models():
    assert SIZES["llava15_7b"].numel() == 425_746_432
    loaded = tiny.load("llava", at_root("benchmark/checkpoints/llava_pocket"))
    shapes = [tuple(loaded.model.get_parameter(name).shape) for name in trainable_names(loaded, "last_layers", 2)]
    assert sorted(shapes) == sorted(SIZES["small"].shapes().values())


def test_traffic_counts_what_operations_read_and_write():
    a, b = torch.zeros(10), torch.zeros(10)
    for moved, work in (
        (3 * 40, lambda: a + b), (2 * 40, lambda: a.add_(1.0)), (3 * 40, lambda: a.lerp_(b, 0.5)),
        (2 * 40, lambda: a.copy_(b)), (40, lambda: a.zero_()), (0, lambda: a.view(2, 5)[1]), (0, lambda: a.split(3)),
        (3 * 40, lambda: torch.add(a, b, out=b)), (40 + 80, lambda: a.double()), (44, lambda: a.sum()),
    ):
        with Traffic() as traffic:
            work()
        assert traffic.bytes == moved, work


def test_waits_are_reads_of_results():
    a = torch.arange(4.0)
    for count, work in (
        (1, lambda: a.sum().item()), (1, lambda: a.tolist()), (1, lambda: bool((a > 5).all())), (1, lambda: a[a > 1]),
        (1, lambda: float(a[0])), (0, lambda: a[1:].numel()), (0, lambda: a.masked_fill_(a > 1, 0.0)),
        (1, lambda: a.cpu()), (1, lambda: a.unique()), (1, lambda: torch.where(a > 1)), (1, lambda: f"{a[1]:.1f}"),
        (1, lambda: torch.argwhere(a > 1)), (1, lambda: torch.allclose(a, a)), (1, lambda: range(a[2].int())),
        (1, lambda: a[None][0, a > 1]), (0, lambda: torch.where(a > 1, a, 0.0)), (0, lambda: a[None][0, 1:]),
    ):
        with Waits() as waits:
            work()
        assert waits.count == count, work


class Keeps(Method):
    """Reads the gradient once, keeps a copy of it, and asks for one number."""

    uses_pretrained = False

    def start(self, shards):
        self.kept = [SimpleNamespace(of={})]

    def before_step(self, shards):
        for shard in shards:
            self.kept[0].of[shard.name] = shard.grad.clone()
        shards.sums(lambda shard: torch.zeros(1, dtype=torch.float64))


def test_what_a_method_keeps_and_moves():
    cost = StepBench(TOY, "cpu").measure(Keeps(NoParams(), 0), 3)
    assert cost.kept == 1.0 and cost.waits == 1
    assert cost.moved == pytest.approx(2 * FLOAT, rel=0.1)  # and a few numbers per tensor
    assert cost.quartiles[0] <= cost.ratio <= cost.quartiles[1] and cost.step > 0


@pytest.mark.slow
def test_the_cost_of_spider_and_of_the_released_code():
    found = run(TOY, ("l2_reg", "half_ft", "spider", "spider_gradient", RELEASED), "cpu")
    assert found["l2_reg"].kept == 0.5  # w* in 16 bits
    assert found["half_ft"].kept == 0.0
    statistics = 5 * 2 * len(TOY.shapes()) / TOY.numel()  # five float64 numbers per tensor
    sample = min(TOY.numel(), 1024 * len(TOY.shapes())) / (FLOAT * TOY.numel())  # bytes of the log
    assert 1.5 + statistics < found["spider"].kept <= 1.5 + statistics + sample  # w* and A
    assert found[RELEASED].kept == pytest.approx(5.0)
    tensors = len(TOY.shapes())
    assert found["spider"].waits == 0 and found[RELEASED].waits == 2 * tensors
    assert found["l2_reg"].waits == 0
    assert found["spider_gradient"].waits == 0
    text = report(TOY, "cpu", found)
    for name in found:
        assert f"| {name} |" in text
    assert "0.00 M trained weights" in text and "\\|M\\|" in text


def test_the_recreation_gives_the_weights_of_spider_code():
    weights = []
    for method in (build("spider_code", {}, 0), Released(NoParams(), 0)):
        bench = StepBench(TOY, "cpu")
        optimizer, _ = bench.attach(method)
        for _ in range(3):
            bench.fresh_gradients()
            optimizer.step()
        weights.append({name: value.detach().clone() for name, value in bench.named.items()})
    ours, theirs = weights
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in ours)
    assert any((value != bench.base[name].float()).any() for name, value in ours.items())


@pytest.mark.slow
def test_every_training_method_can_be_timed_and_keeps_what_the_plan_counts():
    found = run(TOY, TRAINED, "cpu")
    assert set(found) == {name for name, item in METHODS.items() if item.kind == "training"}
    statistics = (5 * 2 * len(TOY.shapes()) + 256 * len(TOY.shapes())) / TOY.numel()  # per tensor: float64, the log
    for name, cost in found.items():
        planned = METHOD_BYTES.get(name, METHOD_OTHER) / FLOAT
        # of the tensors that it freezes, and of the weights before the step
        within_a_step = {"half_ft": 0.5, "half_ft_step": 0.5, "mofo": 1.0}.get(name, 0.0)
        assert planned - within_a_step <= cost.kept <= planned - within_a_step + statistics, name
    assert (found["full_ft"].kept, found["full_ft"].moved, found["full_ft"].waits) == (0.0, 0.0, 0)


def test_the_log_is_written_as_often_as_the_table_says():
    assert f"every {DIAGNOSTICS_EVERY} steps" in report(TOY, "cpu", {})


def test_too_little_memory_is_said_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(bench_methods, "available_gb", lambda: 8.0)
    with pytest.raises(UserError, match=r"425.7 M trained weights: the bench needs 18.\d GB of memory on cpu, 8.0 GB"):
        run(SIZES["llava15_7b"], ("spider", RELEASED), "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sizes=pocket"], "Did you mean 'size'"),
        (["size=smal", "methods=spidr"], "size=smal: unknown value. Did you mean 'small'?"),
        (["methods=spidr,dare"], "methods=spidr: unknown value. Did you mean 'spider'?"),
        (["threads=0"], "threads=0: expected a whole number"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_table_is_printed_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SIZES, "small", TOY)
    assert cli.main(["bench", "methods=spider", f"out={tmp_path}/bench.md"]) == 0
    assert (tmp_path / "bench.md").read_text() == capsys.readouterr().out
