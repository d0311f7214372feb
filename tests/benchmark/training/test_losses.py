"""Losses against float64 references; scopes, signs and normalisation; the base's logits; what is refused."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmark.config import compose
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.models import trainable_names
from benchmark.models.batch import Items, collate
from benchmark.spec import ROOT, MethodSpec, canonical, cell_id
from benchmark.training.base_weights import BaseWeights
from benchmark.training.checkpoint import snapshot
from benchmark.training.losses import temperature, token_losses
from benchmark.training.objective import Objective, batch_loss, sample_losses, training_batch
from benchmark.training.order import permutation
from benchmark.training.train import train
from methods.registry import build
from tests.benchmark.training.toy_cell import Killed, cell, kill, run, same, stop_at
from tests.reference import losses as reference

# Settings that differ from every default, so that a setting which is ignored is found.
SETTINGS = {
    "lwf": {"lwf_weight": 0.7, "lwf_temperature": 1.7}, "dft": {}, "asft": {"asft_weight": 0.3},
    "eaft": {"eaft_top": 5, "eaft_power": 1.5}, "talr": {"talr_floor": 0.05},
}
LOSSES = ("cross_entropy", *SETTINGS)
TAU = 1.3


def settings(loss):
    return cell(loss=loss, **SETTINGS.get(loss, {})).train


def expected(loss, logits, target, base):
    own = SETTINGS.get(loss, {})
    if loss == "cross_entropy":
        return reference.cross_entropy(logits, target)
    if loss in ("lwf", "asft"):
        values = {"lwf": (own.get("lwf_weight"), own.get("lwf_temperature")), "asft": (own.get("asft_weight"),)}[loss]
        return getattr(reference, loss)(logits, target, base, *values)
    values = {"dft": (), "eaft": (own.get("eaft_top"), own.get("eaft_power")), "talr": (TAU, own.get("talr_floor"))}
    return getattr(reference, loss)(logits, target, *values[loss])


def numbers(tokens=7, words=11, seed=0):
    """Return logits, targets and base logits of a few tokens; the last target is so unlikely that the floor counts."""
    source = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(tokens, words, generator=source, dtype=torch.float64)
    base = 2 * torch.randn(tokens, words, generator=source, dtype=torch.float64)
    targets = torch.randint(words, (tokens,), generator=source)
    logits[-1, targets[-1]] = -9.0
    return logits, targets, base


@pytest.mark.parametrize("loss", LOSSES)
def test_each_token_costs_what_its_formula_says(loss):
    logits, targets, base = numbers()
    found = token_losses(settings(loss), logits, targets, base.float().double(), TAU)
    wanted = [expected(loss, logits[i].numpy(), int(targets[i]), base[i].float().double().numpy()) for i in range(7)]
    assert found.shape == (7,) and found.tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("loss", ["dft", "eaft", "talr"])
def test_weights_of_tokens_are_constants_for_the_gradient(loss):
    logits, targets, _ = numbers()
    given = logits.clone().requires_grad_()
    token_losses(settings(loss), given, targets, None, TAU).sum().backward()
    plain = logits.clone().requires_grad_()
    F.cross_entropy(plain, targets, reduction="sum").backward()
    own = {"dft": {}, "eaft": {"top": 5, "power": 1.5}, "talr": {"tau": TAU, "floor": 0.05}}[loss]
    factors = [reference.weight_of(loss, logits[i].numpy(), int(targets[i]), **own) for i in range(7)]
    torch.testing.assert_close(given.grad, plain.grad * torch.tensor(factors)[:, None], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("loss", "sign"), [("lwf", 1), ("asft", 1)])
def test_the_divergence_pulls_towards_the_base(loss, sign):
    """A step against the gradient of the added term brings the model's distribution nearer to the base's."""
    logits, targets, base = numbers()
    own = settings(loss)
    given = logits.clone().requires_grad_()
    without = replace(own, loss="dft" if loss == "asft" else "cross_entropy")
    (token_losses(own, given, targets, base) - token_losses(without, given, targets)).sum().backward()
    before, after = (
        F.kl_div(F.log_softmax(x, -1), F.softmax(base, -1), reduction="sum")
        for x in (logits, logits - 0.1 * given.grad)
    )
    assert sign * (before - after) > 0
    assert torch.all(token_losses(own, base.float(), targets, base) == token_losses(without, base.float(), targets))


def test_a_small_vocabulary_counts_whole_in_the_entropy():
    own = replace(settings("eaft"), eaft_top=20)
    assert torch.allclose(
        token_losses(own, torch.zeros(1, 4), torch.tensor([2])), torch.tensor([math.log(4)])
    )  # the entropy is the largest, so the weight is 1


def test_tau_is_the_median_of_the_samples_mean_losses():
    assert temperature([3.0, 1.0, 8.0]) == 3.0 and temperature([4.0, 1.0, 2.0, 9.0]) == 3.0
    assert temperature([0.0, 0.0]) == 1e-6


# ---- within a batch


def batch_of(loaded, records, micro=None):
    items = Items(loaded, records, supervised=True)
    pairs = [(items[i], 0.1 + 0.05 * i) for i in range(len(records))]
    batch = training_batch(loaded, pairs[:micro])
    del batch["item_ids"]
    return items, pairs, batch


def by_hand(loaded, items, index, loss, tau, base_model=None):
    """Return the losses of the supervised tokens of an item from a plain pass, by the reference, with the base's."""
    batch = collate(loaded, [items[index]], "right")
    labels = batch.pop("labels")[0]
    logits = loaded.model(**batch).logits[0].detach().double().numpy()
    base = logits if base_model is None else base_model[index]
    own = SETTINGS.get(loss, {})
    found = []
    for position in range(len(labels) - 1):
        if labels[position + 1] == -100:  # the prompt, the image and padding
            continue
        row, target = logits[position], int(labels[position + 1])
        if loss == "talr":
            found.append(reference.talr(row, target, tau, own["talr_floor"]))
        else:
            found.append(expected(loss, row, target, base[position]))
    return found


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_counts_answers_alone_and_every_token_once(loaded, records, loss):
    """Padding, prompt and image positions cost nothing; each answer token is compared with the base at its position."""
    names = trainable_names(loaded, "last_layers", 2)
    base = snapshot(loaded.model, names)
    items, pairs, batch = batch_of(loaded, records[:5])
    bases = {}
    for index in range(5):
        inputs = collate(loaded, [items[index]], "right")
        inputs.pop("labels")
        with torch.no_grad():
            bases[index] = loaded.model(**inputs).logits[0].double().numpy()
    trained = {name: loaded.model.get_parameter(name) for name in names}
    source = torch.Generator().manual_seed(1)
    for parameter in trained.values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=source)
    objective = Objective(settings(loss), BaseWeights(trained, base), tau=TAU)
    with torch.no_grad():
        found, _ = batch_loss(loaded.model, batch, False, objective)
    wanted = sum(
        weight * sum(by_hand(loaded, items, index, loss, TAU, bases)) for index, (_, weight) in enumerate(pairs)
    )
    assert found.item() == pytest.approx(wanted, rel=2e-4)


