"""What EWC measures, and on what; exact resume; refusals before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmark import data
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.models import trainable_names
from benchmark.models.batch import Items, collate
from benchmark.spec import MethodSpec
from benchmark.store.keys import keys_of
from benchmark.training import importance
from benchmark.training.callback import MethodCallback
from benchmark.training.checkpoint import snapshot
from methods.ewc import Ewc
from methods.registry import build
from tests.benchmark.store.test_keys import Contents, changed
from tests.benchmark.training.test_replay import spec_of
from tests.benchmark.training.toy_cell import Killed, cell, kill, run, same, stop_at
from tests.reference import ewc

PARAMS = {"strength": 10.0, "samples": 5}


def spec(**changes):
    return replace(cell(**changes), method=MethodSpec("ewc", PARAMS), generic=spec_of("generic"))


def made():
    return build("ewc", PARAMS, 0)


def test_the_importances_are_those_of_the_answers_loss_on_generic_data(loaded, other):
    """Against a plain backward pass of each sample: answer tokens alone, each predicted from the position before it."""
    names = trainable_names(loaded, "last_layers", 2)
    before = snapshot(loaded.model, [name for name, _ in loaded.model.named_parameters()])
    method = made()
    importance.measure(spec(), loaded, method, names)
    assert other == [("generic", "train", 5)]
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None

    items = Items(loaded, data.load(spec_of("generic"), None, "train", 5), supervised=True)
    samples = []
    for index in range(5):
        batch = collate(loaded, [items[index]], "right")
        labels = batch.pop("labels")[0].tolist()
        weights = {name: loaded.model.get_parameter(name).requires_grad_() for name in names}
        log = F.log_softmax(loaded.model(**batch).logits[0].double(), -1)
        answers = [position for position, label in enumerate(labels) if label != -100]
        loss = -torch.stack([log[position - 1, labels[position]] for position in answers]).mean()
        found = torch.autograd.grad(loss, [*weights.values()], allow_unused=True)
        samples.append({
            name: np.zeros(tuple(weights[name].shape)) if gradient is None else gradient.double().numpy()
            for name, gradient in zip(names, found, strict=True)
        })
        loaded.model.requires_grad_(False)
    wanted = ewc.fisher(samples)
    assert method._measured.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(method._measured[name].numpy(), values, rtol=2e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_cell_resumes_exactly_and_keeps_what_it_measured_first(vila, records, tmp_path, other, monkeypatch):
    """Another machine may measure other bits: what was saved counts."""
    whole, rows = run(vila, records, tmp_path / "whole", spec(epochs=3, micro_batch_size=2), made())
    with pytest.raises(Killed):
        run(vila, records, tmp_path / "cut", spec(epochs=3, micro_batch_size=2), made(), on_progress=stop_at(5, kill),
            checkpoint_steps=2)
    measure = Ewc.measure
    monkeypatch.setattr(Ewc, "measure", lambda self, gradients: measure(
        self, [{name: value + 0.1 for name, value in sample.items()} for sample in gradients]
    ))
    seen = []
    delta, resumed = run(vila, records, tmp_path / "cut", spec(epochs=3, micro_batch_size=2), made(),
                         on_progress=lambda step, *_: seen.append(step))
    assert seen == [5, 6, 7, 8, 9] and same(whole, delta) and resumed == rows
    again, _ = run(vila, records, tmp_path / "again", spec(epochs=3, micro_batch_size=2), made())
    assert not same(whole, again)


@pytest.mark.slow
def test_important_weights_move_least(vila, records, tmp_path, other):
    names = trainable_names(vila, "last_layers", 2)
    base, method = snapshot(vila.model, names), made()
    importance.measure(spec(), vila, method, names)
    measured = dict(method._measured)
    free, _ = run(vila, records, tmp_path / "free", cell(epochs=4))
    held, _ = run(vila, records, tmp_path / "held", spec(epochs=4), made())
    name = next(name for name in names if "down_proj" in name)
    order = measured[name].flatten().argsort()
    part = len(order) // 10

    def moved(delta, chosen):
        return (delta[name] - base[name]).flatten()[chosen].square().mean().item()

    few, many = order[:part], order[-part:]
    assert moved(held, many) / moved(free, many) < 0.5 * moved(held, few) / moved(free, few)


def test_without_generic_data_nothing_is_trained(vila, records, tmp_path):
    with pytest.raises(UserError, match="method=ewc needs data that show no source set"):
        run(vila, records, tmp_path, replace(spec(), generic=None), made())
    assert not (tmp_path / "train.jsonl").exists()
    with pytest.raises(UserError, match="method=ewc needs data that show no source set, and this profile has none"):
        request(["method=ewc", "model=vila_pocket", "dataset=coco", "generic=null"])


def test_data_without_a_gradient_are_refused():
    with pytest.raises(UserError, match="EWC cannot tell which weights matter"):
        made().measure([{"a": torch.zeros(3)}, {"a": torch.zeros(3)}])


def test_a_trainer_that_measures_nothing_is_refused():
    with pytest.raises(UserError, match="EWC has no importances"):
        made().start([])
    with pytest.raises(UserError, match="ewc measures importances on data of its own before the first step"):
        MethodCallback("ewc")


def test_the_key_holds_the_samples_that_are_measured_on():
    asked = ["model=vila_pocket", "dataset=iconqa"]
    plain, other_samples = (request(["method=ewc", *asked, *more]).cells[0] for more in ([], ["method.samples=64"]))
    for new, redone in (("generic train", True), ("gqa train", False)):
        assert ("train" in changed(keys_of(plain, Contents()), keys_of(plain, Contents(changed=new)))) == redone
    assert keys_of(plain, Contents()).train != keys_of(other_samples, Contents()).train
    assert request(["method=l2_reg", *asked]).cells[0].generic is None
