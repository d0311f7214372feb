"""A method that holds state without saving it is refused at a save; what was saved is what a resumed method has."""

from __future__ import annotations

import collections
import dataclasses
import random
from typing import ClassVar

import numpy as np
import pytest
import torch

from benchmark.core.errors import UserError
from examples.my_method import TopKGradient, TopKGradientParams
from methods.base import Method
from methods.registry import METHODS, build, load_class
from methods.spider import Spider, SpiderParams
from tests.methods import toy
from tests.methods.toy import Momenta

TRAINING = [name for name, entry in METHODS.items() if entry.kind == "training"]


class Lazy(Method):
    """Nothing at the start."""

    def before_step(self, shards):
        for shard in shards:
            vars(self).setdefault("last", []).append((shard.name, shard.grad.clone()))


class Tuple(Method):
    def start(self, shards):
        self.first = ()

    def after_step(self, shards):
        self.first = (next(iter(shards)).weight.clone(),)


class One(Method):
    def start(self, shards):
        self.total = torch.zeros(())

    def before_step(self, shards):
        self.total += 1


class Counts(Method):
    def start(self, shards):
        self.steps = 0

    def before_step(self, shards):
        self.steps += 1


class Nested(Method):
    """An object of objects, one with slots, that refer to each other."""

    class Inner:
        __slots__ = ("owner", "values")

    def start(self, shards):
        self.outer = collections.deque([self.Inner()])
        self.outer[0].owner, self.outer[0].values = self.outer, {"of": [np.zeros(3)]}

    def before_step(self, shards):
        self.outer[0].values["of"][0][1] += 1


class Draws(Method):
    def start(self, shards):
        self.source = random.Random(self.seed)

    def before_step(self, shards):
        self.source.random()


class TorchDraws(Method):
    def start(self, shards):
        self.source = torch.Generator().manual_seed(self.seed)

    def before_step(self, shards):
        torch.rand(1, generator=self.source)


class Shared(Method):
    """State in the class."""

    table: ClassVar[dict] = {}

    def before_step(self, shards):
        self.table[len(self.table)] = 1.0


class Module(Method):
    def start(self, shards):
        self.net = torch.nn.Linear(2, 2)

    def before_step(self, shards):
        with torch.no_grad():
            self.net.weight.add_(1)


class MoreThanSpider(Spider):
    """Inherits functions that know nothing of what it adds."""

    def before_step(self, shards):
        super().before_step(shards)
        self.norms = getattr(self, "norms", [])
        self.norms.append(float(next(iter(shards)).grad.norm()))


HOLDERS = {
    Momenta: "momenta (dict of 22 tensors)", Lazy: "last (list of", Tuple: "first (tuple of 1 tensors)",
    One: "total (a tensor of shape ())", Counts: "steps (now 2)", Nested: "outer (an object of deque)",
    Draws: "source (an object of Random)", TorchDraws: "source (an object of Generator)", Shared: "table (dict of",
    Module: "net (an object of Linear)", MoreThanSpider: "norms (list of 2 values)",
}


class Still(Method):
    """What is computed at the start and stays, what the suite sets, live weights, and a log of no consequence."""

    def start(self, shards):
        self.masks = {shard.name: shard.pretrained > 0 for shard in shards}
        self.parts, self.all = list(shards), shards
        self.scale, self.note = 0.5, lambda text: text
        self.kept = {}

    def before_step(self, shards):
        for shard in shards:
            self.kept[shard.name] = shard.weight.clone()

    def after_step(self, shards):
        self.kept.clear()


def trained(cls, steps=2):
    params = SpiderParams() if issubclass(cls, Spider) else None
    return toy.train(cls(params, 0), steps=steps, dtype=torch.float32)


def started(method):
    """Return (model, optimizer, attachment) before the first step."""
    model = toy.build(torch.float32)
    named = dict(model.named_parameters())
    optimizer, _ = toy.make_optimizer(model, 0.1)
    base = {name: value.detach().clone() for name, value in named.items()}
    return model, optimizer, toy.attach(optimizer, named, base, method)


@pytest.mark.parametrize("cls", HOLDERS, ids=lambda cls: cls.__name__)
def test_what_is_held_and_not_saved_is_refused_by_name(cls):
    run = trained(cls)
    with pytest.raises(UserError) as caught:
        run.attachment.state_dict()
    text = str(caught.value)
    assert f"The method {cls.__name__} cannot be saved" in text and HOLDERS[cls] in text
    assert "state_dict" in text and "stateless = True" in text
    allowed = type(cls.__name__, (cls,), {"stateless": True})
    trained(allowed).attachment.state_dict()


def test_without_a_step_nothing_has_changed():
    for cls in HOLDERS:
        started(cls(SpiderParams() if issubclass(cls, Spider) else None, 0))[2].state_dict()


def test_what_stays_as_it_started_is_no_state():
    assert trained(Still).attachment.state_dict()["method"] == {}


