"""Our variants against figures from the released code, see tests/reference/released.json for the sources."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmark.training.attach import attach
from benchmark.training.calibration import Calibration
from benchmark.training.sensitivity import sensitivities
from methods import ops
from methods.registry import build
from tests.reference import tailor

RELEASED = json.loads((Path(__file__).parents[1] / "reference" / "released.json").read_text())
SHAPES = {
    "projector.weight": (24, 16),
    "layers.0.mlp.up_proj.weight": (40, 32),
    "layers.0.input_layernorm.weight": (33,),
}
Arrays = dict[str, np.ndarray]


def normal(source: np.random.RandomState, scale: float = 1.0) -> Arrays:
    return {
        name: (scale * source.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()
    }


def tensors(values: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()) for name, value in values.items()}


def check(method: str, values: Arrays, selected: Arrays | None, tolerance: float = 2e-6) -> None:
    """Compare with every figure of a method."""
    for name, expected in RELEASED[method]["tensors"].items():
        flat = values[name].astype(np.float64).ravel()
        at = np.linspace(0, flat.size - 1, 6).astype(int)
        np.testing.assert_allclose(flat[at], expected["values"], rtol=0, atol=tolerance, err_msg=name)
        for figure, value in (("sum", flat.sum()), ("absolute_sum", np.abs(flat).sum())):
            np.testing.assert_allclose(
                value, expected[figure], rtol=0, atol=tolerance * flat.size, err_msg=figure
            )
        if selected is not None:
            bits = selected[name].astype(bool).ravel()
            assert bits.sum() == expected["selected"], name
            assert hashlib.sha256(np.packbits(bits).tobytes()).hexdigest() == expected["mask_sha256"], name


def trained(method: str, seed: int) -> tuple[Arrays, Arrays]:
    """Run a method on given gradients; return the weights and what the last mask selects."""
    source = np.random.RandomState(seed)
    pretrained, drift = normal(source), normal(source, 0.5)
    gradients = [
        {name: drift[name] + noise[name] for name in SHAPES} for noise in [normal(source) for _ in range(6)]
    ]
    named = {name: torch.nn.Parameter(value) for name, value in tensors(pretrained).items()}
    optimizer = torch.optim.AdamW(named.values(), lr=0.01, weight_decay=0.0)
    built = build(method, {}, seed=0)
    attachment = attach(optimizer, named, tensors(pretrained), built)
    for gradient in gradients:
        for name, value in tensors(gradient).items():
            named[name].grad = value
        optimizer.step()
    attachment.diagnostics()
    selected = {shard.name: (built.mask(shard) != 0).numpy() for shard in attachment.shards}
    return {name: value.detach().numpy() for name, value in named.items()}, selected


@pytest.mark.parametrize("method", ["spider_code", "spider_lag", "spider_magnitude"])
def test_training_methods_equal_the_released_trainers(method):
    check(method, *trained(method, RELEASED[method]["seed"]))


@pytest.mark.parametrize("method", ["spider", "spider_lag", "spider_abs"])
def test_the_figures_tell_variants_apart(method):
    with pytest.raises(AssertionError):
        check("spider_code", *trained(method, RELEASED["spider_code"]["seed"]))


@pytest.mark.parametrize("method", ["l2_reg_mean", "grafting_mean"])
def test_mean_penalties_equal_the_released_gradients(method):
    source = np.random.RandomState(RELEASED[method]["seed"])
    pretrained = {name: value.bfloat16().float() for name, value in tensors(normal(source)).items()}
    change = tensors(normal(source, 0.01))
    named = {name: torch.nn.Parameter(pretrained[name] + change[name]) for name in SHAPES}
    optimizer = torch.optim.SGD(named.values(), lr=0.0)
    attach(optimizer, named, pretrained, build(method, {}, seed=0))
    optimizer.step()
    gradients = {name: value.grad.numpy() for name, value in named.items()}
    largest = max(np.abs(value).max() for value in gradients.values())
    check(method, gradients, None, tolerance=1e-6 * largest)


@pytest.mark.parametrize("method", ["dare", "dare_drop_only", "dare_magnitude"])
def test_dare_equals_mergelm(method):
    """MergeLM draws from the global stream, so its draw is a figure, and the rest is compared."""
    source = np.random.RandomState(RELEASED[method]["seed"])
    pretrained = normal(source)
    finetuned = {name: pretrained[name] + change for name, change in normal(source, 0.1).items()}
    before, after = tensors(pretrained), tensors(finetuned)
    if method == "dare_magnitude":
        result = build(method, {}, seed=0).finish(after, before)
    else:
        result = {}
        for name, shape in SHAPES.items():
            stored = np.frombuffer(bytes.fromhex(RELEASED[method]["tensors"][name]["kept_bits"]), np.uint8)
            kept = torch.from_numpy(np.unpackbits(stored, count=after[name].numel()).astype(bool)).view(shape)
            params = build(method, {}, seed=0).params
            divisor = params.keep if params.rescale else 1.0
            result[name] = ops.drop_and_rescale(before[name], after[name], kept, divisor)
    values = {name: value.numpy() for name, value in result.items()}
    check(method, values, {name: values[name] != pretrained[name] for name in SHAPES})


@pytest.mark.parametrize(("figures", "changed"), [
    ("tailor_official", {}), ("tailor_second", {"salience": 0.5, "sensitivity": 0.5}),
])
def test_tailor_equals_the_released_surgery(figures, changed):
    source = np.random.RandomState(RELEASED[figures]["seed"])
    rows, columns, name = 20, 300, "layers.0.mlp.up_proj.weight"
    pretrained = source.standard_normal((rows, columns)).astype(np.float32)
    finetuned = (pretrained + 0.1 * source.standard_normal((rows, columns))).astype(np.float32)
    mixing = source.standard_normal((columns, columns)) / columns**0.5
    batches = [(source.standard_normal((2, 90, columns)) @ mixing).astype(np.float32) for _ in range(5)]
    inputs = torch.from_numpy(np.concatenate(batches).reshape(-1, columns)).double()

    class Given:
        blocks = [[name]]

        def gram(self, weights, names):
            return {name: 2 * inputs.T @ inputs}

    method = build("tailor_official", changed, seed=0)
    result = method.finish({name: torch.from_numpy(finetuned)}, {name: torch.from_numpy(pretrained)}, Given())
    value = result[name].numpy()
    # float32 surgery over 300 columns there, float64 here.
    check(figures, {"w": value}, {"w": value != pretrained}, tolerance=2e-3)
    assert np.abs(value - finetuned).max() > 0.5, (
        "the added errors are large: a tolerance of 2e-3 tells signs apart"
    )


class Alone(torch.nn.Module):
    """One linear layer under a real name; its input is the batch's."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        mlp = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(columns, rows, bias=False)})
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"mlp": mlp})]).double()

    def forward(self, inputs: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.layers[0]["mlp"]["up_proj"](inputs)


def test_tailor_with_dead_inputs_equals_the_released_surgery():
    """A dead input's diagonal becomes 1, so the scale of the others counts: per sample, not per token."""
    source, name, (rows, columns) = np.random.RandomState(0), "layers.0.mlp.up_proj.weight", (8, 24)
    for _ in range(60):
        dead, mixing = source.rand(columns) < 0.25, source.standard_normal((columns, columns))
        batches = [source.standard_normal((source.randint(1, 4), 30, columns)) @ mixing for _ in range(3)]
        batches = [batch * ~dead * 10 ** source.uniform(-2, 0) for batch in batches]
        pretrained = source.standard_normal((rows, columns))
        finetuned = pretrained + 0.1 * source.standard_normal((rows, columns))
        expected, kept = tailor.released(pretrained, finetuned, batches, 0.1, 8, 0.01)
        inputs = [
            {"inputs": torch.from_numpy(batch), "attention_mask": torch.ones(batch.shape[:2])} for batch in batches
        ]
        result = build("tailor_official", {"block": 8}, seed=0).finish(
            {name: torch.from_numpy(finetuned)}, {name: torch.from_numpy(pretrained)},
            Calibration(Alone(rows, columns), inputs, [name]),
        )[name].numpy()
        assert ((result != pretrained.astype(np.float32)) == kept).all()
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


class Residual(torch.nn.Module):
    """Two blocks x + down(tanh(up(x))) over a table of tokens, and one logit: the model of model_dowser's figures."""

    def __init__(self, source: np.random.RandomState) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({
                "up_proj": torch.nn.Linear(24, 40, bias=False), "down_proj": torch.nn.Linear(40, 24, bias=False),
            })}) for _ in range(2)
        )
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.from_numpy((0.3 * source.standard_normal(weight.shape)).astype(np.float32)))
        self.table = torch.from_numpy(source.standard_normal((5, 24)).astype(np.float32))
        self.head = torch.from_numpy(source.standard_normal((24, 1)).astype(np.float32))

    def forward(self, tokens: torch.Tensor) -> SimpleNamespace:
        x = self.table[tokens]
        for layer in self.layers:
            x = x + layer["mlp"]["down_proj"](torch.tanh(layer["mlp"]["up_proj"](x)))
        return SimpleNamespace(logits=x @ self.head)


def test_model_dowser_equals_the_released_importances_and_mask():
    model = Residual(np.random.RandomState(RELEASED["model_dowser"]["seed"]))
    names = [name for name, _ in model.named_parameters()]
    # A token predicts the one after it, which has no slope: of two tokens, the mean is half of the first's value.
    batches = [{"tokens": torch.tensor([[i, i]]), "labels": torch.tensor([[-100, 0]])} for i in range(5)]
    samples = list(sensitivities(model, batches, names, probes=2, seed=0))
    pretrained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    importances = {
        name: (value.abs() * sum(2 * sample[name] for sample in samples) / len(samples)).numpy()
        for name, value in pretrained.items()
    }
    built = build("model_dowser", {}, seed=0)
    built.measure(samples)
    optimizer = torch.optim.SGD(model.requires_grad_().parameters(), lr=0.1)
    attachment = attach(optimizer, dict(model.named_parameters()), pretrained, built)
    check("model_dowser", importances, {shard.name: built.mask(shard).numpy() for shard in attachment.shards})
