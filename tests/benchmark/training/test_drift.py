"""KL and CKA against float64 numpy, on numbers and on a small model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmark.models.batch import Items, collate
from benchmark.models.prompt import IGNORE
from benchmark.training.checkpoint import apply_delta, snapshot
from benchmark.training.drift import Reference, divergence, linear_cka


def kl(first, second):
    """KL of two rows of logits, written out."""
    p, q = (np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in (first, second))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cka(x, y):
    """Kornblith et al., Eq. for linear CKA, in the space of features."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_the_divergence_is_of_the_first_from_the_second():
    random = np.random.default_rng(0)
    first, second = 3 * random.standard_normal((4, 9)), random.standard_normal((4, 9))
    found = divergence(torch.tensor(first), torch.tensor(second))
    assert found.numpy() == pytest.approx([kl(*rows) for rows in zip(first, second, strict=True)])
    assert not np.allclose(found, divergence(torch.tensor(second), torch.tensor(first)))  # the direction counts
    # p = (1, 0), q = (1/2, 1/2): log 2 one way, without bound the other.
    sure, open_ = torch.tensor([[50.0, -50.0]]), torch.zeros(1, 2)
    assert float(divergence(sure, open_)) == pytest.approx(math.log(2)) and float(divergence(open_, sure)) > 40
    assert float(divergence(sure, sure + 7)) == pytest.approx(0)


@pytest.mark.parametrize(("inputs", "widths"), [(30, (5, 7)), (6, (20, 20))])
def test_cka_is_that_of_the_centred_features(inputs, widths):
    random = np.random.default_rng(1)
    x, y = (random.standard_normal((inputs, width)) + 4 for width in widths)  # far from 0: the centring counts
    found = linear_cka(torch.tensor(x), torch.tensor(y))
    assert found == pytest.approx(cka(x, y)) and 0 < found < 0.95
    turn = np.linalg.qr(random.standard_normal((widths[0], widths[0])))[0]
    assert linear_cka(torch.tensor(x), torch.tensor(-3 * x @ turn + 9)) == pytest.approx(1)
    assert linear_cka(torch.tensor(x), torch.tensor(x * np.arange(1, widths[0] + 1))) < 0.999  # scales of columns count
    assert math.isnan(linear_cka(torch.ones(3, 2), torch.tensor(x[:3])))


def weights_moved(model, seed):
    """Move every decoder weight a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and "language_model" in name or name.startswith("llm."):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def alone(loaded, record, supervised):
    """Run one record by itself, unpadded: (logits, labels, outputs of the layers), float64 numpy."""
    items = Items(loaded, [record], supervised)
    batch = collate(loaded, [items[0]], "right")
    labels = batch.pop("labels")[0].numpy()
    outputs = []
    blocks = [loaded.model.get_submodule(prefix.removesuffix(".")) for prefix in loaded.block_prefixes]
    hooks = [block.register_forward_hook(
        lambda _, __, out: outputs.append((out if isinstance(out, torch.Tensor) else out[0])[0].double().numpy())
    ) for block in blocks]
    with torch.no_grad():
        logits = loaded.model(**batch).logits[0].double().numpy()
    for hook in hooks:
        hook.remove()
    return logits, labels, outputs


def test_a_model_is_measured_on_the_answer_tokens_and_on_the_last_prompt_token(loaded, records):
    targets, sources = records[:5], records[3:]
    reference = Reference(loaded, targets, sources, batch_size=3)
    before = {record.item_id: (alone(loaded, record, True), alone(loaded, record, False)) for record in records}
    same = reference.drift()
    assert same["kl"] == pytest.approx(0, abs=1e-9) and same["cka"] == pytest.approx([1] * len(same["cka"]))
    base = snapshot(loaded.model, [name for name, _ in loaded.model.named_parameters()])
    weights_moved(loaded.model, 0)
    told = []
    found = reference.drift(lambda *count: told.append(count))
    after = {record.item_id: (alone(loaded, record, True), alone(loaded, record, False)) for record in records}
    apply_delta(loaded.model, base)
    forward, backward = [], []
    for record in targets:
        (old, labels, _), (new, *_) = before[record.item_id][0], after[record.item_id][0]
        for place in np.flatnonzero(labels != IGNORE):  # the token at a place is predicted by the logits before it
            forward.append(kl(new[place - 1], old[place - 1]))
            backward.append(kl(old[place - 1], new[place - 1]))
    assert found["tokens"] == len(forward) and found["inputs"] == len(sources)
    assert found["kl"] == pytest.approx(np.mean(forward), rel=1e-4) and found["kl"] > 0.001
    assert found["kl_of_base"] == pytest.approx(np.mean(backward), rel=1e-4)
    assert found["kl"] != pytest.approx(found["kl_of_base"], rel=1e-3)
    for layer in range(len(loaded.block_prefixes)):
        old, new = (
            np.stack([outputs[record.item_id][1][2][layer][-1] for record in sources]) for outputs in (before, after)
        )
        assert found["cka"][layer] == pytest.approx(cka(old, new), rel=1e-5)
    assert min(found["cka"]) < 0.999 and told == [(3, 5), (5, 5), (3, 7), (6, 7), (7, 7)]
    assert reference.drift()["kl"] == pytest.approx(0, abs=1e-9)  # the base's outputs are still the base's


def test_a_trained_prompt_that_runs_through_the_blocks_first_is_no_record(loaded, records):
    """`figure predict` stopped at prompt tuning: it took the prompt's outputs for those of another record."""
    blocks = [loaded.model.get_submodule(prefix.removesuffix(".")) for prefix in loaded.block_prefixes]

    def prompt(*_):
        for block in blocks:
            for hook in block._forward_hooks.values():
                hook(block, (), torch.randn(1, 4, 8))

    reference = Reference(loaded, records[:2], records, batch_size=3)
    handle = loaded.model.register_forward_pre_hook(prompt)
    found = reference.drift()
    handle.remove()
    assert found["inputs"] == len(records) and found["cka"] == pytest.approx([1] * len(found["cka"]))
