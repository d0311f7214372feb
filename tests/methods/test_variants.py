"""What makes each variant different from its method, and what all methods keep: finite weights, exact restores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmark.core.errors import UserError
from methods.half_ft import draw_frozen
from methods.posthoc import SeedMerge
from methods.registry import METHODS, build, refusal
from tests.methods import parts, toy
from tests.methods.checks import FixedInputs, random_weights

TRAINING = [name for name, item in METHODS.items() if item.kind == "training"]
POSTHOC = [name for name, item in METHODS.items() if item.kind == "posthoc"]
BLENDED = [
    "spider",
    "spider_idm",
    "spider_code",
    "spider_lag",
    "spider_instant",
    "spider_abs",
    "spider_global",
]
SELECTED = [
    "half_ft_elements", "spider_magnitude", "spider_gradient", "largest_weights", "gps", "spu", "model_dowser",
]


@pytest.mark.parametrize("method", TRAINING)
def test_no_gradient_at_all_gives_finite_weights(method):
    """All-zero and constant tensors, a single element, and zero gradients everywhere: never NaN."""
    model = toy.build(torch.float32)
    named = dict(model.named_parameters())
    pretrained = {name: value.detach().clone() for name, value in named.items()}
    optimizer, _ = toy.make_optimizer(model, 0.0)
    attachment = toy.attach(optimizer, named, pretrained, build(method, {}, seed=0))
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step()
        assert all(torch.equal(value, pretrained[name]) for name, value in named.items())
        assert all(np.isfinite(number) for number in attachment.diagnostics().values())


@pytest.mark.parametrize("method", TRAINING)
def test_edge_tensors_stay_finite_in_training(method):
    run = toy.train(build(method, {}, seed=0), steps=4, dtype=torch.float32)
    assert (run.pretrained["multi_modal_projector.linear_1.bias"] == 0).all()
    assert np.ptp(run.pretrained["layers.0.input_layernorm.weight"]) == 0 and run.weights["gate"].size == 1
    for name, weight in run.weights.items():
        assert np.isfinite(weight).all(), name


@pytest.mark.parametrize("method", POSTHOC)
def test_edge_tensors_stay_finite_post_hoc(method):
    linear = "layers.0.mlp.up_proj.weight"
    shapes = {linear: (6, 8), "norm": (9,), "one": (1,), "same": (7,), "equal changes": (8,), "zero": (8,)}
    pretrained, finetuned = random_weights(3, shapes)
    finetuned[linear][0] = pretrained[linear][0]  # a row without a change
    finetuned[linear][1] = pretrained[linear][1] + 0.5  # and one where all changes are equal
    pretrained["norm"].fill_(1.0)
    finetuned["same"] = pretrained["same"].clone()
    finetuned["equal changes"] = torch.full((8,), 0.25)
    pretrained["equal changes"].zero_()
    pretrained["zero"].zero_()
    built = build(method, {}, 0)
    if isinstance(built, SeedMerge):
        result = built.combine([finetuned] * built.params.members, pretrained)
    else:
        result = built.finish(finetuned, pretrained, FixedInputs([[linear]], {linear: 8}))
    for name, value in result.items():
        assert torch.isfinite(value).all(), name
    assert torch.equal(result["same"], pretrained["same"]), "no change, so nothing to keep"


@pytest.mark.parametrize("method", BLENDED + SELECTED)
def test_no_forward_pass_sees_an_element_that_the_mask_excludes(method):
    """After every step excluded elements are w* bit for bit, in a model with weight decay; spider_lag must fail."""
    built = build(method, {}, seed=0)
    run = toy.train(built, steps=1, decay=0.1, dtype=torch.float32)
    exact = []
    for index in range(1, 5):
        toy.step(run.model, run.optimizer, index)
        run.attachment.diagnostics()
        for shard in run.attachment.shards:
            excluded = built.mask(shard) == 0
            assert excluded.any() or shard.name in ("gate", "multi_modal_projector.linear_1.bias")
            exact.append(torch.equal(shard.weight[excluded], shard.pretrained[excluded]))
    assert all(exact) == (method != "spider_lag")


@pytest.mark.parametrize("method", ["spider_idm", *SELECTED])
def test_selected_elements_are_the_optimizers_own(method):
    """A hard mask changes selected elements by nothing: one step of AdamW from w*, bit for bit."""
    built = build(method, {}, seed=0)
    run = toy.train(built, steps=1, decay=0.0, dtype=torch.float32)
    free = toy.train(build("full_ft", {}, 0), steps=1, decay=0.0, dtype=torch.float32)
    for shard in run.attachment.shards:
        chosen = (built.mask(shard) != 0).numpy().reshape(shard.shape)
        assert (run.weights[shard.name][chosen] == free.weights[shard.name][chosen]).all(), shard.name


def test_lag_is_spider_code_one_step_late():
    """From the same gradients, the weights before the second update are spider_code's, and the last are not masked."""

    class Recorder:
        """Feeds one run's gradients to another optimizer."""

        def __init__(self, method):
            self.model = toy.build(torch.float64)
            self.named = dict(self.model.named_parameters())
            pretrained = {name: value.detach().clone() for name, value in self.named.items()}
            self.optimizer, _ = toy.make_optimizer(self.model, 0.1)
            toy.attach(self.optimizer, self.named, pretrained, build(method, {}, 0))

        def step(self, gradients):
            for name, value in self.named.items():
                value.grad = torch.from_numpy(gradients[name]).clone()
            self.optimizer.step()

    gradients = toy.train(build("spider_code", {}, 0), steps=4).gradients
    code, lag = Recorder("spider_code"), Recorder("spider_lag")
    for gradient in gradients:
        code.step(gradient)
        lag.step(gradient)
    moved = {name: value.detach().clone() for name, value in lag.named.items()}
    assert any((moved[name] != code.named[name]).any() for name in moved)
    none = {name: np.zeros_like(value) for name, value in gradients[0].items()}
    for group in (*code.optimizer.param_groups, *lag.optimizer.param_groups):
        group["lr"] = 0.0
    lag.step(none)
    for name, value in lag.named.items():
        torch.testing.assert_close(value, code.named[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [name for name in TRAINING if name.endswith("two_step")])
def test_two_steps_are_refused_where_the_engine_takes_them(method):
    shards = toy.train(build("full_ft", {}, 0), steps=1).attachment.shards
    built = build(method, {}, 0)
    assert built.extra_step is None, "an engine that does not offer it"
    with pytest.raises(UserError, match="engine=single"):
        built.start(shards)


def test_the_registry_says_which_engines_a_method_refuses():
    for name in TRAINING:
        engines = ("single", "zero1", "zero2", "zero3", "fsdp2")
        refused = tuple(engine for engine in engines if refusal(name, {}, engine))
        assert METHODS[name].refuses == refused, name


def test_two_steps_count_twice_and_move_further():
    one, two = (toy.train(build(name, {}, 0), decay=0.0) for name in ("l2_reg_mean", "l2_reg_two_step"))
    for run, steps in ((one, 8), (two, 16)):
        assert {int(state["step"]) for state in run.optimizer.state.values()} == {steps}
    distance = [run.attachment.diagnostics()["rms_delta"] for run in (one, two)]
    assert distance[1] > 1.1 * distance[0]


def test_mean_penalties_hardly_act():
    """The artefact that explains the paper: without its second step, the mean of means is Full FT."""
    full = toy.train(build("full_ft", {}, 0), decay=0.0).weights
    for method in ("l2_reg_mean", "grafting_mean"):
        weights = toy.train(build(method, {}, 0), decay=0.0).weights
        difference = max(np.abs(weights[name] - full[name]).max() for name in full)
        assert 0 < difference < 2e-4, "the learning rate is a hundred times that"


def test_group_ranks_need_the_whole_group():
    built = build("spider_global", {}, 0)
    run = toy.train(built, steps=1)

    class Part:
        """The first tensors of a group, as ZeRO-3 gives a sub-group."""

        def __iter__(self):
            return iter(list(run.attachment.shards)[:5])

        def totals(self, function):
            names = [shard.name for shard in self]
            return {name: row for name, row in run.attachment.shards.totals(function).items() if name in names}

    with pytest.raises(UserError, match="sub_group_size"):
        built.after_step(Part())


def test_group_ranks_differ_from_tensor_ranks():
    """A tensor of large weights keeps more of them under group ranks: its magnitudes rank high within the group."""
    model = toy.build(torch.float32)
    name = "layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name).mul_(20)
    share = {}
    for method in ("spider", "spider_global"):
        built = build(method, {}, 0)
        named = dict(model.named_parameters())
        optimizer, _ = toy.make_optimizer(model, 0.0)
        attachment = toy.attach(optimizer, named, {n: v.detach().clone() for n, v in named.items()}, built)
        toy.step(model, optimizer, 0)
        share[method] = attachment.diagnostics()[f"selected/{name}"]
        attachment.remove()
    assert share["spider"] > 0.3 and share["spider_global"] < share["spider"] / 2


def test_step_draws_keep_half_ft_at_its_last_value_not_at_the_base():
    built = build("half_ft_step", {}, seed=2)
    run = toy.train(built, steps=3, decay=0.1, dtype=torch.float32)
    before = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    moved = {
        name
        for name, value in before.items()
        if not np.array_equal(value.double().numpy(), run.pretrained[name])
    }
    toy.step(run.model, run.optimizer, 3)
    frozen = set(draw_frozen(before, 2, 3))
    assert frozen == built.frozen and frozen & moved, "some tensor freezes that has moved already"
    for name, value in run.model.named_parameters():
        assert torch.equal(value, before[name]) == (name in frozen), name


def test_random_elements_do_not_depend_on_how_a_tensor_is_cut():
    sizes = {"a": 50, "b": 21}
    tensors = {name: torch.linspace(-1, 1, size) for name, size in sizes.items()}

    def work(shards):
        method = build("half_ft_elements", {}, seed=7)
        method.start(shards)
        return {shard.name: method.mask(shard) for shard in shards}

    whole = parts.run(parts.cut(tensors, 1, lambda rank, size: size), sizes, work)[0]
    for ends in ((17, 17), (0, 50), (3, 4)):
        pieces = parts.run(parts.cut(tensors, 3, lambda rank, size, ends=ends: ends[rank]), sizes, work)
        for name in sizes:
            assert torch.equal(torch.cat([piece[name] for piece in pieces]), whole[name])


@pytest.mark.parametrize("method", [*BLENDED, "spider_magnitude", "spider_gradient"])
def test_masks_do_not_depend_on_how_a_tensor_is_cut(method):
    """Masks from three processes, one of which holds nothing of a tensor, are those of one process."""
    sizes = {"model.layers.0.mlp.up_proj.weight": 40, "projector.weight": 9}
    source = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(size, generator=source) for name, size in sizes.items()}

    def work(shards):
        built = build(method, {}, seed=0)
        built.shards = shards
        built.start(shards)
        built.before_step(shards)
        built.after_step(shards)
        built.diagnostics()
        return {shard.name: built.mask(shard).float() for shard in shards}

    whole = parts.run(parts.cut(tensors, 1, lambda rank, size: size), sizes, work)[0]
    pieces = parts.run(parts.cut(tensors, 3, lambda rank, size: (0, 13)[rank]), sizes, work)
    for name in sizes:
        torch.testing.assert_close(
            torch.cat([piece[name] for piece in pieces]), whole[name], rtol=0, atol=1e-6
        )
        assert 0 < whole[name].count_nonzero() < sizes[name]


@pytest.mark.parametrize(("leaves", "kept"), [
    ([f"self_attn.{x}_proj" for x in "qkvo"], [2, 2]),  # train.scope=attention
    (["mlp.gate_proj", "mlp.up_proj"], [1, 1]),  # gate_up
    (["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"], [1, 2]),  # mlp
    (["self_attn.q_proj"], [0, 1]),  # a pattern
])
def test_half_ft_trains_half_of_what_the_scope_leaves(leaves, kept):
    layers = [[f"model.layers.{i}.{leaf}.weight" for leaf in leaves] for i in range(2)]
    draws = []
    for seed in range(40):
        frozen = draw_frozen([*layers[0], *layers[1], "mm_projector.layers.2.weight"], seed)
        assert set(frozen) <= {*layers[0], *layers[1]}
        assert sorted(sum(name not in frozen for name in layer) for layer in layers) == kept
        draws.append(frozenset(frozen))
    assert {name for draw in draws for name in draw} == {*layers[0], *layers[1]}
