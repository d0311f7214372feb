"""Every adapter against its equation in float64 numpy, and what all have in common."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import methods
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.training.attach import attach
from methods.adapter_sizes import elements
from methods.peft import BlockDiagonal
from methods.registry import METHODS, build, make_params
from tests.methods.adapted import ADAPTERS, DOWN, SMALL, UP, VALUE, adapt, decoder, draw, inputs_of, numpy
from tests.reference import adapters as reference
from tests.reference.adamw import AdamW

LOOSE = {"rtol": 0, "atol": 2e-6}  # adapters are merged in float32


def close(found, expected, **tolerance):
    np.testing.assert_allclose(np.asarray(found), expected, **(LOOSE | tolerance))


def test_every_adapter_is_tested():
    assert list(SMALL) == ADAPTERS


APART = ["houlsby", "prefix"]  # they cannot be merged; the attention that reads a prefix is in test_prefix.py


@pytest.mark.parametrize("method", [name for name in ADAPTERS if name not in APART])
def test_a_new_adapter_changes_nothing_and_a_trained_one_is_merged_exactly(method):
    x = draw(1, 2, 5, 8)
    plain = decoder()(x)
    made = adapt(method)
    # SVDs in float32 and the library's float32 buffers leave their rounding.
    close(made.model(x).detach(), plain.detach(), atol=1e-5)
    tuned = made.perturb()
    expected = made.model(x).detach()
    assert (expected - plain).abs().max() > 0.01
    merged = made.adapter.merged(tuned)
    made.adapter.remove()
    assert {name: numpy(value).tolist() for name, value in made.model.named_parameters()} == {
        name: value.tolist() if not name.startswith("projector") else numpy(tuned[name]).tolist()
        for name, value in made.base.items()
    }
    assert [type(module) for module in made.model.modules()] == [type(module) for module in decoder().modules()]
    assert not any(p.requires_grad for p in made.model.parameters())
    made.model.load_state_dict(merged, strict=False)
    close(made.model(x).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("method", APART)
def test_an_adapter_that_cannot_be_merged_is_kept_as_it_is(method):
    x = draw(1, 2, 5, 8)
    plain = decoder()(x)
    made = adapt(method)
    assert torch.equal(made.model(x), plain)
    tuned = made.perturb()
    assert method == "prefix" or (made.model(x) - plain).abs().max() > 0.01
    assert made.adapter.merged(tuned) == {} and made.adapter.weights == made.adapter.trained
    assert [name for name in made.adapter.trained if "projector" not in name] == made.adapter.added
    pretrained = {name: torch.from_numpy(made.base[name]) for name in made.adapter.trained if "projector" in name}
    base = made.adapter.base(pretrained)
    # Whatever its value is, even that before training, it differs from what the cell is compared with.
    assert base.keys() == tuned.keys() and all(base[name].isnan().all() for name in made.adapter.added)
    made.adapter.remove()
    assert [type(module) for module in made.model.modules()] == [type(module) for module in decoder().modules()]


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_plan_counts_what_trains(method):
    made = adapt(method)
    shapes = {
        name.removeprefix("layers.0.").removesuffix(".weight"): value.shape
        for name, value in made.base.items() if name.startswith("layers.0.")
    }
    params = vars(make_params(method, SMALL[method]))
    trained = [made.model.get_parameter(name) for name in made.adapter.trained if not name.startswith("projector")]
    assert elements(METHODS[method].cls, params, [shapes], 8) == sum(parameter.numel() for parameter in trained)
    whole = sum(value.size for name, value in made.base.items() if not name.startswith("vision_tower"))
    assert made.adapter.share == pytest.approx((sum(p.numel() for p in trained) + 72) / whole)
    assert all(parameter.requires_grad for parameter in trained)
    assert not any(p.requires_grad for name, p in made.model.named_parameters() if name not in made.adapter.trained
                   and not name.startswith("projector"))


@pytest.mark.parametrize("method", ADAPTERS)
def test_the_seed_alone_decides_what_is_random(method):
    torch.manual_seed(1)
    first = adapt(method).adapter.digest
    torch.manual_seed(2)
    assert adapt(method).adapter.digest == first
    assert torch.initial_seed() == 2


def test_a_resume_with_another_random_part_would_be_noticed():
    """The trained tensors all begin at 0; what differs is which elements they are, or what they multiply."""
    for method in ("shira", "vera"):
        one, other = (build(method, SMALL[method], seed) for seed in (0, 1))
        digests = [adapt(method, method_object=built).adapter.digest for built in (one, other)]
        assert digests[0] != digests[1], method


def test_what_an_adapter_keeps_is_counted_once():
    made = adapt("vera")  # its two matrices serve every layer
    trained = made.adapter.parameters - 72
    assert made.adapter.bytes == 4 * (10 * 12 + 12 * 10 + trained)
    assert adapt("lora").adapter.bytes == 4 * 3 * (16 + 16 + 20 + 20)
    shira = adapt("shira")
    assert shira.adapter.bytes == (4 + 8) * (shira.adapter.parameters - 72)  # a value and two indices


@pytest.mark.parametrize("method", ["pissa", "olora", "corda", "milora", "lora_null"])
def test_in_bfloat16_a_split_weight_comes_back_bit_for_bit(method):
    """The base's rest is rounded, but the delta is computed on W* as stored: only training changes it."""
    made = adapt(method, torch.bfloat16)
    before = {name: value for name, value in made.base.items()}
    tuned = {name: made.model.get_parameter(name).detach().float() for name in made.adapter.trained}
    for name, value in made.adapter.merged(tuned).items():
        assert value.dtype == torch.float32
        assert torch.equal(value.bfloat16().double(), torch.from_numpy(before[name])), name


