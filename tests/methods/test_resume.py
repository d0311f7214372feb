"""A method restored from its saved state continues bit for bit, and refuses another run's state."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmark.core.errors import UserError
from methods.registry import METHODS, build
from tests.methods import toy

IN_TRAINING = [name for name, entry in METHODS.items() if entry.kind == "training"]


def through_files(state: dict, folder) -> dict:
    """Save and load a state the way a checkpoint does: tensors in safetensors, the rest in JSON."""
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    save_file(tensors, folder / "method.safetensors")
    rest = json.dumps({key: value for key, value in state.items() if key not in tensors})
    return load_file(folder / "method.safetensors") | json.loads(rest)


@pytest.mark.parametrize("method", IN_TRAINING)
def test_resume_is_exact(method, tmp_path):
    first = build(method, {}, seed=4)
    run = toy.train(first, steps=3, dtype=torch.float32)
    run.attachment.diagnostics()
    saved = through_files(first.state_dict(), tmp_path)
    weights = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    optimizer_state = run.optimizer.state_dict()
    optimizer_state = torch.load(_dump(optimizer_state, tmp_path), weights_only=False)

    model = toy.build(torch.float32)
    named = dict(model.named_parameters())
    pretrained = {name: value.detach().clone() for name, value in named.items()}
    model.load_state_dict(weights)  # the weights are resumed before the method starts: w* must not be these
    optimizer, _ = toy.make_optimizer(model, 0.1)
    second = build(method, {}, seed=4)
    attachment = toy.attach(optimizer, named, pretrained, second)
    optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(saved)
    for index in range(3, 6):
        toy.step(run.model, run.optimizer, index)
        toy.step(model, optimizer, index)
        for name, value in run.model.named_parameters():
            assert torch.equal(value, named[name]), (index, name)
        assert run.attachment.diagnostics() == attachment.diagnostics()


def _dump(state: dict, folder):
    torch.save(state, folder / "optimizer.pt")
    return folder / "optimizer.pt"


def test_the_accumulated_gradient_matters_for_spider():
    """Without its state, a resumed SPIDER would continue differently: the test above can fail."""
    first = build("spider", {}, seed=4)
    run = toy.train(first, steps=3, dtype=torch.float32)
    first.start(run.attachment.shards)
    toy.step(run.model, run.optimizer, 3)
    whole = toy.train(build("spider", {}, seed=4), steps=4, dtype=torch.float32)
    final = toy.arrays(dict(run.model.named_parameters()))
    assert any((final[name] != whole.weights[name]).any() for name in final)


def test_state_of_another_run_is_refused():
    spider = build("spider", {}, seed=0)
    run = toy.train(spider, steps=1)
    state = spider.state_dict()
    state.pop("accumulated/gate")
    with pytest.raises(UserError, match="cannot resume: the checkpoint holds other tensors"):
        spider.load_state_dict(state)
    for method in ("half_ft", "half_ft_step"):
        half = build(method, {}, seed=0)
        half.start(run.attachment.shards)
        other = build(method, {}, seed=1)
        other.start(run.attachment.shards)
        with pytest.raises(UserError, match="half_ft cannot resume"):
            other.load_state_dict(half.state_dict())


@pytest.mark.parametrize("method", ["ewc", "model_dowser", "gps", "spu", "mofo", "spider", "spider_gradient"])
def test_a_state_of_other_shapes_or_names_is_refused(method):
    """A part of another number of processes, or of one element, which torch would spread over the whole tensor."""
    built = build(method, {}, seed=0)
    toy.train(built, steps=2, dtype=torch.float32)
    state = built.state_dict()
    key = next(key for key in state if key.endswith("layers.0.mlp.up_proj.weight") and not key.startswith("selected/"))
    for other in ({key: state[key][:1]}, {key: state[key][:5]}, {key + "2": state[key]}):
        wrong = {name: value for name, value in state.items() if name != key} | other
        fresh = build(method, {}, seed=0)
        toy.train(fresh, steps=1, dtype=torch.float32)
        fresh.start(fresh.shards) if method not in ("ewc", "model_dowser") else None
        with pytest.raises(UserError, match="cannot resume: the checkpoint holds other tensors than this run trains"):
            fresh.load_state_dict(wrong)