@pytest.mark.parametrize("method", [*TRAINING, "examples.my_method:TopKGradient"])
def test_every_method_of_the_suite_saves_all_that_it_holds(method):
    """And takes all of it back: its state after loading is the one saved, which `load_state_dict` checks."""
    run = toy.train(build(method, {}, seed=1), steps=3, dtype=torch.float32)
    run.attachment.diagnostics()
    state = run.attachment.state_dict()
    started(build(method, {}, seed=1))[2].load_state_dict(state)


def test_the_example_goes_on_exactly():
    method = "examples.my_method:TopKGradient"
    whole = toy.train(build(method, {}, 0), steps=5, dtype=torch.float32)
    first = toy.train(build(method, {}, 0), steps=3, dtype=torch.float32)
    state = first.attachment.state_dict()
    model, optimizer, attachment = started(build(method, {}, 0))
    model.load_state_dict(first.model.state_dict())
    optimizer.load_state_dict(first.optimizer.state_dict())
    attachment.load_state_dict(state)
    for number in (3, 4):
        toy.step(model, optimizer, number)
    for name, value in model.named_parameters():
        assert (value.detach().numpy() == whole.weights[name]).all(), name


class SaveOnly(Momenta):
    def state_dict(self):
        return self.momenta


class LoadOnly(Momenta):
    def load_state_dict(self, state):
        self.momenta = state


class Forgets(Momenta):
    """Saves two things and takes one back."""

    def start(self, shards):
        super().start(shards)
        self.steps = 0

    def before_step(self, shards):
        super().before_step(shards)
        self.steps += 1

    def state_dict(self):
        return {**self.momenta, "steps": self.steps}

    def load_state_dict(self, state):
        for name, tensor in self.momenta.items():
            tensor.copy_(state[name])


class SaveOnlySpider(Spider):
    def state_dict(self):
        return super().state_dict() | {"more": 1}


@pytest.mark.parametrize(("cls", "words"), [
    (SaveOnly, ["SaveOnly defines state_dict but takes load_state_dict from Method", "Define both"]),
    (LoadOnly, ["LoadOnly defines load_state_dict but takes state_dict from Method"]),
    (SaveOnlySpider, ["SaveOnlySpider defines state_dict but takes load_state_dict from Spider"]),
])
def test_one_function_of_two_is_refused_before_anything_runs(cls, words):
    with pytest.raises(UserError) as caught:
        load_class(f"{__name__}:{cls.__name__}")
    assert all(word in str(caught.value) for word in words)
    load_class(f"{__name__}:Forgets")


def test_a_state_that_is_not_taken_back_is_refused():
    state = trained(Forgets).attachment.state_dict()
    with pytest.raises(UserError, match=r"Forgets cannot resume: .* differs from what was saved in 'steps' \(1 of 23"):
        started(Forgets(None, 0))[2].load_state_dict(state)


@pytest.mark.parametrize("method", ["spider", "half_ft", "half_ft_step", "spider_gradient", "spider_magnitude"])
def test_a_state_of_other_code_is_refused(method):
    """Other keys than the method knows, as after a change of its code: a message, whatever the method does."""
    run = toy.train(build(method, {}, 0), steps=2, dtype=torch.float32)
    run.attachment.diagnostics()
    state = run.attachment.state_dict()
    keys = list(state["method"])
    for other in ({"momenta/w": torch.zeros(2)}, {}, state["method"] | {"new": 1}, dict.fromkeys(keys[1:], 0)):
        fresh = started(build(method, {}, 0))[2]
        if other == {} and not keys:
            continue
        if method == "spider_magnitude" and other == {}:
            continue  # only what its log compares with
        with pytest.raises(UserError, match="resume|failed on the saved state"):
            fresh.load_state_dict(state | {"method": other})


def test_a_state_for_a_method_without_state_is_refused():
    state = toy.train(build("spider", {}, 0), steps=1, dtype=torch.float32).attachment.state_dict()
    with pytest.raises(UserError, match="FullFT cannot resume: .* delete the checkpoint folder"):
        started(build("full_ft", {}, 0))[2].load_state_dict(state)


def test_an_error_in_loading_names_the_key():
    state = started(TopKGradient(TopKGradientParams(), 0))[2].state_dict()
    del state["method"]["gate"]
    again = started(TopKGradient(TopKGradientParams(), 0))[2]
    with pytest.raises(UserError, match=r"TopKGradient.load_state_dict failed .*: KeyError: 'gate'"):
        again.load_state_dict(state)


@dataclasses.dataclass
class Odd:
    value: int = 1


@pytest.mark.parametrize(("state", "words"), [
    ({"a": 1, "odd": Odd()}, "under 'odd' an object of Odd, which could not be loaded again"),
    ({"array": np.zeros(2)}, "under 'array' an object of ndarray"),
    ({"f": lambda: 0}, "under 'f' an object of function"),
    ({1: 2}, "a dict with texts as keys"),
    ([torch.zeros(2)], "not list of 1 tensors"),
])
def test_a_state_that_could_not_be_read_again_is_refused_at_the_save(state, words):
    class Saves(Method):
        def state_dict(self):
            return state

        def load_state_dict(self, state):
            pass

    with pytest.raises(UserError) as caught:
        trained(Saves).attachment.state_dict()
    assert words in str(caught.value)
