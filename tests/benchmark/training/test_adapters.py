"""Adapters in the trainer: exact resume, an ordinary delta, a model that is as before."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmark.core.errors import UserError
from benchmark.models import trainable_names
from benchmark.models.batch import Items, collate
from benchmark.spec import DatasetSpec, MethodSpec
from benchmark.store import cell_measures
from benchmark.training.adapters import Adapter, adapted_layers, projector_layers
from benchmark.training.checkpoint import apply_delta, save_delta, snapshot
from benchmark.training.generate import answer_batch
from benchmark.training.tuned import tuned as tuned_weights
from methods import houlsby, prefix
from methods.adapter import FILE
from methods.peft import LoraParams
from methods.registry import build
from tests.benchmark.training.toy_cell import Killed, cell, kill, run, same, stop_at

SMALL = {
    "lora": {"r": 4}, "dora": {"r": 4}, "pissa": {"r": 4}, "osf": {}, "shira_gradient": {"r": 2, "samples": 3},
    "lorasculpt": {"r": 4, "prune_after": 4}, "lorasculpt_code": {"r": 4, "prune_after": 4}, "oplora": {"r": 2, "k": 4},
    "houlsby": {"size": 4}, "prefix": {"tokens": 3}, "prompt_tuning": {"tokens": 3},
}


def adapted(method, **changes):
    """Return a cell of a method with an adapter that fits the small model."""
    return replace(cell(**changes), method=MethodSpec(method, SMALL[method]))


def tuned(loaded, records, out, spec, **options):
    return run(loaded, records, out, spec, build(spec.method.id, dict(spec.method.params), spec.seed), **options)


@pytest.mark.slow
@pytest.mark.parametrize("method", SMALL)
def test_resume_is_bitwise_exact(vila, records, tmp_path, method):
    spec = adapted(method, epochs=3, micro_batch_size=2)
    whole, rows = tuned(vila, records, tmp_path / "whole", spec)
    for step in (5, 8):  # lorasculpt prunes after step 4
        with pytest.raises(Killed):
            tuned(vila, records, tmp_path / "cut", spec, on_progress=stop_at(step, kill), checkpoint_steps=2)
    seen = []
    delta, resumed = tuned(vila, records, tmp_path / "cut", spec, on_progress=lambda step, *_: seen.append(step))
    assert seen == [7, 8, 9]
    assert same(whole, delta) and resumed == rows


@pytest.mark.slow
def test_a_cell_ends_as_an_ordinary_delta_and_leaves_the_model_as_it_was(loaded, records, tmp_path):
    everything = [name for name, _ in loaded.model.named_parameters()]
    kinds = [type(module) for module in loaded.model.modules()]
    before = snapshot(loaded.model, everything)
    names = trainable_names(loaded, "last_layers", 1)
    delta, rows = tuned(loaded, records, tmp_path / "lora", adapted("lora", epochs=6, last_layers=1))
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert set(delta) == {name for name in names if "norm" not in name or name.startswith(loaded.projector_prefix)}
    assert [name for name, _ in loaded.model.named_parameters()] == everything
    assert [type(module) for module in loaded.model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in snapshot(loaded.model, everything).items())
    for name, value in delta.items():
        if not name.startswith(loaded.projector_prefix):
            change = value.double() - before[name].double()
            values = torch.linalg.svdvals(change)
            assert values[3] > 1e-4 and values[4:].max() < 1e-6, name
    assert "rms_delta" not in rows[-1] and 0 < rows[-1]["trained_share"] < 1 and rows[-1]["rms_adapter"] > 0


@pytest.fixture
def narrow(monkeypatch):
    """The projector's LoRA with a rank below its layers'."""
    monkeypatch.setattr("benchmark.training.adapters.PROJECTOR", LoraParams(r=2, lora_alpha=4))


def low_rank(delta, before, names):
    """Return the names of matrices whose change has rank 2."""
    found = set()
    for name in names:
        values = torch.linalg.svdvals(delta[name].double() - before[name].double())
        assert values[1] > 1e-5, name
        if len(values) > 2 and values[2:].max() < 1e-6:
            found.add(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full_ft", "spider", "lora", "houlsby", "prefix", "oft"])
def test_the_projector_trains_through_a_lora_beside_any_method(loaded, records, tmp_path, narrow, method):
    everything = [name for name, _ in loaded.model.named_parameters()]
    kinds, before = [type(module) for module in loaded.model.modules()], snapshot(loaded.model, everything)
    params = SMALL.get(method, {"oft_block_size": 2} if method == "oft" else {})
    spec = replace(cell(epochs=3, last_layers=1, projector="lora"), method=MethodSpec(method, params))
    built, seen = build(method, dict(params), 0), set()
    start = built.start
    built.start = lambda shards: (seen.update(shard.name for shard in shards), start(shards))[1]
    delta, rows = run(loaded, records, tmp_path, spec, built)
    projector = {name for name in delta if name.startswith(loaded.projector_prefix)}
    layers = {f"{path}.weight" for path in projector_layers(loaded, everything)}
    assert projector == layers == low_rank(delta, before, layers)  # no bias, no norm
    blocks = set(delta) - projector
    if method in ("full_ft", "spider"):
        assert not any("lora" in name for name in seen) and not seen & projector
        assert blocks <= seen and not low_rank(delta, before, {name for name in blocks if before[name].dim() == 2})
        assert "rms_adapter" not in rows[-1] and "trained_share" not in rows[-1] and "restored_fraction" not in rows[-1]
    else:
        assert rows[-1]["trained_share"] < 1
    if method == "houlsby":
        assert len(blocks) == 8 and not blocks & set(everything)
    assert [type(module) for module in loaded.model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in snapshot(loaded.model, everything).items())


@pytest.mark.slow
def test_the_projectors_lora_has_the_projectors_rate(vila, records, tmp_path, narrow):
    spec = cell(epochs=1, projector="lora")
    slow, fast = (run(vila, records, tmp_path / name, replace(spec, train=replace(
        spec.train, projector_learning_rate=rate))) for name, rate in (("a", 1e-5), ("b", 1e-2)))
    base = dict(vila.model.named_parameters())
    moved = [
        {name: float((delta[name] - base[name]).norm()) for name in delta} for delta, _ in (slow, fast)
    ]
    layers = [name for name in moved[0] if name.startswith(vila.projector_prefix)]
    assert layers and all(moved[1][name] > 100 * moved[0][name] for name in layers)
    assert all(moved[1][name] < 2 * moved[0][name] for name in moved[0] if name not in layers)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spider", "lorasculpt", "houlsby"])
def test_a_projectors_lora_resumes_exactly(vila, records, tmp_path, narrow, method):
    params = SMALL.get(method, {})
    spec = replace(cell(epochs=3, projector="lora"), method=MethodSpec(method, params))
    whole, rows = tuned(vila, records, tmp_path / "whole", spec)
    with pytest.raises(Killed):
        tuned(vila, records, tmp_path / "cut", spec, on_progress=stop_at(5, kill), checkpoint_steps=2)
    again, resumed = tuned(vila, records, tmp_path / "cut", spec)
    assert same(whole, again) and rows == resumed


@pytest.mark.parametrize(("scope", "words"), [("llm", "freezes the projector"), ("projector", None)])
def test_a_scope_and_a_projectors_lora(scope, words):
    from benchmark.models.scope import fault_of

    fault = fault_of(scope, "lora")
    assert fault is None if words is None else words in fault


def test_a_projector_that_is_too_narrow_for_its_lora_is_named(vila, records, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmark.training.adapters.PROJECTOR", LoraParams(r=500))
    with pytest.raises(UserError, match=r"projector.*r=500 is above the layer's rank"):
        run(vila, records, tmp_path, cell(projector="lora"))


@pytest.mark.slow
@pytest.mark.parametrize(("module", "tensors", "rate"), [(houlsby, 8, 0.1), (prefix, 2, 0.3)])
def test_an_adapter_that_cannot_be_merged_comes_back_for_answers_and_goes_again(
    loaded, records, tmp_path, module, tensors, rate,
):
    everything = [name for name, _ in loaded.model.named_parameters()]
    before, seen = snapshot(loaded.model, everything), {}

    def look(*_):  # the trained model, in the last step of training
        seen.update({name: value.detach().clone() for name, value in loaded.model.named_parameters()})

    spec = adapted(module.__name__.partition(".")[2], epochs=6, last_layers=1, learning_rate=rate)
    delta, rows = tuned(loaded, records, tmp_path, spec, on_progress=look)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"] and 0 < rows[-1]["trained_share"] < 1
    added = set(delta) - set(everything)
    block = loaded.block_prefixes[-1]
    assert len(added) == tensors and all(name.startswith(block) for name in added)
    assert all(name.startswith(loaded.projector_prefix) for name in set(delta) - added)
    assert all(torch.equal(delta[name], seen[name]) for name in delta)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(loaded.model, everything).items())
    items = [Items(loaded, records, supervised=False)[number] for number in range(4)]
    batch = collate(loaded, items[:1], "left")
    batch.pop("labels")
    plain = [answer_batch(loaded, [item], 6)[0] for item in items]
    with torch.no_grad(), tuned_weights(spec, loaded, tmp_path):
        assert {name for name, _ in loaded.model.named_parameters()} >= set(delta)
        answering = snapshot(loaded.model, delta)
        assert all(torch.equal(answering[name], delta[name]) for name in delta)
        found = loaded.model(**batch).logits
        # In one batch, padded and with the start of the prompt run once, or each alone.
        answers = [answer_batch(loaded, [item], 6)[0] for item in items]
        assert answer_batch(loaded, items, 6) == answers != plain
    assert [name for name, _ in loaded.model.named_parameters()] == everything
    apply_delta(loaded.model, before)
    with torch.no_grad():
        assert (loaded.model(**batch).logits - found).abs().max() > 1e-3
    # The same, by the loader that an export names.
    apart = tmp_path / "apart"
    apart.mkdir()
    save_file(delta, apart / FILE)
    other = copy.deepcopy(loaded.model)
    with torch.no_grad():
        assert torch.equal(module.load(other, apart)(**batch).logits, found)
    with pytest.raises(ValueError, match="no adapter for this model"):
        module.load(torch.nn.Linear(2, 2), apart)


@pytest.mark.slow
def test_a_cell_without_its_adapter_is_named(vila, records, tmp_path):
    spec = adapted("houlsby", epochs=1)
    delta, _ = tuned(vila, records, tmp_path, spec)
    name = next(name for name in delta if name.endswith("up.weight"))
    base = snapshot(vila.model, [n for n, _ in vila.model.named_parameters()])
    rest = {key: value for key, value in delta.items() if key != name}
    save_delta(tmp_path / "delta.safetensors", rest, {**rest, **dict.fromkeys(rest, torch.tensor(torch.nan))}, rest,
               vila.digest)
    with pytest.raises(UserError, match=f"lacks {name}"), tuned_weights(spec, vila, tmp_path):
        pass
    assert all(torch.equal(value, base[key]) for key, value in vila.model.named_parameters())


@pytest.mark.parametrize("method", ["ia3", "lora", "oft", "ln_tuning"])
def test_a_scope_without_a_bias_that_the_adapter_changes_is_refused(loaded, method):
    """IA3 rescales the outputs of a layer with its bias; a scope of weights alone would lose that without a word."""
    norm = method == "ln_tuning"
    name = "input_layernorm" if norm else "self_attn.k_proj"
    path = f"{loaded.block_prefixes[-1]}{name}"
    kinds = [type(module) for module in loaded.model.modules()]
    layer = loaded.model.get_submodule(path)
    sizes = {"lora": {"r": 2}, "oft": {"oft_block_size": 2}}
    built = build(method, {"targets": re.escape(name)} | sizes.get(method, {}), 0)
    layer.bias = torch.nn.Parameter(torch.zeros(len(layer.weight)))
    try:
        names = [f"{path}.weight"]
        assert adapted_layers(loaded, names, built) == [path]
        if method in ("ia3", "ln_tuning"):
            with pytest.raises(UserError, match=r"trains \S+.weight without \S+.bias, which this adapter changes too"):
                Adapter(loaded, [(built, [path])], names)
        else:  # they leave it alone
            Adapter(loaded, [(built, [path])], names).remove()
        Adapter(loaded, [(built, [path])], [*names, f"{path}.bias"]).remove()
        assert [type(module) for module in loaded.model.modules()] == kinds
    finally:
        layer.bias = None


@pytest.mark.slow
def test_other_methods_train_the_same_before_and_after_an_adapter(vila, records, tmp_path):
    first, rows = run(vila, records, tmp_path / "a")
    tuned(vila, records, tmp_path / "lora", adapted("lora"))
    with pytest.raises(Killed):
        tuned(vila, records, tmp_path / "cut", adapted("pissa"), on_progress=stop_at(2, kill))
    again, rows2 = run(vila, records, tmp_path / "b")
    assert same(first, again) and rows == rows2


@pytest.mark.slow
def test_the_model_keeps_the_tuned_weights(vila, records, tmp_path):
    from benchmark.training.checkpoint import apply_delta, load_delta
    from benchmark.training.train import train

    spec = adapted("lora")
    base = snapshot(vila.model, [name for name, _ in vila.model.named_parameters()])
    train(spec, vila, records, build("lora", SMALL["lora"], 0), tmp_path)
    try:
        for name, value in load_delta(tmp_path / "delta.safetensors", vila.digest).items():
            assert torch.equal(vila.model.get_parameter(name), value)
    finally:
        apply_delta(vila.model, base)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "pissa", "dora"])
def test_in_bfloat16(vila, records, tmp_path, method):
    vila.model.to(torch.bfloat16)
    try:
        delta, rows = tuned(vila, records, tmp_path, adapted(method, dtype="bfloat16", epochs=6))
        assert delta and all(tensor.dtype == torch.bfloat16 for tensor in delta.values())
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert all(p.dtype == torch.bfloat16 for p in vila.model.parameters())
    finally:
        vila.model.to(torch.float32)


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_number(vila, records, tmp_path):
    plain, rows = tuned(vila, records, tmp_path / "a", adapted("lora"))
    recomputed, again = tuned(vila, records, tmp_path / "b", adapted("lora", gradient_checkpointing=True))
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in rows], rel=1e-4)
    assert plain.keys() == recomputed.keys()


def test_the_layers_are_those_of_the_trained_weights(loaded):
    method = build("lora", {"r": 4}, 0)
    names = trainable_names(loaded, "last_layers", 1)
    layers = adapted_layers(loaded, names, method)
    assert len(layers) == 7 and all(layer.startswith(loaded.block_prefixes[-1]) for layer in layers)
    attention = [name for name in names if "self_attn" in name]  # a narrower scope narrows the adapter
    assert len(adapted_layers(loaded, attention, method)) == 4
    targets = build("lora", {"r": 4, "targets": r"mlp\.(gate|up)_proj"}, 0)
    assert len(adapted_layers(loaded, names, targets)) == 2


@pytest.mark.parametrize("scope", ["projector"])
def test_a_scope_without_layers_is_refused_before_training(vila, records, tmp_path, scope):
    with pytest.raises(UserError, match="trains no linear layer of a decoder block"):
        tuned(vila, records, tmp_path, adapted("lora", scope=scope))
    assert not (tmp_path / "train.jsonl").exists()


def test_calibration_reads_training_samples_of_every_source_set(vila, records, tmp_path, monkeypatch):
    from benchmark.training import adapters

    sets = tuple(
        DatasetSpec(name, name, "upstream", "gqa", "{question}", 8, {"train": "train"}, {}, {}) for name in ("a", "b")
    )
    read = []

    def load(dataset, root, split, limit):
        read.append((dataset.id, split, limit))
        return records[:limit]

    monkeypatch.setattr(adapters.data, "load", load)
    spec = replace(cell(epochs=1), method=MethodSpec("corda", {"r": 4, "samples": 5}), datasets=sets)
    first, _ = tuned(vila, records, tmp_path / "a", spec)
    assert read == [("a", "train", 3), ("b", "train", 3)]
    again, _ = tuned(vila, records, tmp_path / "b", spec)
    assert same(first, again) and len(first) > 10


@pytest.mark.slow
def test_an_adapter_that_is_not_merged_has_no_distance(vila, records, tmp_path, monkeypatch):
    from benchmark.models import loading

    spec = adapted("houlsby", epochs=1)
    tuned(vila, records, tmp_path, spec)
    monkeypatch.setattr(loading, "load_model", lambda *_: vila)
    monkeypatch.setattr(cell_measures, "_bases", {})
    found = cell_measures.of_cell(spec, tmp_path, ("rms_delta", "learnable"))
    assert found["learnable"] == found["trained_share"] < 1 and "rms_delta" not in found
    assert "rms_delta" not in cell_measures.of_cell(spec, tmp_path, ("rms_delta",))  # nor the second time


@pytest.mark.slow
def test_rms_is_measured_on_the_merged_weights(vila, records, tmp_path, monkeypatch):
    from benchmark.models import loading

    spec = adapted("lora")
    delta, _ = tuned(vila, records, tmp_path, spec)
    monkeypatch.setattr(loading, "load_model", lambda *_: vila)
    monkeypatch.setattr(cell_measures, "_bases", {})
    found = cell_measures.of_cell(spec, tmp_path, ("rms_delta", "learnable"))
    base, names = dict(vila.model.named_parameters()), trainable_names(vila, "last_layers", 2)
    squares = sum((delta[name].double() - base[name].double()).square().sum() for name in delta)
    size = sum(base[name].numel() for name in names)
    assert found["rms_delta"] == pytest.approx(float((squares / size) ** 0.5)) and found["rms_delta"] > 0
    assert found["learnable"] == found["trained_share"] < 1


def test_ratio_is_what_an_adapter_trains(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"step": 3, "loss": 1.0, "trained_share": 0.25, "rms_adapter": 0.1}\n')
    (tmp_path / "weights.json").write_text('{"rms_delta": 0.5, "restored_fraction": 0.0}')
    found = cell_measures.recorded(cell(), tmp_path, ("learnable", "rms_delta"))
    assert (found["learnable"], found["rms_delta"], found["restored"]) == (0.25, 0.5, 0.0)
