"""What methods see of sharded weights, whatever DeepSpeed does with them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor, distributed, nn

from benchmark.core.errors import UserError
from benchmark.training.attach import attach
from benchmark.training.engine import deepspeed_config, skip_compiling
from methods.registry import build
from tests.multiprocess.launch import launch
from tests.multiprocess.parity import forward_faults
from tests.multiprocess.training import ZERO, Data, Training

ENGINES = [(engine, dtype) for engine in ZERO for dtype in ("float32", "bfloat16")]


def parts(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return this process's shards under every engine, before the first step and after it."""
    data, made = Data.read(folder), {}
    for engine, dtype in ENGINES:
        training = Training(data, engine, build("spider", {}, 0), dtype)
        inner = training.optimizer.optimizer
        shards = [
            (shard.name, shard.shape, shard.numel, shard.offset, shard.weight.clone(), shard.source, shard.grad)
            for shard in training.method.shards
        ]
        state_before = len(inner.state)
        training.step(0)
        weights = {shard.name: shard.weight.clone() for shard in training.method.shards}
        state = {key for state in inner.state.values() for key in state}
        base = {name: tensor.float() for name, tensor in training.pretrained.items()}
        made[engine, dtype] = {
            "shards": shards, "state before": state_before, "state": state, "base": base,
            "after": weights, "masters": training.masters(),
        }
        training.close()
    return made


