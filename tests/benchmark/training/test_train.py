"""Training: loss, order, update and schedule against the formulas; exact resume; clear failures."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from benchmark.core.errors import UserError
from benchmark.core.signals import Preempted, Terminated, check, raising
from benchmark.data.record import Record
from benchmark.models import trainable_names
from benchmark.models.batch import Items, collate
from benchmark.spec import cell_id
from benchmark.training.checkpoint import load_delta, save_delta, snapshot
from benchmark.training.objective import batch_loss, training_batch
from benchmark.training.order import Order, Share, permutation
from benchmark.training.train import train
from benchmark.training.trainer import TrainingFailed
from methods.base import Method, NoParams
from methods.registry import build
from tests.benchmark.training.toy_cell import Killed, cell, kill, run, same, stop_at
from tests.methods.toy import Momenta

# ---- order and loss


def test_order_is_pure_and_complete():
    order = Order(3, [1] * 11, 4, 2)
    epochs = []
    for epoch in range(3):
        order.epoch = epoch
        indices = [index for index, _ in order]
        assert sorted(indices) == list(range(11)) and indices == [index for index, _ in order]
        assert indices == permutation(3, epoch, 11)
        epochs.append(tuple(indices))
    assert len(set(epochs)) == 3 and permutation(4, 0, 11) != permutation(3, 0, 11)
    assert len(order) == 11 and order.steps == 3
    assert permutation(0, 0, 8) == [4, 2, 6, 0, 7, 5, 1, 3]  # published runs depend on it


def test_weights_are_means_over_groups_of_token_means():
    tokens = [3, 1, 4, 1, 5, 9, 2]
    pairs = list(Order(0, tokens, 4, 2))
    nll = {index: float(index + 1) for index in range(7)}  # every token of sample i costs i + 1
    for batch in (pairs[:4], pairs[4:]):
        groups = [batch[i : i + 2] for i in range(0, len(batch), 2)]
        means = [sum(nll[i] * tokens[i] for i, _ in g) / sum(tokens[i] for i, _ in g) for g in groups]
        got = sum(weight * nll[index] * tokens[index] for index, weight in batch)
        assert got == pytest.approx(sum(means) / len(means))


@pytest.mark.parametrize(("micro", "processes"), [(1, 2), (2, 2), (1, 3), (2, 3), (4, 1)])
def test_shares_of_processes_are_the_order_cut_up(micro, processes):
    order = Order(0, [3, 1, 4, 1, 5, 9, 2], 12 if processes == 3 else 4, 2)
    shares = [list(Share(order, micro, rank, processes)) for rank in range(processes)]
    assert {len(share) for share in shares} == {len(Share(order, micro, 0, processes))}
    together = [
        pair
        for first in range(0, len(shares[0]), micro) for share in shares for pair in share[first : first + micro]
    ]
    assert [pair for pair in together if pair[1]] == list(order)
    assert len(together) % (micro * processes) == 0 and len(together) - len(order) < micro * processes


def test_a_batch_without_images_gets_one_that_weighs_nothing(loaded, records):
    """Under ZeRO the projector takes part in every batch of every process, or gradients would get mixed up."""
    items = Items(loaded, records, supervised=True)
    pairs = [(items[3], 0.3), (items[7], 0.2)]
    assert all(item.image is None for item, _ in pairs)
    names = trainable_names(loaded, "last_layers", 2)
    results = []
    for blank in (None, items.blank):
        batch = training_batch(loaded, pairs, blank)
        del batch["item_ids"]
        loaded.model.requires_grad_(False).zero_grad()
        parameters = {name: loaded.model.get_parameter(name).requires_grad_() for name in names}
        loss, _ = batch_loss(loaded.model, batch, autocast=False)
        loss.backward()
        results.append((loss.item(), {name: parameter.grad for name, parameter in parameters.items()}))
    loaded.model.zero_grad()
    (expected, without), (loss, gradients) = results
    assert loss == pytest.approx(expected, rel=1e-6)
    for name in names:
        if name.startswith(loaded.projector_prefix):
            assert without[name] is None and torch.equal(gradients[name], torch.zeros_like(gradients[name]))
        else:
            torch.testing.assert_close(gradients[name], without[name], rtol=1e-4, atol=1e-7)
    with_image = training_batch(loaded, [(items[0], 0.3)], items.blank)
    assert len(with_image["input_ids"]) == 1 and items.blank.shape == items[0].image.shape


def group_loss(loaded, items, indices, group):
    """Mean over groups of token means, one sample per forward pass, from full logits."""
    means = []
    for start in range(0, len(indices), group):
        losses = []
        for index in indices[start : start + group]:
            batch = collate(loaded, [items[index]], "right")
            labels = batch.pop("labels")[0, 1:]
            logits = loaded.model(**batch).logits[0, :-1]
            losses.append(F.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none"))
        means.append(torch.cat(losses).mean())
    return torch.stack(means).mean()


@pytest.mark.slow
def test_first_step_equals_clipped_adamw_by_hand(loaded, records, tmp_path):
    """One step: loss, gradient norm before clipping, update -lr g / (|g| + eps) with each group's rate."""
    names = trainable_names(loaded, "last_layers", 2)
    parameters = dict(loaded.model.named_parameters())
    loaded.model.requires_grad_(False)
    for name in names:
        parameters[name].requires_grad_(True)
    items = Items(loaded, records, supervised=True)
    loss = group_loss(loaded, items, permutation(5, 0, len(records)), 2)
    loss.backward()
    gradients = {name: parameters[name].grad.clone() for name in names}
    loaded.model.zero_grad()
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients.values()))
    assert norm > 0.3
    base = snapshot(loaded.model, names)

    spec = cell(seed=5, epochs=1, batch_size=10, micro_batch_size=10, warmup_ratio=0.0, max_grad_norm=0.25)
    delta, rows = run(loaded, records, tmp_path, spec)
    assert len(rows) == 1 and rows[0]["step"] == 1
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert rows[0]["learning_rate"] == 2e-3
    for name in names:
        gradient = gradients[name] * min(1, 0.25 / (norm + 1e-6))
        rate = 2e-4 if name.startswith(loaded.projector_prefix) else 2e-3
        expected = base[name] - rate * gradient / (gradient.abs() + 1e-8)
        # Where the gradient is as small as eps, rounding decides about the step.
        clear = gradient.abs() > 1e-5
        torch.testing.assert_close(delta[name][clear], expected[clear], rtol=0, atol=rate * 2e-3)


