"""The hooks fire at the right moment, on the right tensors, and sums over parts equal sums over wholes."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmark.core.errors import UserError
from benchmark.training.attach import attach
from benchmark.training.fragments import TRANSPARENT, ZERO, find_layout
from methods.base import Method
from methods.full_ft import FullFT
from methods.registry import build
from methods.shards import Shard, Shards
from tests.methods import toy


def toy_setup(method: Method, **changes):
    """Attach a method to the toy model; `changes` replace arguments of `attach`."""
    model = toy.build(torch.float32)
    named = dict(model.named_parameters())
    optimizer, _ = toy.make_optimizer(model, 0.0)
    arguments = {
        "optimizer": optimizer,
        "named_parameters": named,
        "pretrained": {name: value.detach().clone() for name, value in named.items()},
    } | changes
    return model, optimizer, attach(**arguments, method=method)


class Recorder(Method):
    """Notes what the hooks see."""

    def start(self, shards):
        self.calls = [("start", [shard.name for shard in shards])]
        assert all(shard.grad is None for shard in shards)

    def _note(self, hook, shards):
        self.calls.append((hook, {s.name: (s.weight.clone(), s.grad.clone()) for s in shards}))

    def before_step(self, shards):
        assert not torch.is_grad_enabled()
        self._note("before", shards)

    def after_step(self, shards):
        self._note("after", shards)


def test_hooks_surround_the_update_and_see_clipped_gradients():
    method = Recorder(None, 0)
    model, optimizer, attachment = toy_setup(method)
    initial = {name: value.detach().clone() for name, value in model.named_parameters()}
    gradients = toy.step(model, optimizer, 0)
    (start, names), (before, first), (after, second) = method.calls
    assert (start, before, after) == ("start", "before", "after")
    assert sorted(names) == sorted(initial)
    norm = sum((grad**2).sum() for _, grad in first.values()) ** 0.5
    assert norm <= 1 + 1e-5
    for name, value in model.named_parameters():
        weight, grad = first[name]
        assert torch.equal(weight, initial[name].flatten())
        assert torch.equal(grad, torch.from_numpy(gradients[name]).float().flatten())
        assert torch.equal(second[name][0], value.detach().flatten())
    attachment.remove()
    toy.step(model, optimizer, 1)
    assert len(method.calls) == 3


def test_shards_are_views_of_the_whole_model():
    model, _, attachment = toy_setup(FullFT(None, 0))
    assert all(shard.grad is None for shard in attachment.shards)
    assert {s.name: s.shape for s in attachment.shards} == {n: p.shape for n, p in model.named_parameters()}
    for shard in attachment.shards:
        assert shard.numel == shard.weight.numel() == shard.pretrained.numel() and shard.weight.dim() == 1
        shard.weight.zero_()
    assert all((value == 0).all() for value in model.parameters())


def test_a_tensor_without_a_gradient_gets_zeros():
    model, optimizer, _ = toy_setup(FullFT(None, 0))
    toy.step(model, optimizer, 0)
    assert torch.equal(model.unused.grad, torch.zeros(7))
    assert optimizer.state[model.unused]["step"] == 1


def test_pretrained_values_come_from_the_base_not_from_the_weights():
    model = toy.build(torch.float32)
    base = {name: torch.full_like(value, 2.0).half() for name, value in model.named_parameters()}
    for method in (FullFT(None, 0), Recorder(None, 0)):
        _, _, attachment = toy_setup(method, pretrained=base)
        for shard in attachment.shards:
            assert shard.pretrained.dtype == torch.float32 and (shard.pretrained == 2).all()


def test_diagnostics_of_every_method_in_training():
    for name in ("full_ft", "l2_reg", "grafting", "half_ft", "spider"):
        run = toy.train(build(name, {}, 2), steps=2, dtype=torch.float32)
        values = run.attachment.diagnostics()
        delta = torch.cat(
            [torch.from_numpy(run.weights[n] - run.pretrained[n]).flatten() for n in run.weights]
        )
        assert values["rms_delta"] == pytest.approx(delta.square().mean().sqrt().item(), rel=1e-6)
        assert values["restored_fraction"] == pytest.approx((delta == 0).double().mean().item(), rel=1e-9)
        if name == "half_ft":
            assert values["mask_ones"] == pytest.approx(1 - values["restored_fraction"], abs=0.02)
        if name == "spider":
            assert 0 < values["mask_ones"] < values["mask_selected"] < 1 and "mask_flips" not in values
            assert values["restored_fraction"] == pytest.approx(1 - values["mask_selected"], abs=0.02)
            before = {n: w.copy() for n, w in run.weights.items()}
            toy.step(run.model, run.optimizer, 2)
            after = toy.arrays(dict(run.model.named_parameters()))
            flips = sum(
                ((before[n] == run.pretrained[n]) != (after[n] == run.pretrained[n])).sum() for n in before
            )
            assert run.attachment.diagnostics()["mask_flips"] == pytest.approx(flips / len(delta), abs=0.02)


def test_spider_has_no_diagnostics_before_the_first_step():
    _, _, attachment = toy_setup(build("spider", {}, 0))
    assert attachment.diagnostics() == {"rms_delta": 0.0, "restored_fraction": 1.0}


def test_accelerates_wrapper_is_unwrapped():
    accelerate = pytest.importorskip("accelerate")
    model = toy.build(torch.float32)
    named = dict(model.named_parameters())
    inner, _ = toy.make_optimizer(model, 0.0)
    wrapped = accelerate.Accelerator(cpu=True).prepare(inner)
    assert type(wrapped).__name__ == "AcceleratedOptimizer" and find_layout(wrapped).optimizer is inner
    method = Recorder(None, 0)
    attach(wrapped, named, {name: value.detach().clone() for name, value in named.items()}, method)
    toy.step(model, wrapped, 0)
    assert [name for name, _ in method.calls] == ["start", "before", "after"]


def test_the_wrappers_exist_under_the_names_that_are_recognised():
    """Read from the sources, because importing DeepSpeed takes seconds."""
    for path in (*ZERO, *TRANSPARENT):
        module, _, name = path.rpartition(".")
        package = find_spec(module.partition(".")[0])
        if package is None:
            pytest.skip(f"{module} is not installed")
        file = Path(package.origin).parent.parent / (module.replace(".", "/") + ".py")
        assert f"class {name}(" in file.read_text(), path


def test_unknown_wrappers_and_other_objects_are_refused():
    inner = torch.optim.AdamW([nn.Parameter(torch.zeros(2))])
    for name in ("Lookahead", "FP16_Optimizer", "DeepSpeedZeroOptimizer"):
        with pytest.raises(UserError, match=rf"{name} is unknown.*zero1, zero2 or zero3"):
            find_layout(type(name, (), {"optimizer": inner})())
    with pytest.raises(UserError, match="not a torch.optim.Optimizer"):
        find_layout(object())


class Twice(Recorder):
    """Steps the optimizer twice on the same gradients."""

    def after_step(self, shards):
        super().after_step(shards)
        self.extra_step()


def test_an_extra_step_runs_no_hooks():
    method = Twice(None, 0)
    model, optimizer, _ = toy_setup(method)
    twin = toy.build(torch.float32)
    other, _ = toy.make_optimizer(twin, 0.0)
    toy.step(model, optimizer, 0)
    toy.step(twin, other, 0)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    other.step()
    assert [name for name, _ in method.calls] == ["start", "before", "after"]
    for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
        if mine is not model.unused:  # the twin's first step left it out
            assert torch.equal(mine, expected)


def test_a_closure_is_refused():
    model, optimizer, _ = toy_setup(FullFT(None, 0))
    with pytest.raises(UserError, match="closure"):
        optimizer.step(lambda: torch.tensor(0.0))


def test_scaled_gradients_are_refused():
    model, optimizer, _ = toy_setup(FullFT(None, 0))
    optimizer.grad_scale = torch.tensor(2.0)
    with pytest.raises(UserError, match="bf16 or float32"):
        optimizer.step()


def test_all_faults_of_the_tensors_are_named_at_once():
    model = toy.build(torch.float32)
    named = dict(model.named_parameters())
    optimizer, _ = toy.make_optimizer(model, 0.0)
    base = {name: value.detach().clone() for name, value in named.items()}
    base["gate"] = torch.zeros(3)
    del base["unused"]
    extra = nn.Parameter(torch.zeros(2))
    held = {"half": nn.Parameter(torch.zeros(2).bfloat16()), "transposed": nn.Parameter(torch.zeros(2, 3).T)}
    optimizer.add_param_group({"params": list(held.values())})
    faulty = named | held | {"again": named["gate"], "extra": extra}
    with pytest.raises(UserError) as caught:
        attach(optimizer, faulty, base, FullFT(None, 0))
    for words in (
        "two names share one tensor",
        "extra is not in the optimizer",
        "unused has no pretrained value",
        "gate has shape (1,), in the base checkpoint (3,)",
        "half is torch.bfloat16",
        "transposed (Tensor) has no flat view",
    ):
        assert words in str(caught.value)
    optimizer.add_param_group({"params": [extra]})
    with pytest.raises(UserError, match=r"trains 3 tensor\(s\) that were not named"):
        attach(optimizer, named, {n: v.detach().clone() for n, v in named.items()}, FullFT(None, 0))


def test_the_pretrained_values_may_not_be_the_trained_ones():
    model = toy.build(torch.float32)
    named = dict(model.named_parameters())
    optimizer, _ = toy.make_optimizer(model, 0.0)
    with pytest.raises(UserError, match=r"gate would train the pretrained value itself; give a copy"):
        attach(optimizer, named, named, FullFT(None, 0))


# --- statistics over parts -------------------------------------------------------------------------------


class Ranks:
    """Runs one function per rank in threads that meet at every reduction."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._barrier = threading.Barrier(count, timeout=20)
        self._values: dict[int, torch.Tensor] = {}

    def reduce(self, rank: int):
        def reduce(values: torch.Tensor) -> torch.Tensor:
            self._values[rank] = values
            self._barrier.wait()
            total = torch.stack([self._values[i] for i in range(self.count)]).sum(0)
            self._barrier.wait()
            return total

        return reduce

    def run(self, function) -> list:
        results = [None] * self.count

        def call(rank: int) -> None:
            results[rank] = function(rank)

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def cut(size: int, rank: int) -> slice:
    """Uneven parts for three ranks; a one-element tensor leaves two ranks with nothing."""
    bounds = [0, size // 5, (2 * size) // 3, size]
    return slice(bounds[rank], bounds[rank + 1])


@pytest.mark.parametrize("name", ["spider", "l2_reg", "grafting", "half_ft"])
def test_a_sharded_method_equals_the_whole_one(name):
    """Three ranks with uneven, partly empty parts, two calls per step (as under ZeRO-2)."""
    source = torch.Generator().manual_seed(0)
    model = toy.build()
    pretrained = {n: p.detach().flatten() for n, p in model.named_parameters()}
    updates = [
        {n: (torch.randn(len(w), generator=source).double(), torch.randn(len(w), generator=source).double())
         for n, w in pretrained.items()}
        for _ in range(4)
    ]
    names = list(pretrained)
    groups = [names[:9], names[9:]]

    def simulate(part, reduce) -> tuple[dict, dict]:
        method = build(name, {"strength": 0.1} if name in ("l2_reg", "grafting") else {}, seed=1)
        weights = {n: part(w).clone() for n, w in pretrained.items()}
        grads: dict[str, torch.Tensor] = {}

        def view(group: list[str]) -> Shards:
            return Shards(
                lambda: [
                    Shard(
                        n,
                        (len(pretrained[n]),),
                        len(pretrained[n]),
                        weights[n],
                        grads.get(n),
                        part(pretrained[n]),
                    )
                    for n in group
                ],
                reduce,
            )

        method.shards = view(names)
        method.start(method.shards)
        for update in updates:
            for group in groups:
                grads.update({n: part(update[n][0]).clone() for n in group})
                method.before_step(view(group))
                for n in group:
                    weights[n] -= 0.01 * grads[n] + 0.001 * part(update[n][1])
                method.after_step(view(group))
        return weights, method.diagnostics()

    whole, expected = simulate(lambda tensor: tensor, lambda values: values)
    ranks = Ranks(3)
    parts = ranks.run(lambda r: simulate(lambda tensor: tensor[cut(len(tensor), r)], ranks.reduce(r)))
    for n in names:
        joined = torch.cat([weights[n] for weights, _ in parts])
        torch.testing.assert_close(joined, whole[n], rtol=0, atol=1e-12, msg=n)
        assert not torch.equal(joined, pretrained[n]) or n in ("gate", *_frozen(name, names))
    for _, diagnostics in parts:
        assert diagnostics == pytest.approx(expected)


def _frozen(name: str, names: list[str]) -> list[str]:
    from methods.half_ft import draw_frozen

    return draw_frozen(names, 1) if name == "half_ft" else []