def test_cross_entropy_has_the_same_bits_as_without_an_objective(loaded, records):
    _, _, batch = batch_of(loaded, records)
    plain, outputs = batch_loss(loaded.model, batch, False)
    given, _ = batch_loss(loaded.model, batch, False, Objective(settings("cross_entropy")))
    chosen = batch["weights"] > 0
    losses = F.cross_entropy(outputs.logits[chosen].float(), batch["targets"][chosen], reduction="none")
    assert torch.equal(plain, given) and torch.equal(plain, (losses * batch["weights"][chosen]).sum())


def test_samples_of_weight_0_are_not_in_the_median(loaded, records):
    items = Items(loaded, records, supervised=True)
    batch = training_batch(loaded, [(items[0], 0.3), (items[1], 0.0), (items[4], 0.1)])
    del batch["item_ids"]
    found = sample_losses(loaded.model, batch, False)
    wanted = [np.mean(by_hand(loaded, items, index, "cross_entropy", 0)) for index in (0, 4)]
    assert found == pytest.approx(wanted, rel=1e-4)


# ---- the base's weights


def test_the_base_takes_the_place_of_trained_weights_and_leaves_it(vila, records):
    names = trainable_names(vila, "last_layers", 2)
    base = snapshot(vila.model, names)
    _, _, batch = batch_of(vila, records)
    untuned = batch_loss(vila.model, batch, False)[1].logits
    trained = {name: vila.model.get_parameter(name) for name in names}
    for parameter in trained.values():
        parameter.data = parameter.data * 1.5
    weights = BaseWeights(trained, base)
    tuned = {name: parameter.detach().clone() for name, parameter in trained.items()}
    places = {name: parameter.data_ptr() for name, parameter in trained.items()}
    with pytest.raises(KeyboardInterrupt), weights.in_place(vila.model):  # as a signal may do
        assert torch.equal(batch_loss(vila.model, batch, False)[1].logits, untuned)
        assert not torch.is_grad_enabled()
        raise KeyboardInterrupt
    assert all(torch.equal(parameter, tuned[name]) for name, parameter in trained.items())
    assert places == {name: parameter.data_ptr() for name, parameter in trained.items()}  # no copy
    assert not torch.equal(batch_loss(vila.model, batch, False)[1].logits, untuned)