# ---- LoRA and its beginnings


def factors(made, layer=UP):
    return made.value(f"{layer}.lora_A.default.weight"), made.value(f"{layer}.lora_B.default.weight")


@pytest.mark.parametrize(("method", "scale"), [("lora", 64 / 3), ("rslora", 64 / 3**0.5), ("mica", 64 / 3)])
def test_lora(method, scale):
    made = adapt(method)
    merged = made.adapter.merged(made.perturb())
    down, up = factors(made)
    close(merged[f"{UP}.weight"], reference.lora(made.weight(UP), down, up, scale), atol=1e-5)
    assert set(merged) == {f"layers.0.{name}.weight" for name in (
        "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj",
    )}


def test_dora():
    made = adapt("dora")
    close(made.value(f"{UP}.lora_magnitude_vector.default.weight"), np.linalg.norm(made.weight(UP), axis=1))
    merged = made.adapter.merged(made.perturb())
    lengths = made.value(f"{UP}.lora_magnitude_vector.default.weight")
    close(merged[f"{UP}.weight"], reference.dora(made.weight(UP), *factors(made), 64 / 3, lengths), atol=1e-5)


def test_mica_trains_only_a_in_the_minor_left_directions():
    made = adapt("mica")
    down, up = factors(made)
    u, _, _ = np.linalg.svd(made.weight(UP), full_matrices=False)
    close(up @ up.T, u[:, -3:] @ u[:, -3:].T)
    assert not down.any() and not any("lora_B" in name for name in made.adapter.trained)


PARTS = {
    "pissa": lambda made, layer: reference.principal(made.weight(layer), 3),
    "olora": lambda made, layer: 2 * reference.qr(made.weight(layer), 3),  # the library does not divide by its scale
    "milora": lambda made, layer: reference.minor(made.weight(layer), 3),
    "corda": lambda made, layer: reference.corda(made.weight(layer), reference.moments(inputs_of(layer)), 3),
    "lora_null": lambda made, layer: reference.lora_null(made.weight(layer), reference.moments(inputs_of(layer)), 3),
}


@pytest.mark.parametrize("layer", [UP, DOWN, VALUE])
@pytest.mark.parametrize("method", PARTS)
def test_what_is_split_off_a_weight(method, layer):
    splits_off(adapt(method), method, layer)


