"""Replay: which samples a batch repeats, what a cell reads, and what is refused before anything is computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmark import data
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.models.batch import Items
from benchmark.spec import DatasetSpec, MethodSpec, canonical, cell_id, samples, steps_per_epoch
from benchmark.store.keys import keys_of
from benchmark.training import replay
from benchmark.training.order import Order, Share, permutation
from methods.registry import build
from tests.benchmark.store.test_keys import Contents, changed
from tests.benchmark.training.toy_cell import Killed, cell, kill, run, same, stop_at

ASKED = ["method=spider", "model=vila_pocket", "dataset=iconqa"]


def spec_of(name, role="extra"):
    return DatasetSpec(name, name, role, "gqa", "{question}", 8, {"train": "train"}, {}, {})


# ---- order


@pytest.mark.parametrize(("rows", "per_batch", "batch_size"), [(11, 1, 4), (12, 2, 6), (3, 1, 8), (9, 3, 4)])
def test_every_batch_ends_with_its_share_of_replayed_items(rows, per_batch, batch_size):
    fresh, replayed = batch_size - per_batch, 5
    order = Order(3, [1] * (rows + replayed), batch_size, 2, replayed, per_batch)
    for epoch in range(3):
        order.epoch = epoch
        indices = [index for index, _ in order]
        assert indices == [index for index, _ in order] and len(order) == len(indices)  # a function of the epoch alone
        assert [index for index in indices if index < rows] == permutation(3, epoch, rows)
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        assert len(batches) == order.steps
        for batch in batches:
            own = sum(index < rows for index in batch)
            assert all(index < rows for index in batch[:own]) and all(index >= rows for index in batch[own:])
            assert len(batch) - own == (per_batch if own == fresh else round(own * per_batch / fresh))


def test_all_items_are_replayed_once_before_any_is_again():
    replayed, order = 5, Order(0, [1] * (20 + 5), 5, 2, 5, 1)  # five full batches an epoch, one replayed item in each
    seen = []
    for epoch in range(6):
        order.epoch = epoch
        seen.append([index for index, _ in order if index >= 20])
    assert all(sorted(cycle) == list(range(20, 25)) for cycle in seen) and len(set(map(tuple, seen))) > 1
    other_seed = Order(1, [1] * 25, 5, 2, replayed, 1)
    assert [index for index, _ in other_seed if index >= 20] != seen[0]
    assert [index for index, _ in Order(0, [1] * 25, 5, 2, 5, 1)] != permutation(0, 0, 25)


def test_without_replay_the_order_is_as_before():
    for epoch in range(2):
        plain, none = Order(4, [2] * 11, 4, 2), Order(4, [2] * 11, 4, 2, 0, 0)
        plain.epoch = none.epoch = epoch
        assert list(plain) == list(none) and [index for index, _ in plain] == permutation(4, epoch, 11)
        assert (len(plain), plain.steps) == (11, 3)


def test_a_replayed_sample_weighs_what_any_sample_does():
    """The loss stays the mean over groups of the means over their tokens; a group may be of replayed samples alone."""
    order = Order(0, [3, 1, 4, 1, 2, 7, 5], 6, 2, 3, 2)  # four rows, three replayed; a batch is 4 + 2
    pairs = list(order)
    groups = [pairs[:2], pairs[2:4], pairs[4:]]
    assert [index >= 4 for index, _ in pairs] == [False] * 4 + [True] * 2
    for group in groups:
        assert sum(weight * order.tokens[index] for index, weight in group) == pytest.approx(1 / 3)


def test_processes_share_batches_with_replay():
    order = Order(0, [3, 1, 4, 1, 5, 9, 2, 6, 5], 4, 2, 2, 1)
    shares = [list(Share(order, 1, rank, 2)) for rank in range(2)]
    together = [pair for first in range(len(shares[0])) for share in shares for pair in share[first : first + 1]]
    assert [pair for pair in together if pair[1]] == list(order)


# ---- training


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method", "params"), [
    ("generic", "lora", {"r": 4}), ("source", "spider", {}), ("generic", "half_ft", {}),
])
def test_a_training_with_replay_resumes_exactly(vila, records, tmp_path, other, kind, method, params):
    spec = replace(
        cell(replay=kind, replay_share=0.25, replay_rows=6, micro_batch_size=2), method=MethodSpec(method, params),
        generic=spec_of("generic"), datasets=(spec_of("a", "upstream"), spec_of("b", "upstream")),
    )
    whole, rows = run(vila, records, tmp_path / "whole", spec, build(method, params, 0))
    wanted = [("generic", "train", 6)] if kind == "generic" else [("a", "train", 3), ("b", "train", 3)]
    assert other == wanted and [row["step"] for row in rows] == list(range(1, 9))  # ten rows, three of them in a batch
    with pytest.raises(Killed):
        run(vila, records, tmp_path / "cut", spec, build(method, params, 0), on_progress=stop_at(6, kill),
            checkpoint_steps=5)  # in the second epoch
    again, resumed = run(vila, records, tmp_path / "cut", spec, build(method, params, 0))
    assert same(whole, again) and resumed == rows
    plain = replace(spec, train=replace(spec.train, replay="none"))
    without, _ = run(vila, records, tmp_path / "plain", plain, build(method, params, 0))
    assert not same(whole, without)


@pytest.mark.slow
def test_the_first_loss_counts_the_replayed_sample(vila, records, tmp_path, other):
    spec = replace(cell(replay="generic", replay_share=0.25, epochs=1), generic=spec_of("generic"))
    _, rows = run(vila, records, tmp_path, spec)
    items = Items(vila, [*records, *data.load(spec.generic, None, "train", 7)], supervised=True)
    from tests.benchmark.training.test_train import group_loss

    tokens = [sum(label != -100 for label in labels) for _, labels in items.encoded]
    order = [index for index, _ in Order(0, tokens, 4, 2, 7, 1)][:4]
    assert order[3] >= 10 > max(order[:3])
    with torch.no_grad():
        assert rows[0]["loss"] == pytest.approx(group_loss(vila, items, order, 2).item(), rel=1e-4)


def test_replay_without_data_is_refused_before_training(vila, records, tmp_path):
    for spec, text in [
        (cell(replay="generic"), "train.replay=generic needs data that show no source set"),
        (cell(replay="source"), "train.replay=source needs data"),
        (replace(cell(replay="source", replay_share=0.95), generic=spec_of("generic")), "leaves no sample of the t"),
    ]:
        with pytest.raises(UserError, match=text):
            run(vila, records, tmp_path, spec)
    assert not (tmp_path / "train.jsonl").exists() and not (tmp_path / "checkpoint").exists()


# ---- configuration and keys


def one(*overrides):
    return request([*ASKED, *overrides]).cells[0]


def test_replay_is_in_the_name_the_key_and_the_length_of_a_cell():
    plain, generic, source = one(), one("train.replay=generic"), one("train.replay=source", "train.replay_rows=100")
    assert "replay" not in canonical(plain.train) and plain.generic is None
    assert generic.generic.id == "generic" and source.generic is None
    assert "replay_generic" in cell_id(generic) and "replay_source-replay_rows100" in cell_id(source)
    names = {cell_id(made) for made in (plain, generic, source, one("train.replay=generic", "train.replay_share=0.3"))}
    assert len(names) == 4
    assert samples(plain) == 512 * 5 and samples(generic) == 512 * 5 * 16 // 14
    assert steps_per_epoch(plain.train, 512) == 32 and steps_per_epoch(generic.train, 512) == 37


def test_the_key_of_a_training_holds_what_it_replays():
    generic, source = one("train.replay=generic"), one("train.replay=source")

    def redone(made, name):
        return "train" in changed(keys_of(made, Contents()), keys_of(made, Contents(changed=f"{name} train")))

    assert redone(generic, "generic") and not redone(generic, "gqa")
    assert redone(source, "gqa") and not redone(source, "generic") and redone(source, "iconqa")
    assert not redone(one(), "generic") and not redone(one(), "gqa")


def test_a_module_of_ones_own_gives_the_generic_data(tmp_path):
    made = one("train.replay=generic", "generic=./examples/my_target.py")
    assert made.generic.id == "my_target" and made.generic.options["reader"] == "examples.my_target"
    assert cell_id(made) != cell_id(one("train.replay=generic"))
    assert one("generic=./examples/my_target.py") == one()  # nothing uses it


@pytest.mark.parametrize(("overrides", "text"), [
    (["train.replay=generic", "generic=null"],
     "train.replay=generic needs data that show no source set, and this profile has none"),
    (["train.replay=generic", "profile=paper", "model=vila15_3b"], "a module that reads them: generic=./my_data.py"),
    (["train.replay=generic", "generic=./nowhere.py"], "generic=./nowhere.py: ./nowhere.py: "),
    (["train.replay=sources"], "train.replay=sources: unknown value. Did you mean 'source'"),
    (["train.replay_share=0.2"], "train.replay_share: it belongs to train.replay=generic or source"),
    (["train.replay=source", "train.replay_share=0"], "train.replay_share=0.0: must be more than 0"),
    (["train.replay=source", "train.replay_share=0.99"], "leaves no sample of the target in a batch"),
    (["train.replay=source", "train.replay_rows=0"], "train.replay_rows=0: must be at least 1"),
])
def test_replay_that_cannot_be_is_refused_before_anything_is_computed(overrides, text):
    with pytest.raises(UserError) as error:
        request([item for item in ASKED if not any(o.startswith("model=") for o in overrides) or "model" not in item]
                + overrides)
    assert text in str(error.value)


def test_two_samples_of_sixteen_are_a_tenth():
    train = one("train.replay=source").train
    assert [replay.replayed_per_batch(replace(train, replay_share=share)) for share in (0.01, 0.1, 0.3, 0.5)] == [
        1, 2, 5, 8,
    ]
    assert Counter(dataset.id for dataset, rows in replay.replay_sets(one("train.replay=source")) if rows == 512) == {
        "okvqa": 1, "textvqa": 1, "ocrvqa": 1, "gqa": 1,
    }