def test_a_base_value_that_was_freed_is_refused(vila):
    names = trainable_names(vila, "last_layers", 1)
    base = snapshot(vila.model, names)
    trained = {name: vila.model.get_parameter(name) for name in names}
    gone = {**base, names[0]: torch.empty(0)}
    for pretrained in (gone, {name: value for name, value in base.items() if name != names[0]}):
        with pytest.raises(UserError, match=f"the base value of {names[0]} has been freed"):
            BaseWeights(trained, pretrained)


# ---- training


@pytest.mark.slow
@pytest.mark.parametrize("loss", SETTINGS)
def test_the_first_step_is_that_of_the_formula(vila, records, tmp_path, loss):
    """At w* the divergence is 0, so the logged loss follows from the reference; micro-batches do not matter."""
    items = Items(vila, records, supervised=True)
    order = permutation(0, 0, len(records))[:4]
    means = [np.mean(by_hand(vila, items, i, "cross_entropy", 0)) for i in order]
    tau = float(np.median(means))
    groups = [order[:2], order[2:]]
    wanted = np.mean([np.mean(sum((by_hand(vila, items, i, loss, tau) for i in group), [])) for group in groups])
    for micro in (4, 1):
        spec = cell(loss=loss, micro_batch_size=micro, **SETTINGS[loss])
        _, rows = run(vila, records, tmp_path / str(micro), spec)
        assert rows[0]["loss"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "method", "params"), [
    ("lwf", "spider", {}), ("dft", "half_ft", {}), ("asft", "lora", {"r": 4}), ("lwf", "pissa", {"r": 4}),
    ("eaft", "l2_reg", {}), ("talr", "oft", {"oft_block_size": 4}),
])
def test_a_loss_composes_with_a_method_and_resumes_exactly(vila, records, tmp_path, loss, method, params):
    spec = replace(cell(loss=loss, micro_batch_size=2), method=MethodSpec(method, params))

    def made():
        return build(method, params, 0)

    whole, rows = run(vila, records, tmp_path / "whole", spec, made())
    plain, other = run(vila, records, tmp_path / "plain", replace(spec, train=cell(micro_batch_size=2).train), made())
    assert len(rows) == len(other) == 6 and not same(whole, plain)
    with pytest.raises(Killed):
        run(vila, records, tmp_path / "cut", spec, made(), on_progress=stop_at(5, kill), checkpoint_steps=2)
    again, resumed = run(vila, records, tmp_path / "cut", spec, made())
    assert same(whole, again) and resumed == rows