def splits_off(made, method, layer):
    down, up = factors(made, layer)
    part = PARTS[method](made, layer)
    close(2 * up @ down, part, atol=1e-5)  # the scale is 6 / 3
    close(made.value(f"{layer}.base_layer.weight"), made.weight(layer) - part, atol=1e-5)
    tuned = made.perturb()
    down, up = factors(made, layer)
    merged = made.adapter.merged(tuned)
    close(merged[f"{layer}.weight"], made.weight(layer) - part + 2 * up @ down, atol=1e-5)


def test_oplora_keeps_the_largest_singular_triples():
    keeps_the_largest(adapt("oplora"))


def keeps_the_largest(made):
    merged = made.adapter.merged(made.perturb())
    original = "{}.{}.default.parametrizations.weight.original"
    down, up = (made.value(original.format(UP, name)) for name in ("lora_A", "lora_B"))
    close(merged[f"{UP}.weight"], reference.oplora(made.weight(UP), down, up, 64 / 3, 4), atol=1e-5)
    u, s, v = np.linalg.svd(made.weight(UP), full_matrices=False)
    close(u[:, :4].T @ numpy(merged[f"{UP}.weight"]), s[:4, None] * v[:4], atol=1e-5)
    close(numpy(merged[f"{UP}.weight"]) @ v[:4].T, u[:, :4] * s[:4], atol=1e-5)


# ---- the library's other types


def test_vera():
    made = adapt("vera")
    shared = made.value(f"{UP}.vera_A.default"), made.value(f"{UP}.vera_B.default")
    assert shared[0].shape == (10, 12) and shared[1].shape == (12, 10)
    merged = made.adapter.merged(made.perturb())
    for layer in (UP, DOWN):
        d, b = (made.value(f"{layer}.vera_lambda_{name}.default") for name in "db")
        close(merged[f"{layer}.weight"], reference.vera(made.weight(layer), *shared, d, b), atol=1e-5)