@pytest.mark.slow
def test_micro_batches_do_not_matter(loaded, records, tmp_path):
    whole, rows = run(loaded, records, tmp_path / "4", cell())
    for micro in (2, 1):
        parts, other = run(loaded, records, tmp_path / str(micro), cell(micro_batch_size=micro))
        assert [row["step"] for row in other] == list(range(1, 7))
        for row, row2 in zip(rows, other, strict=True):
            assert row2["loss"] == pytest.approx(row["loss"], rel=1e-4)
            assert row2["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-3)
        assert parts.keys() == whole.keys()


@pytest.mark.slow
def test_schedule_is_cosine_with_warmup(vila, records, tmp_path):
    _, rows = run(vila, records, tmp_path, cell(epochs=3, warmup_ratio=0.3))
    steps, warmup = 9, math.ceil(0.3 * 9)
    for row in rows:
        done = row["step"] - 1
        scale = done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (steps - warmup)))
        assert row["learning_rate"] == pytest.approx(2e-3 * scale, abs=1e-9)


@pytest.mark.slow
def test_clipping_can_be_switched_off(vila, records, tmp_path):
    _, clipped = run(vila, records, tmp_path / "a", cell(max_grad_norm=1e-9, warmup_ratio=0.0))
    free, rows = run(vila, records, tmp_path / "b", cell(max_grad_norm=0.0, warmup_ratio=0.0))
    large, _ = run(vila, records, tmp_path / "c", cell(max_grad_norm=1e9, warmup_ratio=0.0))
    assert rows[0]["grad_norm"] == pytest.approx(clipped[0]["grad_norm"]) and rows[0]["grad_norm"] > 0.1
    for name in free:
        torch.testing.assert_close(free[name], large[name], rtol=1e-5, atol=1e-7)


# ---- what changes


@pytest.mark.slow
def test_only_trainable_tensors_change_and_loss_falls(loaded, records, tmp_path):
    everything = [name for name, _ in loaded.model.named_parameters()]
    before = snapshot(loaded.model, everything)
    names = set(trainable_names(loaded, "last_layers", 1))
    train(cell(epochs=12, last_layers=1), loaded, records, build("full_ft", {}, 0), tmp_path)
    after = snapshot(loaded.model, everything)
    changed = {name for name in everything if not torch.equal(before[name], after[name])}
    assert changed == names
    delta = load_delta(tmp_path / "delta.safetensors", loaded.digest)
    assert delta.keys() == names and all(torch.equal(delta[name], after[name]) for name in names)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint", "delta.safetensors", "speed.json", "train.jsonl",  # states go when the store records the end
    ]
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert rows[0].keys() >= {"loss", "learning_rate", "grad_norm", "rms_delta"} and "rms_delta" not in rows[1]
    assert "rms_delta" in rows[-1]