@pytest.mark.slow
def test_a_strong_divergence_keeps_the_model_at_its_base(vila, records, tmp_path):
    _, free = run(vila, records, tmp_path / "free", cell(epochs=4))
    _, held = run(vila, records, tmp_path / "held", cell(epochs=4, loss="lwf", lwf_weight=100.0))
    assert free[-1]["loss"] < 0.9 * free[0]["loss"] and held[0]["loss"] == pytest.approx(free[0]["loss"])
    assert held[-1]["rms_delta"] < free[-1]["rms_delta"]


@pytest.mark.slow
def test_in_bfloat16_the_divergence_is_0_at_the_base(vila, records, tmp_path):
    vila.model.to(torch.bfloat16)
    try:
        spec = cell(dtype="bfloat16", epochs=1, learning_rate=1e-9, projector_learning_rate=1e-9)
        _, plain = run(vila, records, tmp_path / "a", spec)
        spec = replace(spec, train=replace(spec.train, loss="lwf", lwf_weight=1e3))
        _, rows = run(vila, records, tmp_path / "b", spec)
        assert rows[0]["loss"] == plain[0]["loss"]
    finally:
        vila.model.to(torch.float32)


class Prepared:
    """As much of a worker as a bench asks for."""

    def __init__(self, loaded, records):
        self.loaded, self.records = loaded, records

    def _load(self, cell):
        return self.loaded

    def training_records(self, cell):
        return self.records


@pytest.mark.parametrize("loss", ["cross_entropy", "lwf", "talr"])
def test_what_a_method_costs_is_measured_with_the_loss(vila, records, loss, monkeypatch):
    from benchmark.running import method_cost

    spec, passes = cell(loss=loss, micro_batch_size=2), []
    forward = vila.model.forward
    monkeypatch.setattr(vila.model, "forward", lambda *given, **named: passes.append(1) or forward(*given, **named))
    base = snapshot(vila.model, trainable_names(vila, "last_layers", 2))
    bench = method_cost.Bench(spec, Prepared(vila, records))
    list(bench.steps(spec, build("full_ft", {}, 0), 1))
    plain = 2 * 2  # of two micro-batches: the tokens that all samples begin with, and the rest
    assert len(passes) == plain * (1 if loss == "cross_entropy" else 2)
    assert all(torch.equal(vila.model.get_parameter(name), value) for name, value in base.items())
    assert ("loss" in method_cost._code(spec)) == (loss != "cross_entropy")


def test_what_a_part_of_the_weights_costs_is_measured_on_that_part(vila, records):
    from benchmark.running import method_cost

    whole, part = cell(), cell(scope="attention", projector="frozen")
    bench = method_cost.Bench(whole, Prepared(vila, records))
    names = trainable_names(vila, "last_layers", 2)
    sizes = {name: vila.model.get_parameter(name).numel() for name in names}
    attention = sum(size for name, size in sizes.items() if re.search(r"\.[qkvo]_proj\.", name))
    found = bench.bytes_of(part)
    assert bench.bytes_of(whole)["trained"] == 1 and 0 < attention < sum(sizes.values())
    assert found["trained"] == pytest.approx(attention / sum(sizes.values()))
    plain, other = (method_cost._code(one) for one in (whole, part))
    assert other == f"{plain}, scope attention, projector frozen" and "scope" not in plain


# ---- configuration


def test_a_cell_with_the_default_loss_keeps_its_form():
    assert not {"loss", *(name for own in SETTINGS.values() for name in own)} & set(canonical(cell().train))
    ours = request(["method=spider", "model=vila_pocket", "dataset=iconqa"]).cells[0]
    given = request(["method=spider", "model=vila_pocket", "dataset=iconqa", "train.loss=cross_entropy"]).cells[0]
    assert cell_id(ours) == cell_id(given) == "vila_pocket-iconqa-spider-s0-" + ours.digits