@pytest.fixture(scope="module")
def three_parts(folder):
    return launch(parts, 3, folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_element_is_in_one_shard(three_parts, engine):
    ranks = [rank[engine] for rank in three_parts]
    base = ranks[0]["base"]
    seen = {name: torch.zeros(tensor.numel()) for name, tensor in base.items()}
    empty = 0
    for rank in ranks:
        assert [shard[0] for shard in rank["shards"]] == [shard[0] for shard in ranks[0]["shards"]]
        for name, shape, numel, offset, weight, source, grad in rank["shards"]:
            assert shape == base[name].shape and numel == base[name].numel() and grad is None
            lossless = torch.equal(base[name].bfloat16().float(), base[name])
            assert source.dtype == (torch.bfloat16 if lossless else torch.float32)
            part = slice(offset, offset + len(weight))
            seen[name][part] += 1
            # After the end of a tensor ZeRO-3's buffer is full of NaN here.
            assert torch.equal(weight, base[name].flatten()[part]) and torch.equal(source.float(), weight)
            assert torch.equal(rank["after"][name], ranks[0]["masters"][name].flatten()[part])
            empty += not len(weight)
    assert all((times == 1).all() for times in seen.values())
    assert empty or engine[0] == "zero3", "no process is without a part of some tensor, so this tests little"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_optimizer_state_is_left_to_the_optimizer(three_parts, engine):
    for rank in three_parts:
        assert rank[engine]["state before"] == 0 and rank[engine]["state"] == {"step", "exp_avg", "exp_avg_sq"}


# ---- steps that DeepSpeed leaves out


def with_and_without_a_bad_batch(folder: Path) -> dict[tuple[str, str], list[Any]]:
    """Train on two batches, and again with one between them whose loss is infinite."""
    data, made = Data.read(folder), {}
    for engine, dtype in ENGINES:
        runs = []
        for batches in ([(0, 1.0), (2, 1.0)], [(0, 1.0), (1, float("inf")), (2, 1.0)]):
            training = Training(data, engine, build("spider", {}, 0), dtype)
            for number, scale in batches:
                training.step(number, scale)
            runs.append((training.masters(), training.calls))
            training.close()
        made[engine, dtype] = runs
    return made


def test_a_skipped_step_calls_no_hook(folder):
    for rank in launch(with_and_without_a_bad_batch, 2, folder):
        for engine, ((good, _), (both, calls)) in rank.items():
            assert [bool(step) for step in calls] == [True, False, True], engine
            assert all(torch.equal(both[name], tensor) for name, tensor in good.items()), engine


# ---- weights changed at the wrong moment


def outside(folder: Path) -> list[list[str]]:
    """Change the masters after a step, as the released code does, and check what the next forward pass would see."""
    data, made = Data.read(folder), []
    for engine in ZERO:
        training = Training(data, engine, build("full_ft", {}, 0), "bfloat16")
        training.step(0)
        right = forward_faults(training)
        for shard in training.method.shards:
            shard.weight.add_(0.1)
        made.append([right, forward_faults(training)])
        training.close()
    return made


def test_a_change_outside_of_the_hooks_is_noticed(folder):
    for rank in launch(outside, 2, folder):
        for right, wrong in rank:
            assert right == [] and len(wrong) == 22


def accumulated_both_ways(folder: Path) -> dict[str, list[str]]:
    """Train with gradients summed in float32, as the trainer does, and with DeepSpeed's own choice for bfloat16."""
    data, made = Data.read(folder), {}
    for config in ({}, {"data_types": {}}):
        training = Training(data, "zero1", build("spider", {}, 0), "bfloat16", **config)
        faults = made[type(training.optimizer).__name__] = []
        for number in range(2):
            training.step(number)
            training.attachment.diagnostics()
            faults += forward_faults(training)
        training.close()
    return made


def test_both_optimizers_of_stage_1(folder):
    for made in launch(accumulated_both_ways, 2, folder):
        assert made == {"BF16_Optimizer": [], "DeepSpeedZeroOptimizer": []}


# ---- settings that a method cannot work with


def refusals(folder: Path) -> list[str]:
    """Return what each of these settings is answered, when it gets past the configuration."""
    data, answers = Data.read(folder), []
    offload = {"device": "cpu"}
    for engine, section in (
        ("zero1", {"stage": 1, "round_robin_gradients": True}),
        ("zero2", {"stage": 2, "round_robin_gradients": True}),
        ("zero2", {"stage": 2, "offload_optimizer": offload}),
        ("zero3", {"stage": 3, "offload_optimizer": offload}),
        ("zero3", {"stage": 3, "offload_param": offload}),
    ):
        method = build("full_ft", {}, 0)
        try:
            Training(data, engine, method, zero_optimization=section, zero_force_ds_cpu_optimizer=False)
        except UserError as error:
            answers.append(str(error))
        else:
            answers.append(f"{section} was accepted")
    return answers


def test_settings_that_hide_weights_or_gradients_are_refused(folder):
    for answers in launch(refusals, 2, folder):
        robin, same, optimizer2, optimizer3, parameters = answers
        assert robin == same and "Switch round_robin_gradients off" in robin
        assert "Remove offload_optimizer" in optimizer2 and optimizer2 == optimizer3
        assert "Remove offload_param" in parameters


# ---- processes that own nothing


class Few(nn.Module):
    """Four trained numbers, so that the last of four processes has none in any engine."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Parameter(torch.tensor([0.5, -1.0, 0.2]))
        self.gate = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.three).sum(-1) * self.gate


def few(engine: str, name: str) -> tuple[dict[str, Tensor], int]:
    """Train Few for four steps; return its weights and how many elements this process owns."""
    model = Few()
    named = dict(model.named_parameters())
    base = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
    deep = None
    if engine != "plain":
        skip_compiling()
        config = deepspeed_config(ZERO[engine], micro_batch_size=1, accumulation=1, max_grad_norm=0.1, dtype="float32")
        deep, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    method = build(name, {"strength": 0.1} if name == "l2_reg" else {}, 0)
    attachment = attach(optimizer, named, base, method)
    data = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(1))
    for batch in data:
        if deep:
            x, y = batch[distributed.get_rank()].split([3, 1])
            deep.backward((deep(x) - y).square().mean())
            deep.step()
        else:
            (model(batch[:, :3]) - batch[:, 3]).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    attachment.diagnostics()
    owned = sum(len(shard.weight) for shard in method.shards)
    weights = {
        name: deepspeed.utils.safe_get_full_fp32_param(parameter) if deep else parameter.detach()
        for name, parameter in named.items()
    }
    return weights, owned


def all_few(engines: list[str], names: list[str]) -> dict[tuple[str, str], tuple[dict[str, Tensor], int]]:
    return {(engine, name): few(engine, name) for engine in engines for name in names}


def test_a_process_that_owns_nothing():
    names = ["full_ft", "l2_reg", "spider", "spider_code", "spider_gradient", "half_ft_elements"]
    ranks = launch(all_few, 4, list(ZERO), names)
    for name in names:
        expected, _ = few("plain", name)
        for engine in ZERO:
            assert [rank[engine, name][1] for rank in ranks][-1] == 0
            for rank in ranks:
                weights, _ = rank[engine, name]
                assert all((weights[key] - value).abs().max() < 1e-6 for key, value in expected.items()), (engine, name)


# ---- resuming

STATEFUL = ("spider", "half_ft_step")


def save(folder: Path, saved: Path) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Train two steps, save, train one more."""
    data, made = Data.read(folder), {}
    for engine, name in itertools.product(ZERO, STATEFUL):
        training, place = Training(data, engine, build(name, {}, 0)), saved / engine / name
        training.step(0)
        training.step(1)
        training.wrapped.save_checkpoint(place)
        torch.save(training.attachment.state_dict(), place / f"method{training.rank}")
        training.step(2)
        made[engine, name] = training.masters()
        training.close()
    return made


def resume(folder: Path, saved: Path) -> dict[tuple[str, str], dict[str, Tensor] | str]:
    """Go on from what `save` saved; return the weights, or why not."""
    data, made = Data.read(folder), {}
    for engine, name in itertools.product(ZERO, STATEFUL):
        training, place = Training(data, engine, build(name, {}, 0)), saved / engine / name
        try:
            training.attachment.load_state_dict(torch.load(place / f"method{training.rank}", weights_only=True))
        except UserError as error:
            made[engine, name] = str(error)
        else:
            training.wrapped.load_checkpoint(place)
            training.step(2)
            made[engine, name] = training.masters()
        training.close()
    return made


def test_resume_is_exact_and_only_with_as_many_processes(folder, tmp_path):
    straight = launch(save, 2, folder, tmp_path)[0]
    for rank in launch(resume, 2, folder, tmp_path):
        for place, weights in straight.items():
            assert all(torch.equal(rank[place][key], value) for key, value in weights.items()), place
    for place, answer in launch(resume, 1, folder, tmp_path)[0].items():
        assert "processes 2 (here 1)" in answer and "resume with the engine and number" in answer, place


# ---- ties at the limit of a selection, cut across processes


def selected(folder: Path) -> dict[str, dict[str, Any]]:
    """Train I_gamma under every engine from a base of few values; return its parts of the mask, and the weights."""
    data, made = Data.read(folder), {}
    with torch.no_grad():
        for index, weight in enumerate(data.loaded.model.parameters()):
            # Steps of a twentieth: most elements of a matrix have one of some five magnitudes; some tensors have one.
            weight.copy_((20 * weight).round() / 20) if index % 5 else weight.fill_(0.05)
    for engine in ("ddp", *ZERO):
        training = Training(data, engine, build("spider_magnitude", {}, 0))
        base = {name: tensor.clone() for name, tensor in training.pretrained.items()}
        for number in range(2):
            training.step(number)
        parts = {shard.name: training.method.mask(shard) for shard in training.method.shards}
        made[engine] = {"base": base, "parts": parts, "weights": training.masters()}
        training.close()
    return made


def test_equal_magnitudes_are_chosen_by_position_whatever_process_holds_them(folder):
    """Exactly int(n / 2) elements of each tensor stay, of equal ones the first of the whole: the released rule."""
    ranks = launch(selected, 3, folder)
    for engine in ("ddp", *ZERO):
        cut = 0
        for name, base in ranks[0][engine]["base"].items():
            flat, half = base.flatten().abs(), base.numel() // 2
            train = torch.ones(len(flat), dtype=torch.bool)
            train[flat.sort(descending=True, stable=True).indices[:half]] = False
            parts = [rank[engine]["parts"][name] for rank in ranks]
            whole = [torch.cat(parts)] if engine in ZERO else parts
            assert all(torch.equal(mask, train) for mask in whole), f"{engine}: {name}"
            moved = (ranks[0][engine]["weights"][name] != base).flatten()
            assert not (moved & ~train).any() and (moved.any() or not base.any()), f"{engine}: {name}"
            if engine in ZERO and half:
                ties = flat == flat[~train].min()
                holders = sum(bool(part.any()) for part in ties.split([len(part) for part in parts]))
                cut += holders > 1 and bool((ties & train).any())
        assert engine == "ddp" or cut >= 2, f"{engine}: no ties at a limit are cut, so this tests little"