@pytest.mark.parametrize("layer", [UP, DOWN])
def test_oft(layer):
    made = adapt("oft")
    merged = made.adapter.merged(made.perturb())
    numbers = made.value(f"{layer}.oft_R.default.weight")
    assert numbers.shape == (made.weight(layer).shape[1] // 4, 6)
    close(merged[f"{layer}.weight"], reference.oft(made.weight(layer), numbers, 4))


def test_boft_rotates_by_butterflies_and_scales():
    made = adapt("boft")
    merged = numpy(made.adapter.merged(made.perturb())[f"{DOWN}.weight"])
    scale = made.value(f"{DOWN}.boft_s.default")
    assert scale.shape == (8, 1)
    rotation = np.linalg.lstsq(made.weight(DOWN)[:, :], merged / scale, rcond=None)[0]
    # 8 outputs determine 12 inputs' rotation only on the row space: norms of rows are kept there.
    close(np.linalg.norm(merged / scale, axis=1), np.linalg.norm(made.weight(DOWN), axis=1), atol=1e-5)
    square = numpy(adapt_and_merge("boft")[f"{VALUE}.weight"])
    weight = decoder_weight(VALUE)
    rotation = np.linalg.solve(weight, square / adapt_scale("boft"))
    close(rotation @ rotation.T, np.eye(8), atol=1e-4)
    reached = np.abs(rotation) > 1e-4
    assert reached.sum(1).max() == 4  # two factors of blocks of two mix four inputs


def adapt_and_merge(method):
    made = adapt(method)
    return made.adapter.merged(made.perturb())


def adapt_scale(method):
    made = adapt(method)
    made.perturb()
    return made.value(f"{VALUE}.boft_s.default")


def decoder_weight(layer):
    return numpy(decoder().get_parameter(f"{layer}.weight"))


def test_the_stand_in_for_the_librarys_extension_is_block_diagonal_with_its_gradient():
    blocks = draw(5, 3, 4, 2, 2).requires_grad_()
    whole = BlockDiagonal.forward(blocks)[0]
    assert whole.shape == (3, 8, 8)
    assert torch.equal(whole[1], torch.block_diag(*blocks[1]))
    weights = draw(6, 3, 8, 8)
    expected, = torch.autograd.grad((whole * weights).sum(), blocks)
    assert torch.equal(BlockDiagonal.backward(weights, blocks.detach())[0], expected)


@pytest.mark.parametrize("layer", [UP, DOWN, VALUE])
def test_osf(layer):
    made = adapt("osf")
    x, target = draw(8, 2, 5, 8), draw(9, 2, 5, 8)
    made.perturb()
    made.model.zero_grad()
    names = [f"{layer}.osf_svd_params.default.{name}_low" for name in "USV"]
    u, s, v = (made.model.get_parameter(name) for name in names)
    (made.model(x) - target).square().mean().backward()
    # The gradient without the library's projection, by the chain rule from the gradient of the whole weight.
    plain = decoder()
    plain.load_state_dict({name: p for name, p in made.model.named_parameters() if "projector" in name}, strict=False)
    with torch.no_grad():
        for name, module in made.model.named_modules():
            if hasattr(module, "get_delta_weight"):
                plain.get_parameter(f"{name}.weight").add_(module.get_delta_weight("default"))
    weight = plain.get_parameter(f"{layer}.weight")
    (plain(x) - target).square().mean().backward()
    gradient = numpy(weight.grad)
    left, right = gradient @ numpy(v).T * numpy(s), (numpy(u) * numpy(s)).T @ gradient
    left, right = reference.osf_gradients(made.weight(layer), 4, left, right)
    close(u.grad, left)
    close(v.grad, right)
    low = tuple(made.value(name) for name in names)
    merged = made.adapter.merged({name: made.model.get_parameter(name).detach() for name in made.adapter.trained})
    close(merged[f"{layer}.weight"], reference.osf(made.weight(layer), 4, low), atol=1e-5)


def test_ia3():
    made = adapt("ia3")
    merged = made.adapter.merged(made.perturb())
    assert set(merged) == {f"layers.0.{name}.weight" for name in (
        "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj",
    )}
    scale = {layer: made.value(f"{layer}.ia3_l.default") for layer in (VALUE, DOWN)}
    assert scale[VALUE].shape == (8, 1) and scale[DOWN].shape == (1, 12)
    for layer, numbers in scale.items():
        close(merged[f"{layer}.weight"], made.weight(layer) * numbers)


def test_ln_tuning():
    made = adapt("ln_tuning")
    tuned = made.perturb()
    merged = made.adapter.merged(tuned)
    assert set(merged) == {"layers.0.input_layernorm.weight"}
    close(merged["layers.0.input_layernorm.weight"], tuned[
        "layers.0.input_layernorm.ln_tuning_layers.default.weight"
    ], atol=1e-7)


def test_houlsby():
    behind_the_sublayers(adapt("houlsby"))


def behind_the_sublayers(made):
    start = {name: made.value(f"{DOWN}.{name}") for name in ("down.weight", "up.weight", "down.bias", "up.bias")}
    assert start["down.weight"].shape == (3, 8) and 0 < np.abs(start["down.weight"]).max() <= 0.02
    assert not any(start[name].any() for name in start if name != "down.weight")
    made.perturb()
    x, kinds = draw(8, 5, 12), ("down.weight", "down.bias", "up.weight", "up.bias")
    found = made.model.get_submodule(DOWN)(x)
    expected = reference.houlsby(numpy(x) @ made.weight(DOWN).T, *(made.value(f"{DOWN}.{kind}") for kind in kinds))
    close(found.detach(), expected)


def test_houlsby_draws_the_two_sublayers_apart():
    made = adapt("houlsby")
    assert (made.value(f"{DOWN}.down.weight") != made.value(f"{VALUE}.down.weight")).any()


def support(made):
    """Return where a sparse adapter changed each weight."""
    merged = made.adapter.merged(made.perturb())
    return {name: np.abs(numpy(value) - made.base[name]) > 1e-6 for name, value in merged.items()}


def test_shira_trains_the_elements_that_its_mask_names():
    found = {method: support(adapt(method)) for method in ("shira", "shira_magnitude", "shira_gradient")}
    base = adapt("shira").base
    model = decoder()
    loss = sum(model(draw(50 + i, 7, 8)[None]).square().mean() for i in range(4))
    loss.backward()
    for name in found["shira"]:
        count = sum(base[name].shape)
        assert all(masks[name].sum() == count for masks in found.values())
        share = count / base[name].size
        assert (found["shira_magnitude"][name] == reference.largest(base[name], share)).all()
        gradient = numpy(model.get_parameter(name).grad)
        assert (found["shira_gradient"][name] == reference.largest(gradient, share)).all()
    key, value = (found["shira"][f"layers.0.self_attn.{name}_proj.weight"] for name in "kv")
    assert (key != value).any(), "two layers of one shape share one random mask"


def test_supertuning_trains_the_largest_or_the_smallest_weights():
    top, bottom = support(adapt("supertuning")), support(adapt("supertuning_bottom"))
    base = adapt("supertuning").base
    for name in top:
        assert (top[name] == reference.largest(base[name], 0.25)).all()
        assert (bottom[name] == ~reference.largest(base[name], 0.75)).all()


# ---- LoRASculpt


def trained(method, steps=6, load=None, **params):
    """Train an adapted decoder; return it, and the clipped gradients of the loss before the method saw them."""
    made = adapt(method, torch.float64, load=load, **params)
    named = {name: made.model.get_parameter(name).requires_grad_() for name in made.adapter.trained}
    start = {name: value.detach().clone() for name, value in named.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=0.02, weight_decay=0.0)
    attachment = attach(optimizer, named, start, made.method)
    gradients = []
    for step in range(steps):
        optimizer.zero_grad()
        x, target = (draw(seed + step, 2, 5, 8, dtype=torch.float64) for seed in (100, 200))
        (made.model(x) - target).square().mean().backward()
        nn.utils.clip_grad_norm_(named.values(), 1.0)
        gradients.append({name: numpy(value.grad) for name, value in named.items()})
        optimizer.step()
    return made, {name: numpy(value) for name, value in start.items()}, gradients, attachment, named


def sculpted(method, load=None, connector=False):
    """Compare a training with the transcription, step by step."""
    lag, layers = method == "lorasculpt_code", (UP, DOWN, VALUE, "layers.0.self_attn.k_proj")
    regularised = [layer for layer in layers if not lag or layer.endswith(("k_proj", "v_proj"))]
    means = dict.fromkeys(regularised, len(regularised)) | ({"projector": 1} if connector and not lag else {})
    made, weights, gradients, attachment, named = trained(method, load=load, projector=connector)
    optimizer, masks = AdamW(dict.fromkeys(weights, 0.02), 0.0), {}

    def prune(weights, steps):
        if steps >= 3 and not masks:
            masks.update({name: reference.largest(w, 0.4) for name, w in weights.items() if "lora" in name})
        return {name: w * masks[name] if name in masks else w for name, w in weights.items()}

    for step, task in enumerate(gradients):
        total = {name: g.copy() for name, g in task.items()}
        for layer, number in means.items():
            names = f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"
            parts = reference.regulariser_gradients(made.weight(layer), *(weights[name] for name in names), 1.0)
            for name, part in zip(names, parts, strict=True):
                total[name] += 0.3 / number * part
        if lag:
            weights = prune(weights, step)
        weights = optimizer.step(weights, total)
        if not lag:
            weights = prune(weights, step + 1)
    for name, expected in weights.items():
        np.testing.assert_allclose(numpy(named[name]), expected, rtol=0, atol=1e-10, err_msg=name)
    return made, masks, attachment, named


@pytest.mark.parametrize("method", ["lorasculpt", "lorasculpt_code"])
def test_lorasculpt(method):
    made, masks, attachment, named = sculpted(method)
    assert len(masks) == 8 and all(mask.sum() == int(mask.size * 0.4) for mask in masks.values())
    outside = sum(int((numpy(named[name]) != 0)[~mask].sum()) for name, mask in masks.items())
    density = attachment.diagnostics()["adapter_density"]
    if method == "lorasculpt":
        assert outside == 0 and density < 0.4
    else:  # the last update is never masked
        assert outside > 0 and density > 0.9
    assert METHODS[method].refuses == ("zero3",) and "zero2" in made.method.refuses("zero3")


@pytest.mark.parametrize("method", ["lorasculpt", "lorasculpt_code"])
def test_lorasculpt_sculpts_the_connector_with_a_mean_of_its_own(method):
    """The paper's beta term; the released code leaves the connector out of it, but masks what it adapts."""
    made, masks, _, named = sculpted(method, connector=True)
    assert len(masks) == 10 and {name for name in masks if name.startswith("projector")} == {
        "projector.lora_A.default.weight", "projector.lora_B.default.weight"
    }
    assert "projector.weight" not in named and "projector.bias" not in named
    merged = made.adapter.merged({name: value.detach() for name, value in named.items()})
    down, up = (numpy(named[f"projector.lora_{half}.default.weight"]) for half in "AB")
    close(merged["projector.weight"], reference.lora(made.base["projector.weight"], down, up, 64 / 3), atol=1e-5)
    assert set(made.adapter.weights) == set(merged)


def test_the_regularisers_gradient_is_that_of_the_released_expression():
    weight, down, up = numpy(draw(1, 6, 5)), numpy(draw(2, 2, 5)), numpy(draw(3, 6, 2))
    for index, (part, name) in enumerate(zip(
        reference.regulariser_gradients(weight, down, up, 1.0), ("down", "up"), strict=True,
    )):
        moved = [down.copy(), up.copy()]
        moved[index].ravel()[3] += 1e-6
        slope = (reference.regulariser(weight, *moved, 1.0) - reference.regulariser(weight, down, up, 1.0)) / 1e-6
        assert part.ravel()[3] == pytest.approx(slope, rel=1e-4), name


def test_lorasculpt_resumes_with_its_masks():
    made, *_, attachment, named = trained("lorasculpt", 4)
    state = attachment.state_dict()
    again, *_, other, _ = trained("lorasculpt", 0)
    other.load_state_dict(state)
    assert set(again.method._masks) == set(made.method._masks) and len(again.method._masks) == 8
    assert all(torch.equal(again.method._masks[name], mask) for name, mask in made.method._masks.items())
    assert again.method._steps == made.method._steps == dict.fromkeys(made.method._steps, 4)


# ---- faults that these tests must notice

FAULTS = {
    "milora: largest triples": ("milora", "subspaces", "left[:, -rank:], values[-rank:], right[-rank:]",
                                "left[:, :rank], values[:rank], right[:rank]"),
    "milora: the base keeps all of W": ("milora", "subspaces", "base.detach().float() - self.change(layer)",
                                        "base.detach().float()"),
    "milora: the scale stays": ("milora", "subspaces", "layer.scaling[NAME] ** -0.5", "1.0"),
    "milora: singular values, not their roots": ("milora", "subspaces", "roots = values.sqrt()", "roots = values"),
    "lora_null: directions of most variance": ("lora_null", "subspaces", "eigenvectors[:, : self.params.r]",
                                               "eigenvectors[:, -self.params.r :]"),
    "lora_null: inputs not scaled": ("lora_null", "subspaces", "tokens = tokens / tokens.max().abs()", "pass"),
    "lora_null: outputs projected, not inputs": ("lora_null", "subspaces", "weight.double() @ least @ least.T",
                                                 "weight.double()"),
    "oplora: sides swapped": ("oplora", "subspaces", "Without(largest[0], rows=False)",
                              "Without(largest[0][: self.params.r, : self.params.k], rows=True)"),
    "oplora: right side free": ("oplora", "subspaces", "return weight - (weight @ away) @ away.T if self.rows",
                                "return weight if self.rows"),
    "oplora: directions kept, not removed": ("oplora", "subspaces", "else weight - away @", "else away @"),
    "lorasculpt: regulariser's sign": ("lorasculpt", "lorasculpt", "grad.add_((factor", "grad.sub_((factor"),
    "lorasculpt: sum over layers, not mean": ("lorasculpt", "lorasculpt", "/ self._regularised[path] / norm", "/ norm"),
    "lorasculpt: one mean for both parts": ("lorasculpt", "lorasculpt", "parts[outside[path]]", "len(wanted)"),
    "lorasculpt: M, not its square": ("lorasculpt", "lorasculpt", ".square_().mul_(up @ down)", ".mul_(up @ down)"),
    "lorasculpt: logarithm not inverted": ("lorasculpt", "lorasculpt", ".log_().reciprocal_()", ".log_()"),
    "lorasculpt: one step late": ("lorasculpt", "lorasculpt", ">= self.params.prune", "> self.params.prune"),
    "lorasculpt: masked only once": ("lorasculpt", "lorasculpt", "for shard in mine:", "for shard in []:"),
    "lorasculpt: the projector is masked too": ("lorasculpt", "lorasculpt", " if shard.name.endswith((DOWN, UP))", ""),
    "houlsby: no skip": ("houlsby", "houlsby", "return y + self.up", "return self.up"),
    "houlsby: no nonlinearity": ("houlsby", "houlsby", "F.gelu(self.down(y))", "self.down(y)"),
    "houlsby: of the inputs": ("houlsby", "houlsby", "self.down(y)", "self.down(x[..., : y.shape[-1]])"),
    "lorasculpt_code: no lag": ("lorasculpt_code", "lorasculpt", "if not self.params.lag", "if True"),
    "lorasculpt_code: all layers regularised": ("lorasculpt_code", "lorasculpt", 'self.params.regularise == "all" or',
                                                "True or"),
}


@pytest.fixture
def mutant(tmp_path, monkeypatch):
    """Return a function that writes a copy of a module of methods with one change and returns its loader."""

    def make(file, text, replacement):
        name = f"mutant_of_{file}_{len(sys.modules)}"
        source = (Path(methods.__file__).parent / f"{file}.py").read_text()
        assert source.count(text) == 1, f"{text!r} is there {source.count(text)} times"
        (tmp_path / f"{name}.py").write_text(source.replace(text, replacement))
        monkeypatch.syspath_prepend(tmp_path)
        return lambda _: importlib.import_module(name)

    return make


def check(method, load=None):
    """Compare a method of our own with its transcription."""
    if method in ("lorasculpt", "lorasculpt_code"):
        sculpted(method, load)
        sculpted(method, load, connector=True)
        return
    made = adapt(method, load=load)
    if method == "oplora":
        keeps_the_largest(made)
    elif method == "houlsby":
        behind_the_sublayers(made)
    else:
        splits_off(made, method, UP)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, mutant):
    method, *change = FAULTS[fault]
    load = mutant(*change)  # outside: a text that is no longer in the file is a fault of this table
    with pytest.raises((AssertionError, RuntimeError)):
        check(method, load)