@pytest.mark.slow
def test_batches_without_any_image(loaded, records, tmp_path):
    text_only = [record for record in records if record.image is None]
    delta, rows = run(loaded, text_only, tmp_path, cell(batch_size=1, micro_batch_size=1))
    assert len(rows) == 4
    # The projector sees zero gradients: Adam does not move it, and it is not in the delta.
    assert not any(name.startswith(loaded.projector_prefix) for name in delta)
    assert len(delta) == 18


@pytest.mark.slow
def test_image_sets_larger_than_memory_train_the_same(loaded, records, tmp_path, monkeypatch):
    _, rows = run(loaded, records, tmp_path / "a")
    monkeypatch.setattr("benchmark.models.batch.FEATURE_BYTES", 0)
    monkeypatch.setattr(loaded, "features", {})
    _, again = run(loaded, records, tmp_path / "b")
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in rows], rel=1e-4)


@pytest.mark.slow
def test_equal_runs_are_bitwise_equal_and_the_seed_matters(vila, records, tmp_path):
    first, rows = run(vila, records, tmp_path / "a", cell(seed=1))
    again, rows2 = run(vila, records, tmp_path / "b", cell(seed=1))
    other, _ = run(vila, records, tmp_path / "c", cell(seed=2))
    assert same(first, again) and rows == rows2 and not same(first, other)
    assert (tmp_path / "a" / "delta.safetensors").read_bytes() == (tmp_path / "b" / "delta.safetensors").read_bytes()


class Calls(Method):
    """Notes the order of the hooks and what they see; changes nothing."""

    def __init__(self):
        super().__init__(NoParams(), 0)
        self.calls = []

    def start(self, shards):
        self.calls.append(("start", max((s.weight - s.pretrained).abs().max().item() for s in shards)))

    def before_step(self, shards):
        self.calls.append(("before", sum(s.grad.square().sum().item() for s in shards) ** 0.5))

    def after_step(self, shards):
        self.calls.append(("after", max((s.weight - s.pretrained).abs().max().item() for s in shards)))


@pytest.mark.slow
def test_the_method_sees_clipped_gradients_of_whole_batches(vila, records, tmp_path):
    method = Calls()
    _, rows = run(vila, records, tmp_path, cell(micro_batch_size=2, max_grad_norm=0.1, warmup_ratio=0), method)
    assert [name for name, _ in method.calls] == ["start"] + ["before", "after"] * 6
    assert method.calls[0][1] == 0
    assert all(value == pytest.approx(0.1, rel=1e-3) for name, value in method.calls if name == "before")
    assert method.calls[2][1] > 1e-3


@pytest.mark.slow
def test_progress_is_reported_and_nothing_printed(vila, records, tmp_path, capfd):
    seen = []
    run(vila, records, tmp_path, on_progress=lambda step, steps, row: seen.append((step, steps, row["step"])))
    assert seen == [(i, 6, i) for i in range(1, 7)]
    printed = capfd.readouterr()
    assert printed.out == "" and "loss" not in printed.err


class Recorder(TrainerCallback):
    """Stands in for a tracker's callback."""

    seen: ClassVar[list] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append((args.run_name, os.environ["TENSORBOARD_LOGGING_DIR"]))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append((state.global_step, logs))


@pytest.mark.slow
def test_a_tracker_gets_every_row_and_changes_no_number(vila, records, tmp_path, monkeypatch):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setattr(Recorder, "seen", [])
    plain = run(vila, records, tmp_path / "a")
    assert Recorder.seen == []
    spec = replace(cell(), report_to="tensorboard")
    watched = run(vila, records, tmp_path / "b", spec)
    rows = [json.loads(line) for line in (tmp_path / "b" / "train.jsonl").read_text().splitlines()]
    (name, folder), *logs = Recorder.seen
    assert name == cell_id(spec) == cell_id(cell()) and folder == str(tmp_path / "b" / "tensorboard")
    assert [{"step": step, **numbers} for step, numbers in logs] == rows and len(rows) > 3
    assert same(plain[0], watched[0]) and plain[1] == watched[1]


