"""Each method against its float64 transcription; `load` returns a module of `methods` (or a mutated copy)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch

from tests.methods import toy
from tests.reference import dare, half_ft, penalties, spider, tailor
from tests.reference.adamw import AdamW

Load = Callable[[str], ModuleType]
DECAY = 0.1


def original(name: str) -> ModuleType:
    return importlib.import_module(f"methods.{name}")


def compare(run: toy.Run, expected: dict[str, np.ndarray], optimizer: AdamW, tolerance: float) -> None:
    for name, value in expected.items():
        # A NaN would spread through the recorded gradients into the expected values.
        assert np.isfinite(run.weights[name]).all(), name
        np.testing.assert_allclose(run.weights[name], value, rtol=0, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(
            run.moments[name], optimizer.first[name], rtol=0, atol=tolerance, err_msg=f"moment of {name}"
        )


def check_full_ft(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    run = toy.train(load("full_ft").FullFT(None, 0), decay=DECAY, dtype=dtype)
    optimizer = AdamW(run.rates, DECAY)
    weights = run.pretrained
    for gradients in run.gradients:
        weights = optimizer.step(weights, gradients)
    compare(run, weights, optimizer, tolerance)


def check_spider(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("spider")
    run = toy.train(module.Spider(module.SpiderParams(), 0), decay=DECAY, dtype=dtype)
    optimizer = AdamW(run.rates, DECAY)
    expected = spider.train(run.pretrained, run.gradients, optimizer, momentum=0.85)
    compare(run, expected, optimizer, tolerance)


def check_l2_reg(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("l2_reg")
    for params, strength in ((module.L2RegParams(), 1e-3), (module.L2RegParams(strength=0.3), 0.3)):
        run = toy.train(module.L2Reg(params, 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        expected = penalties.train(run.pretrained, run.gradients, optimizer, penalties.l2_gradient, strength)
        compare(run, expected, optimizer, tolerance)


def check_grafting(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("grafting")
    for params, strength in ((module.GraftingParams(), 1e-6), (module.GraftingParams(strength=0.02), 0.02)):
        run = toy.train(module.Grafting(params, 0), decay=DECAY, dtype=dtype)
        optimizer = AdamW(run.rates, DECAY)
        expected = penalties.train(run.pretrained, run.gradients, optimizer, penalties.l1_gradient, strength)
        compare(run, expected, optimizer, tolerance)


MATRICES = {
    "attention": [f"self_attn.{x}_proj.weight" for x in "qkvo"],
    "feed_forward": [f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")],
    "norms": ["input_layernorm.weight", "post_attention_layernorm.weight"],
}


def layer_names(layers: int) -> list[str]:
    """Names of the tensors of `layers` decoder layers, numbered as in the last layers of a deep model."""
    leaves = [leaf for group in MATRICES.values() for leaf in group]
    return [f"model.language_model.layers.{8 + i}.{leaf}" for i in range(layers) for leaf in leaves]


def check_draw(module: ModuleType, layers: int, seed: int) -> set[str]:
    """Check one draw's counts; return the frozen names."""
    names = layer_names(layers)
    others = ["model.multi_modal_projector.linear_1.weight", "mm_projector.layers.2.weight"]
    frozen = module.draw_frozen(names + others, seed)
    assert len(set(frozen)) == len(frozen) and set(frozen) <= set(names)
    for category, expected in half_ft.trained_per_layer(layers).items():
        counts = [
            sum(f"model.language_model.layers.{8 + i}.{leaf}" not in frozen for leaf in MATRICES[category])
            for i in range(layers)
        ]
        assert sorted(counts) == expected, (category, counts)
    return set(frozen)


def check_half_ft(load: Load = original, dtype=torch.float64, tolerance: float = 1e-12) -> None:
    module = load("half_ft")
    draws = [check_draw(module, layers, seed) for layers in (1, 2, 5, 8) for seed in range(3)]
    assert len({frozenset(draw) for draw in draws[-3:]}) == 3, "the seed does not change the draw"
    # Every matrix must be able to train: over many seeds, none is always or never frozen.
    share = np.mean(
        [[n in module.draw_frozen(layer_names(2), s) for n in layer_names(2)] for s in range(60)], 0
    )
    assert (share > 0.2).all() and (share < 0.8).all()
    method = module.HalfFT(None, 5)
    run = toy.train(method, decay=DECAY, dtype=dtype)
    frozen = set(module.draw_frozen(run.pretrained, 5))
    for name, value in run.weights.items():
        assert (value == run.pretrained[name]).all() == (name in frozen), name
    optimizer = AdamW(run.rates, DECAY)
    compare(run, half_ft.train(run.pretrained, run.gradients, optimizer, frozen), optimizer, tolerance)


def random_weights(seed: int, shapes: dict[str, tuple[int, ...]]) -> tuple[dict, dict]:
    """Return (pretrained, fine-tuned) float32 tensors whose change is nowhere 0."""
    source = torch.Generator().manual_seed(seed)
    pretrained = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    finetuned = {
        name: value + 0.1 * torch.randn(value.shape, generator=source) for name, value in pretrained.items()
    }
    return pretrained, finetuned


