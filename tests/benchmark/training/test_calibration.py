"""Calibration measures the inputs of the right layers, without padding, with the given weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmark.training.calibration import Calibration
from methods.tailor import Tailor, TailorParams
from tests.methods import toy


class Scores(torch.nn.Module):
    """A toy model whose outputs are logits over 6 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toy.build()

    def forward(self, **inputs):
        return SimpleNamespace(logits=self.inner(**inputs))


def make(batches: int = 2) -> tuple[toy.Toy, Calibration]:
    model = toy.build()
    data = [toy.batch(index)[0] | {"labels": torch.zeros(1)} for index in range(batches)]
    return model, Calibration(model, data, [name for name, _ in model.named_parameters()])


def test_blocks_are_linear_weights_in_forward_order_projector_first():
    _, calibration = make()
    assert calibration.blocks[0] == ["multi_modal_projector.linear_1.weight"]
    for index, block in enumerate(calibration.blocks[1:]):
        leaves = [name.removeprefix(f"layers.{index}.").removesuffix(".weight") for name in block]
        assert leaves == [f"self_attn.{x}_proj" for x in "qkvo"] + [
            f"mlp.{x}_proj" for x in ("gate", "up", "down")
        ]
    assert len(calibration.blocks) == 3


def test_blocks_without_a_projector():
    model = toy.build()
    names = [name for name, _ in model.named_parameters() if name.startswith("layers.1")]
    assert [len(block) for block in Calibration(model, [], names).blocks] == [7]


def test_gram_is_the_mean_over_samples_of_their_tokens_that_are_not_padding():
    model, calibration = make()
    name = "layers.0.self_attn.q_proj.weight"
    gram = calibration.gram({}, [name])[name]
    rows = []
    for index in range(2):
        inputs, _ = toy.batch(index)
        x = model.layers[0].input_layernorm(model.multi_modal_projector["linear_1"](inputs["inputs"]))
        rows += [x[i, j] for i in range(3) for j in range(5) if inputs["attention_mask"][i, j]]
    x = torch.stack(rows)
    assert len(x) == 28
    torch.testing.assert_close(gram, (2 * x.T @ x / 6).detach(), rtol=0, atol=1e-12)  # two batches of three


def test_the_given_weights_are_used_and_the_model_is_left_alone():
    model, calibration = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    late = "layers.1.mlp.gate_proj.weight"
    changed = {"layers.0.mlp.down_proj.weight": torch.ones(6, 9)}
    base, other = calibration.gram({}, [late])[late], calibration.gram(changed, [late])[late]
    assert not torch.allclose(base, other)
    model.load_state_dict(before | {name: value.double() for name, value in changed.items()})
    torch.testing.assert_close(calibration.gram({}, [late])[late], other, rtol=0, atol=1e-12)
    model.load_state_dict(before)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert calibration.gram(changed, []) == {}


def test_the_gradient_is_that_of_the_mean_loss_at_the_given_weights():
    model, source = Scores(), torch.Generator().manual_seed(3)
    names = [name for name, _ in model.named_parameters() if "layers.1" in name or "unused" in name]
    batches = []
    for index in range(3):
        labels = torch.randint(0, 6, (3, 5), generator=source)
        labels[:, : 2 + index % 2] = -100
        batches.append(toy.batch(index)[0] | {"labels": labels})
    weights = {name: model.get_parameter(name).detach().float() + 0.1 for name in names}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train().requires_grad_(False)
    model.inner.gate.requires_grad_()
    found = Calibration(model, batches, names).gradient(weights)
    assert model.training and [name for name, p in model.named_parameters() if p.requires_grad] == ["inner.gate"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    model.load_state_dict(before | {name: value.double() for name, value in weights.items()})
    model.requires_grad_()
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        scores, losses = model(**inputs).logits.log_softmax(-1), []
        for row, tokens in enumerate(batch["labels"].tolist()):  # what position t predicts is token t + 1
            losses += [-scores[row, t, tokens[t + 1]] for t in range(4) if tokens[t + 1] >= 0]
        (torch.stack(losses).mean() / 3).backward()
    assert list(found) == [name for name, _ in model.named_parameters() if name in weights]
    for name, value in found.items():
        expected = model.get_parameter(name).grad
        torch.testing.assert_close(value, torch.zeros_like(value) if expected is None else expected, rtol=0, atol=1e-6)
    assert any(value.abs().max() > 1e-3 for value in found.values())
    assert not found["inner.unused"].any()


def test_a_layer_with_other_positions_than_the_mask_is_refused():
    model, _ = make()
    data = [{"inputs": torch.zeros(2, 5, 6).double(), "attention_mask": torch.ones(1, 5)}]
    name = "layers.0.mlp.up_proj.weight"
    with pytest.raises(ValueError, match="up_proj"):
        Calibration(model, data, [name]).gram({}, [name])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_tailor_on_a_model():
    """Outputs stay closer to the fine-tuned model's than those of the pretrained one."""
    model, calibration = make(batches=6)
    pretrained = {name: value.detach().clone() for name, value in model.named_parameters()}
    source = torch.Generator().manual_seed(0)
    finetuned = {
        name: value + 0.05 * torch.randn(value.shape, generator=source) for name, value in pretrained.items()
    }
    # The projector returns to w* by definition, so it must not decide this comparison.
    projector = "multi_modal_projector.linear_1.weight"
    finetuned[projector] = pretrained[projector]
    result = Tailor(TailorParams(keep=0.5), 0).finish(finetuned, pretrained, calibration)

    def outputs(weights):
        inputs, _ = toy.batch(50)
        return torch.func.functional_call(
            model, {n: w.double() for n, w in weights.items()}, kwargs=inputs, args=()
        )

    linear = {name for block in calibration.blocks for name in block}
    reset = {name: pretrained[name] if name in linear else value for name, value in finetuned.items()}
    wanted = outputs(finetuned)
    assert (outputs(result) - wanted).square().sum() < (outputs(reset) - wanted).square().sum()
    for name, value in result.items():
        same = torch.equal(value, finetuned[name].float())
        assert same == (name not in linear or name == projector), name