def test_tensorboard_writes_below_the_cell(vila, records, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    run(vila, records, tmp_path, replace(cell(), report_to="tensorboard"))
    assert list((tmp_path / "tensorboard").glob("events.*")) and not (tmp_path / "checkpoint" / "runs").exists()


@pytest.mark.slow
def test_bfloat16_trains_float32_master_weights(vila, records, tmp_path):
    half = vila.model.to(torch.bfloat16)
    try:
        delta, rows = run(vila, records, tmp_path, cell(dtype="bfloat16", epochs=6))
        assert delta and all(tensor.dtype == torch.bfloat16 for tensor in delta.values())
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    finally:
        vila.model.to(torch.float32)


# ---- interruption


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full_ft", "spider", "half_ft"])
def test_resume_is_bitwise_exact(vila, records, tmp_path, method):
    """Killed in the middle of an epoch and of an accumulation group's interval, the run ends as if undisturbed."""
    spec = cell(method=method, epochs=4, micro_batch_size=2)
    whole, rows = run(vila, records, tmp_path / "whole", spec)
    assert len(rows) == 12
    for step in (5, 8, 11):
        with pytest.raises(Killed):
            run(vila, records, tmp_path / "cut", spec, on_progress=stop_at(step, kill), checkpoint_steps=2)
        assert not (tmp_path / "cut" / "delta.safetensors").exists()
    with open(tmp_path / "cut" / "train.jsonl", "a") as file:
        file.write('{"step": 12, "lo')
    seen = []
    delta, resumed = run(vila, records, tmp_path / "cut", spec, on_progress=lambda step, *_: seen.append(step))
    assert seen == [11, 12]
    assert same(whole, delta) and resumed == rows


class Saved(Momenta):
    def state_dict(self):
        return self.momenta

    def load_state_dict(self, state):
        for name, tensor in self.momenta.items():
            tensor.copy_(state[name])


@pytest.mark.slow
def test_a_method_that_would_lose_its_state_is_refused_at_the_first_save(vila, records, tmp_path):
    spec = cell(epochs=4)
    with pytest.raises(UserError, match=r"Momenta cannot be saved: .*: momenta \(dict of \d+ tensors\)"):
        run(vila, records, tmp_path / "cut", spec, Momenta(None, 0), checkpoint_steps=2)
    assert list((tmp_path / "cut" / "checkpoint").iterdir()) == [], "nothing half-written"
    run(vila, records, tmp_path / "short", spec, Momenta(None, 0))  # never saved, so nothing can be lost
    allowed = type("Allowed", (Momenta,), {"stateless": True})
    run(vila, records, tmp_path / "allowed", spec, allowed(None, 0), checkpoint_steps=2)


@pytest.mark.slow
def test_a_signal_does_not_save_what_would_go_on_otherwise(vila, records, tmp_path):
    with pytest.raises(UserError, match="Momenta cannot be saved"):
        run(vila, records, tmp_path, None, Momenta(None, 0), stop_at(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert list((tmp_path / "checkpoint").iterdir()) == []


@pytest.mark.slow
def test_a_method_of_ones_own_with_both_functions_resumes_exactly(vila, records, tmp_path):
    spec = cell(epochs=4)
    whole, rows = run(vila, records, tmp_path / "whole", spec, Saved(None, 0))
    with pytest.raises(Killed):
        run(vila, records, tmp_path / "cut", spec, Saved(None, 0), stop_at(5, kill), checkpoint_steps=2)
    delta, resumed = run(vila, records, tmp_path / "cut", spec, Saved(None, 0))
    assert same(whole, delta) and resumed == rows
    other, _ = run(vila, records, tmp_path / "other", spec)
    assert not same(whole, other), "the method does nothing, so this tests little"


@pytest.mark.slow
def test_resume_at_the_end_of_an_epoch(vila, records, tmp_path):
    spec = cell(method="spider", epochs=3)
    whole, rows = run(vila, records, tmp_path / "whole", spec)
    with pytest.raises(Killed):
        run(vila, records, tmp_path / "cut", spec, on_progress=stop_at(4, kill), checkpoint_steps=3)
    delta, resumed = run(vila, records, tmp_path / "cut", spec)
    assert same(whole, delta) and resumed == rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "stops"),
    [(signal.SIGTERM, Preempted), (signal.SIGUSR1, Preempted), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_saves_and_the_same_command_continues(vila, records, tmp_path, sent, stops):
    spec = cell(method="spider")
    whole, rows = run(vila, records, tmp_path / "whole", spec)
    before = signal.getsignal(sent)
    with pytest.raises(stops, match="after step 3 of 6"):
        run(vila, records, tmp_path / "cut", spec, on_progress=stop_at(2, lambda: os.kill(os.getpid(), sent)))
    assert signal.getsignal(sent) == before
    delta, resumed = run(vila, records, tmp_path / "cut", spec)
    assert same(whole, delta) and resumed == rows


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(vila, records, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(vila, records, tmp_path, on_progress=stop_at(2, twice))
    assert list((tmp_path / "checkpoint").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["last step", "weights"])
def test_a_signal_after_the_last_step_loses_nothing(vila, records, tmp_path, monkeypatch, moment):
    """The weights are there: they are kept, and the run stops when that is recorded."""
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def save(*args):
        stop()
        return save_delta(*args)

    monkeypatch.setattr("benchmark.training.train.save_delta", save if moment == "weights" else save_delta)
    with raising():
        run(vila, records, tmp_path, on_progress=stop_at(6, stop if moment == "last step" else lambda: None))
        assert (tmp_path / "delta.safetensors").is_file()
        with pytest.raises(Terminated):
            check()


def cut_off(vila, records, out, spec):
    """Leave the states of steps 4 and 6."""
    with pytest.raises(Killed):
        run(vila, records, out, spec, on_progress=stop_at(8, kill), checkpoint_steps=2)
    states = sorted((out / "checkpoint").iterdir())
    assert [path.name for path in states] == ["step-000000004", "step-000000006"]
    return states


@pytest.mark.slow
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt", "method0.pt", "train.jsonl", "digests.json"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(vila, records, tmp_path, capsys, file):
    spec = cell(method="spider", epochs=3)
    whole, rows = run(vila, records, tmp_path / "whole", spec)
    newest = cut_off(vila, records, tmp_path / "cut", spec)[1] / file
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    seen = []
    capsys.readouterr()
    delta, resumed = run(vila, records, tmp_path / "cut", spec, on_progress=lambda step, *_: seen.append(step))
    said = capsys.readouterr().out
    assert "warning: the training state" in said and "training goes on from step-000000004" in said
    assert file in said or file == "digests.json"  # a byte of a file's digest makes that file the damaged one
    assert seen == [5, 6, 7, 8, 9]
    assert same(whole, delta) and resumed == rows


@pytest.mark.slow
def test_two_damaged_states_start_the_training_again(vila, records, tmp_path, capsys):
    spec = cell(method="spider", epochs=3)
    whole, rows = run(vila, records, tmp_path / "whole", spec)
    older, newer = cut_off(vila, records, tmp_path / "cut", spec)
    (older / "scheduler.pt").unlink()
    (newer / "weights.safetensors").write_bytes((newer / "weights.safetensors").read_bytes()[:-1])
    delta, resumed = run(vila, records, tmp_path / "cut", spec)
    said = capsys.readouterr().out
    assert said.count("warning: the training state") == 2 and "scheduler.pt: No such file" in said
    assert "training starts again" in said
    assert same(whole, delta) and resumed == rows


@pytest.mark.slow
def test_the_state_is_saved_by_the_clock(vila, records, tmp_path):
    with pytest.raises(Killed):
        run(vila, records, tmp_path, on_progress=stop_at(4, kill), checkpoint_minutes=0.0)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == ["step-000000002", "step-000000003"]


@pytest.mark.slow
def test_a_state_of_other_settings_is_not_used(vila, records, tmp_path):
    with pytest.raises(Killed):
        run(vila, records, tmp_path, cell(seed=1), on_progress=stop_at(4, kill), checkpoint_steps=2)
    whole, rows = run(vila, records, tmp_path / "whole", cell(seed=2))
    delta, again = run(vila, records, tmp_path, cell(seed=2), checkpoint_steps=2)
    assert same(whole, delta) and rows == again


# ---- failures


@pytest.mark.slow
def test_a_non_finite_loss_stops_with_step_and_items(vila, records, tmp_path):
    with torch.no_grad():
        vila.model.llm.lm_head.weight.fill_(float("inf"))
    with pytest.raises(TrainingFailed, match="loss is nan at step 1, in the batch of items item") as error:
        run(vila, records, tmp_path)
    assert all(f"item{i}" in str(error.value) for i in permutation(0, 0, 10)[:4])
    assert not (tmp_path / "delta.safetensors").exists()


class Explodes(Method):
    def after_step(self, shards):
        for shard in shards:
            shard.weight.fill_(1e38)


@pytest.mark.slow
def test_a_diverged_model_stops_the_cell(vila, records, tmp_path):
    with pytest.raises(TrainingFailed, match="at step 2, in the batch of items"):
        run(vila, records, tmp_path, method=Explodes(NoParams(), 0))


class Overflows(Method):
    """Everything is right up to one step, whose update overflows."""

    at = 0
    stateless = True  # its count is not resumed

    def before_step(self, shards):
        self.step = getattr(self, "step", 0) + 1

    def after_step(self, shards):
        if self.step == self.at:
            for shard in shards:
                shard.weight[-1:] = float("inf")


@pytest.mark.slow
@pytest.mark.parametrize(("at", "saved"), [(4, 2), (6, 4)], ids=["a step that is saved", "the last step"])
def test_weights_that_overflow_are_neither_saved_nor_scored(vila, records, tmp_path, monkeypatch, at, saved):
    """Ten records in batches of four are three steps an epoch, six in all; a state is saved every two."""
    monkeypatch.setattr(Overflows, "at", at)
    with pytest.raises(TrainingFailed, match=f"largest weight is inf at step {at}, in the batch of items item") as stop:
        run(vila, records, tmp_path, method=Overflows(NoParams(), 0), checkpoint_steps=2)
    assert f"The last good state is that of step {saved}, in {tmp_path / 'checkpoint'}" in str(stop.value)
    assert not (tmp_path / "delta.safetensors").exists()
    assert max(path.name for path in (tmp_path / "checkpoint").glob("step-*")) == f"step-{saved:09}"
    monkeypatch.setattr(Overflows, "at", 0)
    run(vila, records, tmp_path, method=Overflows(NoParams(), 0), checkpoint_steps=2)


@pytest.mark.slow
def test_without_a_state_the_message_says_so(vila, records, tmp_path):
    with pytest.raises(TrainingFailed, match="No state was saved before"):
        run(vila, records, tmp_path, method=Explodes(NoParams(), 0))


def test_a_delta_with_overflown_numbers_is_not_written(vila, tmp_path):
    base = {"weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"1 tuned tensors hold numbers that are not finite \(first: weight\)"):
        save_delta(tmp_path / "delta.safetensors", {"weight": torch.tensor([1.0, float("nan"), 0])}, base, base, "d")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_items_longer_than_the_maximum_are_counted(vila, records, tmp_path, capfd):
    def long(name, prompt, target):
        return Record(name, "toy", "train", None, prompt, target, (target,), None, name, {})

    _, rows = run(vila, [*records, long("tail", "what?", "red " * 300), long("other", "what?", "a " * 400)], tmp_path)
    assert rows[0]["items_cut"] == 2 and "items_cut" not in rows[1]
    assert "2 of 12 items are longer than model.max_length=256 tokens" in capfd.readouterr().out
    with pytest.raises(UserError, match="2 of 12 items cannot be used. The first: .*one of toy: max_length=256 cuts"):
        run(vila, [*records, *(long(name, "what? " * 300, "red") for name in ("one", "two"))], tmp_path / "second")


def test_bad_settings_and_records(vila, records, tmp_path):
    with pytest.raises(UserError, match=r"micro_batch_size=3 on 1 process.* does not divide train.batch_size=4"):
        run(vila, records, tmp_path, cell(micro_batch_size=3))
    with pytest.raises(UserError, match="no training records"):
        run(vila, [], tmp_path)
    lost = Record("gone", "toy", "train", tmp_path / "gone.png", "what?", "red", (), None, "g", {})
    with pytest.raises(UserError, match="1 of 9 images cannot be read:\n.*gone.png"):
        run(vila, [*records, lost], tmp_path)
    blank = Record("blank", "toy", "train", None, "what?", None, (), None, "g", {})
    with pytest.raises(UserError, match="Item blank of toy has no target"):
        run(vila, [blank], tmp_path)
    long = Record("long", "toy", "train", None, "what? " * 300, "red", (), None, "g", {})
    with pytest.raises(UserError, match="Item long of toy: max_length=256 cuts off"):
        run(vila, [long], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write .*RESULTS=dir"):
        run(vila, records, tmp_path / "file" / "cell")