def test_settings_of_another_loss_are_in_no_name():
    asked = ["method=spider", "model=vila_pocket", "dataset=iconqa", "train.loss=lwf,dft", "train.lwf_weight=0.1,0.2"]
    ids = [cell_id(one) for one in request(asked).cells]
    assert len(set(ids)) == 3 and any("loss_lwf-lwf_weight0.1" in name for name in ids), ids


def test_the_document_lists_every_loss_with_its_defaults():
    text = (ROOT / "docs" / "methods.md").read_text()
    for loss in LOSSES:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {loss} | ")]
        for name in SETTINGS.get(loss, {}):
            assert f"`{name}` {getattr(cell().train, name):g}" in row, name


@pytest.mark.parametrize(("overrides", "text"), [
    (["train.loss=lvf"], "train.loss=lvf: unknown value. Did you mean 'lwf'"),
    (["train.loss=kl"], "train.loss=kl: unknown value"),
    (["train.lwf_weight=2"], "train.lwf_weight: it belongs to train.loss=lwf, which no cell of this request has"),
    (["train.loss=dft", "train.eaft_top=5"], "train.eaft_top: it belongs to train.loss=eaft"),
    (["train.loss=eaft", "train.eaft_top=1"], "train.eaft_top=1: must be at least 2"),
    (["train.loss=lwf", "train.lwf_temperature=0"], "train.lwf_temperature=0.0: must be more than 0"),
    (["train.loss=talr", "train.talr_floor=2"], "train.talr_floor=2.0: must be at most 1"),
])
def test_what_no_training_can_use_is_refused_before_it_starts(overrides, text):
    with pytest.raises(UserError) as error:
        request(["method=full_ft", "model=vila_pocket", "dataset=iconqa", *overrides])
    assert text in str(error.value)


def test_an_engine_that_frees_the_base_is_refused_before_it_starts(monkeypatch):
    """Only a file in conf/engine can set this, so the composed configuration is changed here."""
    usual = compose.composed

    def quantised(groups):
        config = copy.deepcopy(usual(groups))
        config["engine"].setdefault("zero_optimization", {})["zero_quantized_weights"] = True
        return config

    asked = ["method=full_ft", "model=vila_pocket", "dataset=iconqa", "engine=zero3"]
    monkeypatch.setattr(compose, "composed", quantised)
    request([*asked, "train.loss=dft"])
    with pytest.raises(UserError, match="compares with the base model, whose weights engine.zero_optimization.zero_q"):
        request([*asked, "train.loss=asft"])


@pytest.mark.parametrize("method", ["prefix", "prompt_tuning"])
@pytest.mark.parametrize("loss", ["lwf", "asft"])
def test_a_method_that_does_not_start_as_the_base_is_refused_before_it_starts(method, loss):
    """Their virtual tokens have keys and values from the start, so the adapter's initial state is not the base."""
    asked = [f"method={method}", "model=vila_pocket", "dataset=iconqa"]
    request([*asked, "train.loss=talr"])
    with pytest.raises(UserError, match=f"train.loss={loss} compares with the base model, but method={method} changes"):
        request([*asked, f"train.loss={loss}"])
    request(["method=houlsby", *asked[1:], f"train.loss={loss}"])


def test_a_training_checks_the_engine_itself(vila, records, tmp_path):
    spec = replace(cell(loss="lwf"), engine="zero3", zero_optimization={"stage": 3, "zero_quantized_weights": True})
    with pytest.raises(UserError, match="frees and keeps only in 8 bits"):
        train(spec, vila, records, build("full_ft", {}, 0), tmp_path)
    assert not (tmp_path / "train.jsonl").exists()