def check_dare(load: Load = original) -> None:
    module = load("dare")
    shapes = {
        "layers.0.mlp.up_proj.weight": (40, 50),
        "layers.1.mlp.up_proj.weight": (40, 50),
        "norm": (400,),
    }
    pretrained, finetuned = random_weights(0, shapes)
    kept = {}
    for seed in (0, 1):
        method = module.Dare(module.DareParams(), seed)
        result = method.finish(finetuned, pretrained, None)
        assert list(result) == list(finetuned)
        for name, value in result.items():
            assert value.dtype == torch.float32
            kept[seed, name] = mask = (value != pretrained[name]).numpy()
            assert abs(mask.mean() - 0.1) < 4 * (0.1 * 0.9 / mask.size) ** 0.5, "kept share"
            expected = dare.merge(
                pretrained[name].double().numpy(), finetuned[name].double().numpy(), mask, keep=0.1
            )
            np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-5)
        backwards = method.finish(dict(reversed(finetuned.items())), pretrained, None)
        assert all(torch.equal(backwards[name], result[name]) for name in result), "depends on tensor order"
    first, second, _ = shapes
    for one, other in (((0, first), (0, second)), ((0, first), (1, first))):
        both = (kept[one] & kept[other]).mean()
        assert both < 0.03, "two tensors or two seeds share their draw"


class FixedInputs:
    """Calibration whose inputs are given, and depend on the first matrix of its own and the last block."""

    def __init__(self, blocks: list[list[str]], columns: dict[str, int]) -> None:
        source = torch.Generator().manual_seed(9)
        self.blocks = blocks
        self.inputs = {}
        for name, d in columns.items():
            mixing = torch.randn(d, d, generator=source, dtype=torch.float64) / 20
            self.inputs[name] = [
                torch.randn(64, d, generator=source, dtype=torch.float64) @ mixing for _ in range(2)
            ]
            self.inputs[name][0][:, 1] = self.inputs[name][1][:, 1] = 0  # an input that is never active

    def gram(self, weights: dict[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
        result = {}
        for name in names:
            block = next(i for i, block in enumerate(self.blocks) if name in block)
            amount = weights[self.blocks[block - 1][0]].double().sum()
            amount += weights[self.blocks[block][0]].double().sum()
            x = self.inputs[name][0] + amount * self.inputs[name][1]
            result[name] = 2 * x.T @ x / len(x)
        return result


def check_tailor(load: Load = original) -> None:
    module = load("tailor")
    shapes = {
        "projector.linear_1.weight": (7, 6),
        "projector.linear_1.bias": (7,),
        "layers.0.self_attn.q_proj.weight": (9, 11),
        "layers.0.mlp.up_proj.weight": (10, 11),
        "layers.0.input_layernorm.weight": (11,),
        "layers.1.mlp.down_proj.weight": (6, 13),
    }
    blocks = [[name for name in shapes if name.startswith(prefix) and len(shapes[name]) == 2]
              for prefix in ("projector", "layers.0", "layers.1")]  # fmt: skip
    pretrained, finetuned = random_weights(1, shapes)
    calibration = FixedInputs(blocks, {name: shape[1] for name, shape in shapes.items() if len(shape) == 2})
    defaults = module.TailorParams()
    assert (defaults.keep, defaults.salience, defaults.sensitivity) == (0.1, 0.5, 0.5)
    assert (defaults.block, defaults.percdamp, defaults.samples) == (128, 0.01, 128)
    for changed in ({}, {"block": 4, "keep": 0.3}, {"block": 5, "salience": 0.8, "sensitivity": 0.2}):
        params = module.TailorParams(**changed)
        untouched = {name: value.clone() for name, value in finetuned.items()}
        result = module.Tailor(params, 0).finish(finetuned, pretrained, calibration)
        assert all(torch.equal(finetuned[name], untouched[name]) for name in shapes), "argument changed"
        expected = {name: value.double() for name, value in finetuned.items()}
        expected["projector.linear_1.weight"] = pretrained["projector.linear_1.weight"].double()
        for block in blocks[1:]:
            grams = calibration.gram(expected, block)
            for name in block:
                value = tailor.patch(
                    pretrained[name].double().numpy(), finetuned[name].double().numpy(), grams[name].numpy(),
                    params.keep, params.salience, params.sensitivity, params.block, params.percdamp,
                )  # fmt: skip
                expected[name] = torch.from_numpy(value)
        for name in shapes:
            np.testing.assert_allclose(
                result[name].numpy(), expected[name].numpy(), rtol=0, atol=1e-5, err_msg=f"{name} {changed}"
            )


CHECKS = {
    "full_ft": check_full_ft,
    "spider": check_spider,
    "l2_reg": check_l2_reg,
    "grafting": check_grafting,
    "half_ft": check_half_ft,
    "dare": check_dare,
    "tailor": check_tailor,
}
