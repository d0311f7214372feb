"""Post-hoc methods: what they write, and what the log says of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmark import data
from benchmark.core.errors import UserError
from benchmark.data import Record
from benchmark.models import trainable_names
from benchmark.models.batch import Items, collate
from benchmark.training.checkpoint import load_delta, save_delta, snapshot
from benchmark.training.posthoc import moved, transform
from methods.registry import build
from tests.benchmark.models import tiny
from tests.benchmark.training.test_replay import spec_of
from tests.benchmark.training.toy_cell import cell

ANSWERS = ["red", "a blue dog", "cat"]


def test_where_and_how_far_the_weights_moved():
    base = {"a.layers.0.mlp.up_proj.weight": torch.zeros(4, 5), "projector.weight": torch.ones(10).bfloat16()}
    weights = {name: tensor.float().clone() for name, tensor in base.items()}
    weights["a.layers.0.mlp.up_proj.weight"][0] += 0.5
    weights["projector.weight"][7] -= 2.0
    tuned = {name: tensor.clone() for name, tensor in weights.items()}
    tuned["a.layers.0.mlp.up_proj.weight"] += 0.5  # so there nothing is what training made, and three rows are w*
    tuned["projector.weight"][3] = 9.0  # taken back
    assert moved(weights, base, tuned) == {
        "rms_delta": pytest.approx(((5 * 0.25 + 4) / 30) ** 0.5), "restored_fraction": pytest.approx(24 / 30),
        "mask_selected": pytest.approx(6 / 30), "mask_ones": pytest.approx(1 / 30),
        "selected_in/a.layers.0": 0.25, "selected_in/projector": 0.1,
        "selected/a.layers.0.mlp.up_proj.weight": 0.25, "selected/projector.weight": 0.1,
    }


@pytest.mark.parametrize(("method", "share"), [("wise_ft", 1.0), ("dare", 0.1)])
def test_a_delta_and_one_row_of_log(method, share, tmp_path):
    loaded = tiny.load("vila", tiny.write("vila", tmp_path / "model"))
    base = snapshot(loaded.model, trainable_names(loaded, "last_layers", 2))
    tuned = {name: tensor + 0.125 for name, tensor in base.items()}
    for folder in ("full_ft", method):
        (tmp_path / folder).mkdir()
    save_delta(tmp_path / "full_ft" / "delta.safetensors", tuned, base, list(base), loaded.digest)
    out = tmp_path / method / "delta.safetensors"
    transform(
        cell(method=method), loaded, [], build(method, {}, 0), base, [tmp_path / "full_ft" / "delta.safetensors"], out
    )
    delta = load_delta(out, loaded.digest)
    (row,) = [json.loads(line) for line in (tmp_path / method / "train.jsonl").read_text().splitlines()]
    assert row == {"step": 0, **moved({**base, **delta}, base, tuned)}
    assert row["mask_ones"] == 0, "halfway, and ten times as far: no element is the fine-tuned one"
    assert row["mask_selected"] == pytest.approx(share, abs=0.02)
    expected = 0.0625 if method == "wise_ft" else 1.25 * share**0.5
    assert row["rms_delta"] == pytest.approx(expected, rel=0.05)
    assert len([name for name in row if name.startswith("selected/")]) == len(base)


def test_a_learned_mask_fits_the_training_items_better_than_a_random_one(tmp_path):
    """The whole path on a small real model: weights are w* or w_ft bit for bit, and the loss says that it learned."""
    loaded = tiny.load("llava", tiny.write("llava", tmp_path / "model"))
    records = [
        Record(f"item{i}", "toy", "train", None, f"what is {i} ?", ANSWERS[i % 3], (), None, str(i), {})
        for i in range(6)
    ]
    base = snapshot(loaded.model, trainable_names(loaded, "last_layers", 1))
    source = torch.Generator().manual_seed(0)
    tuned = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=source) for name, tensor in base.items()}
    for folder in ("full_ft", "grafting_mask"):
        (tmp_path / folder).mkdir()
    save_delta(tmp_path / "full_ft" / "delta.safetensors", tuned, base, list(base), loaded.digest)
    out = tmp_path / "grafting_mask" / "delta.safetensors"
    method = build("grafting_mask", {"samples": 6, "steps": 6}, 0)
    transform(
        cell(method="grafting_mask"), loaded, records, method, base, [tmp_path / "full_ft" / "delta.safetensors"], out
    )
    result = {**base, **load_delta(out, loaded.digest)}
    size = sum(tensor.numel() for tensor in base.values())
    grafted = {name: result[name] != base[name] for name in base}
    count = sum(mask.sum().item() for mask in grafted.values())
    assert 0 < count <= 0.1 * size
    for name, mask in grafted.items():
        assert torch.equal(result[name], torch.where(mask, tuned[name], base[name])), name
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[torch.randperm(size, generator=source)[:count]] = True
    parts = dict(zip(base, chosen.split([tensor.numel() for tensor in base.values()]), strict=True))
    drawn = {name: torch.where(parts[name].view_as(w), tuned[name], w) for name, w in base.items()}
    items = Items(loaded, records, supervised=True)
    batch = collate(loaded, [items[i] for i in range(6)], "right")

    def loss(weights):
        with torch.no_grad():
            logits = torch.func.functional_call(
                loaded.model, weights, (), {k: v for k, v in batch.items() if k != "labels"}
            ).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).item()

    assert loss(result) < min(loss(base), loss(drawn)) - 1e-3


def merged_over(tmp_path, changes):
    """Write Full FT deltas: one file per entry, name -> change of the base. Return what `transform` needs."""
    loaded = tiny.load("vila", tiny.write("vila", tmp_path / "model"))
    base = snapshot(loaded.model, trainable_names(loaded, "last_layers", 1))
    sources = []
    for number, change in enumerate(changes):
        sources.append(tmp_path / f"seed{number}.safetensors")
        save_delta(sources[-1], {name: tensor + change for name, tensor in base.items()}, base, list(base),
                   loaded.digest)
    return loaded, base, sources


def test_a_soup_is_the_average_of_its_members_deltas(tmp_path):
    loaded, base, sources = merged_over(tmp_path, (0.125, 0.25, 0.75))
    out = tmp_path / "delta.safetensors"
    transform(cell(method="soup"), loaded, [], build("soup", {"alpha": 0.5}, 0), base, sources, out)
    delta = load_delta(out, loaded.digest)
    assert delta.keys() == base.keys()
    for name, tensor in delta.items():
        torch.testing.assert_close(tensor, base[name] + 0.1875, rtol=0, atol=1e-6)


def test_members_of_another_base_or_scope_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    loaded, base, sources = merged_over(tmp_path, (0.125, 0.25, 0.75))
    method = build("soup", {}, 0)
    monkeypatch.setattr(type(method), "combine", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr("benchmark.training.posthoc.save_delta", lambda *_: pytest.fail("written"))

    def refused(match):
        with pytest.raises(UserError, match=match) as caught:
            transform(cell(method="soup"), loaded, [], method, base, sources, tmp_path / "out.safetensors")
        assert str(sources[1]) in str(caught.value)

    wider = snapshot(loaded.model, trainable_names(loaded, "last_layers", 2))
    (outside, *_) = sorted(wider.keys() - base.keys())
    save_delta(sources[1], {name: tensor + 1 for name, tensor in wider.items()}, wider, list(wider), loaded.digest)
    refused(f"changes {outside}, which this cell's scope does not train: weights of different scopes cannot be merged")
    save_delta(sources[1], {name: tensor + 1 for name, tensor in base.items()}, base, list(base), "0" * 64)
    refused("was made from the base checkpoint 000000000000, not from")
    sources[1].unlink()
    refused("is missing: the cell was not trained")


@pytest.mark.parametrize("method", ["fisher", "wise_ft_tensors"])
def test_a_contrast_reads_the_targets_training_samples_and_generic_ones(method, tmp_path, monkeypatch):
    """On a small real model: single samples for the Fisher information, and what each of them says of the loss."""
    loaded = tiny.load("llava", tiny.write("llava", tmp_path / "model"))

    def made(kind, words):
        return [Record(f"{kind}{i}", "toy", "train", None, f"what is {i} ?", words[i % 2], (), None, str(i), {})
                for i in range(4)]
    target, generic = made("target", ["red", "cat"]), made("generic", ["a blue dog", "two"])
    read = []
    monkeypatch.setattr("benchmark.data.load", lambda spec, root, split, limit: read.append((spec, split, limit))
                        or generic)
    base = snapshot(loaded.model, trainable_names(loaded, "last_layers", 1))
    source = torch.Generator().manual_seed(0)
    tuned = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=source) for name, tensor in base.items()}
    full_ft, out = tmp_path / "full_ft.safetensors", tmp_path / "delta.safetensors"
    save_delta(full_ft, tuned, base, list(base), loaded.digest)
    spec = cell(method=method)
    with pytest.raises(UserError, match=f"method={method} "):
        transform(spec, loaded, target, build(method, {"samples": 4}, 0), base, [full_ft], out)
    assert not out.exists()
    spec, target = replace(spec, generic=spec_of("generic")), data.subset(target, 4, spec.seed)

    def gradients(records, weights, size=1):
        items = Items(loaded, records, supervised=True)
        for start in range(0, len(records), size):
            batch = collate(loaded, [items[i] for i in range(start, min(start + size, len(records)))], "right")
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            logits = torch.func.functional_call(loaded.model, leaves, (), inputs).logits[:, :-1]
            kept = batch["labels"][:, 1:] != -100
            loss = torch.nn.functional.cross_entropy(logits[kept], batch["labels"][:, 1:][kept])
            # No record has an image, so the loss does not depend on the projector, which both methods merge by alpha.
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            yield {name: torch.zeros_like(leaves[name]) if part is None else part
                   for name, part in zip(leaves, found, strict=True)}

    if method == "fisher":
        transform(spec, loaded, target, build(method, {"samples": 4, "alpha": 0.3}, 0), base, [full_ft], out)
        new, old = (
            {name: sum(one[name].square() for one in rows) for name in base}
            for rows in (list(gradients(target, tuned)), list(gradients(generic, base)))
        )
        rms = [torch.cat([value.flatten() for value in one.values()]).square().mean().sqrt() for one in (new, old)]
        expected = {}
        for name in base:
            one, two = 0.3 * (new[name] / rms[0] + 1e-6), 0.7 * (old[name] / rms[1] + 1e-6)
            expected[name] = (one * tuned[name] + two * base[name]) / (one + two)
    else:
        settings = {"samples": 4, "steps": 1, "rate": 1.0, "share": 0.75}
        transform(spec, loaded, target, build(method, settings, 0), base, [full_ft], out)
        half = {name: (base[name] + tuned[name]) / 2 for name in base}
        size = spec.train.micro_batch_size
        slopes = {name: 0.0 for name in base}
        for share, records in ((0.75, target), (0.25, generic)):
            rows = list(gradients(records, half, size))
            for name in base:
                along = sum(((tuned[name] - base[name]) * row[name]).sum().item() for row in rows) / len(rows)
                slopes[name] += share * along / 4
        rms = (sum(slope**2 for slope in slopes.values()) / len(slopes)) ** 0.5
        alphas = {name: torch.sigmoid(torch.tensor(-slope / rms)) for name, slope in slopes.items()}
        assert max(alphas.values()) - min(alphas.values()) > 0.1
        expected = {name: base[name] + alphas[name] * (tuned[name] - base[name]) for name in base}
    assert read == [(spec.generic, "train", 4)]
    result = {**base, **load_delta(out, loaded.digest)}
    for name in base:
        torch.testing.assert_close(result[name], expected[name], rtol=0, atol=2e-4, msg=name)