@pytest.mark.parametrize("method", sorted({method for method, *_ in FAULTS.values()}))
def test_an_unchanged_copy_passes(method, mutant):
    file = next(file for name, file, *_ in FAULTS.values() if name == method)
    check(method, mutant(file, "from __future__", "from __future__"))


# ---- mistakes


@pytest.mark.parametrize(("method", "params", "words"), [
    ("lora", {"r": 9}, ["layers.0.self_attn.k_proj (weight 8 x 8): r=9 is above the layer's rank 8", "1 to 8"]),
    ("pissa", {"r": 9}, ["r=9 is above the layer's rank 8"]),
    ("corda", {"r": 9}, ["r=9 is above the layer's rank 8"]),
    ("milora", {"r": 9}, ["r=9 is above the layer's rank 8"]),
    ("lorasculpt", {"r": 9}, ["r=9 is above the layer's rank 8"]),
    ("oplora", {"k": 8}, ["k=8 leaves no direction of its 8"]),
    ("oft", {"oft_block_size": 3}, ["oft_block_size=3 does not divide its 8 inputs", "2, 4, 8"]),
    ("boft", {"boft_block_size": 8}, ["needs a multiple of 16 inputs, it has 8"]),
    ("osf", {"effective_rank": 8.0}, ["effective_rank=8 keeps none or all of its 8"]),
    ("osf", {"effective_rank": 0.1}, ["effective_rank=0.1 keeps none or all"]),
    ("shira", {"r": 5}, ["r=5 would train more elements than it has", "up to 4"]),
    ("supertuning", {"sparsity": 0.999}, ["sparsity=0.999 trains none of its 64 elements"]),
    ("lora", {"targets": "vision_tower.*"}, ["'vision_tower.*' names none of the layers", "never reaches the vision",
                                            "mlp.down_proj, mlp.up_proj, self_attn.k_proj, self_attn.v_proj"]),
    ("lora", {"targets": "q_proj"}, ["'q_proj' names none", "the whole name"]),
    ("houlsby", {"size": 9}, ["layers.0.self_attn.v_proj", "size=9 is no bottleneck of its 8 outputs", "1 to 8"]),
    ("ln_tuning", {"targets": "mlp.*"}, ["names none of the layers that train", "Names: input_layernorm"]),
])
def test_an_adapter_that_does_not_fit_is_refused_by_name(method, params, words):
    with pytest.raises(UserError) as caught:
        adapt(method, **params)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("method", "params", "words"), [
    ("lora", {"targets": "("}, ["targets='('", "no regular expression"]),
    ("lora", {"r": 0}, ["r=0 must be above 0"]),
    ("lora", {"init_lora_weights": "pisa"}, ["Did you mean 'pissa'"]),
    ("houlsby", {"size": 0}, ["size=0 must be above 0"]),
    ("ia3", {"feedforward": "["}, ["no regular expression"]),
    ("oft", {"oft_block_size": 1}, ["oft_block_size=1"]),
    ("boft", {"boft_block_size": 3}, ["boft_block_size=3 must be even"]),
    ("supertuning", {"sparsity": 1.0}, ["sparsity=1.0"]),
    ("shira", {"mask": "gradient"}, ["samples=0", "at least 1"]),
    ("shira", {"samples": 5}, ["other masks need none"]),
    ("lorasculpt", {"keep": 0.0}, ["keep=0.0"]),
    ("lorasculpt", {"strength": -1.0}, ["strength=-1.0"]),
])
def test_a_wrong_parameter_is_refused(method, params, words):
    with pytest.raises(UserError) as caught:
        build(method, params, 0)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_quantised_layer_is_refused(monkeypatch):
    real = nn.Module.get_submodule

    def quantised(self, path):
        module = real(self, path)
        if path == UP:
            module.weight.requires_grad_(False)
            module.weight.data = module.weight.data.to(torch.float8_e4m3fn)
        return module

    monkeypatch.setattr(nn.Module, "get_submodule", quantised)
    with pytest.raises(UserError, match=r"layers.0.mlp.up_proj is quantised \(torch.float8_e4m3fn\)"):
        adapt("lora")


def test_a_refused_engine_is_said_before_anything_runs():
    with pytest.raises(UserError, match="method=lorasculpt refuses engine=zero3: the regulariser needs a layer's A"):
        request(["method=lorasculpt", "model=llava_pocket", "dataset=coco", "engine=zero3"])


@pytest.mark.parametrize("method", [name for name in ADAPTERS if METHODS[name].refuses])
def test_an_engine_that_cannot_shard_a_type_is_named_with_the_way_out(method):
    built = build(method, SMALL[method], 0)
    assert built.refuses("zero2") is None and "engine=zero2" in built.refuses("zero3")
