"""Delta files: exact round trip, tied to the base, every damage noticed; the state folder of a training."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from benchmark.core.errors import UserError
from benchmark.training.checkpoint import StateFolder, apply_delta, load_delta, read_metadata, save_delta, snapshot


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


@pytest.fixture
def saved(model, tmp_path):
    """A model whose first layer was tuned, its base values and its delta."""
    names = ["0.weight", "0.bias", "1.weight"]
    base = snapshot(model, names)
    with torch.no_grad():
        model[0].weight[1, 2] += 1e-6
        model[0].bias.add_(1)
    path = tmp_path / "delta.safetensors"
    assert save_delta(path, model, base, names, "b" * 64, {"note": 1}) == ["0.weight", "0.bias"]
    return path, base


def test_only_differing_tensors_are_kept_and_come_back_bitwise(model, saved):
    path, base = saved
    delta = load_delta(path, "b" * 64)
    assert set(delta) == {"0.weight", "0.bias"}
    tuned = snapshot(model, base)
    apply_delta(model, base)
    assert not torch.equal(model[0].weight, tuned["0.weight"])
    apply_delta(model, delta)
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in snapshot(model, base).items())
    assert read_metadata(path)["note"] == 1


def test_equal_content_gives_equal_bytes(model, saved, tmp_path):
    path, base = saved
    for i in range(5):
        other = tmp_path / f"{i}.safetensors"
        save_delta(other, snapshot(model, base), base, reversed(list(base)), "b" * 64, {"note": 1})
        assert other.read_bytes() == path.read_bytes()


def test_a_delta_without_differences_is_valid(model, tmp_path):
    base = snapshot(model, ["0.weight"])
    save_delta(tmp_path / "d", model, base, base, "b")
    assert load_delta(tmp_path / "d", "b") == {}


def test_the_base_must_be_the_same(saved):
    with pytest.raises(UserError, match="made from the base checkpoint bbbbbbbbbbbb, not from cccc"):
        load_delta(saved[0], "c" * 64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "truncated or corrupt"),
        (lambda data: data[:4], "truncated or corrupt"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is damaged"),
    ],
)
def test_damage_is_noticed(saved, damage, message):
    path = saved[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        load_delta(path, "b" * 64)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        load_delta(tmp_path / "delta.safetensors", "b")
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a delta that this program wrote"):
        load_delta(tmp_path / "other.safetensors", "b")


def test_a_delta_of_another_model_changes_nothing(model):
    before = snapshot(model, dict(model.named_parameters()))
    with pytest.raises(UserError, match="9.weight is unknown"):
        apply_delta(model, {"0.bias": torch.zeros(4), "9.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="0.bias has shape .5,"):
        apply_delta(model, {"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(5)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(model, before).items())


def test_saving_into_a_file_instead_of_a_folder_is_a_user_error(model, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        save_delta(tmp_path / "out" / "delta.safetensors", model, snapshot(model, []), [], "b")
    with pytest.raises(UserError, match="Cannot write"):
        StateFolder(tmp_path / "out" / "checkpoint", "f").create()


def test_state_folder_keeps_the_newest_whole_state(tmp_path):
    state = StateFolder(tmp_path / "checkpoint", "one")
    state.create()
    assert state.latest() is None
    for step in (9, 10, 11):
        with state.save(step) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "x").write_text(str(step))
    folder = state.latest()
    assert folder.name == "step-000000011" and (folder / "inner" / "x").read_text() == "11"
    assert sorted(os.listdir(state.path)) == ["step-000000010", "step-000000011"]
    with pytest.raises(KeyboardInterrupt), state.save(12) as unfinished:
        (unfinished / "x").write_text("12")
        assert "step-000000011" in os.listdir(state.path)  # it stays until the next is complete
        raise KeyboardInterrupt
    assert state.latest() == folder
    assert os.listdir(state.path) == ["step-000000011"]


def test_what_a_kill_left_of_a_state_is_no_state(tmp_path):
    """Whatever part of the deletion of a state, or of its making, was done."""
    state = StateFolder(tmp_path / "checkpoint", "one")
    state.create()
    for step in (1, 2):
        with state.save(step) as folder:
            (folder / "x").write_text(str(step))
    (state.path / "step-000000001" / "digests.json").unlink()
    (state.path / "unfinished").mkdir()
    (state.path / "stray").write_text("")
    assert state.latest().name == "step-000000002"
    with state.save(3) as folder:
        (folder / "x").write_text("3")
    assert sorted(os.listdir(state.path)) == ["step-000000002", "step-000000003"]


def test_a_state_of_other_settings_is_dropped(tmp_path):
    old = StateFolder(tmp_path / "checkpoint", "one")
    old.create()
    with old.save(3):
        pass
    assert StateFolder(old.path, "two").latest() is None
    assert list(old.path.iterdir()) == []


def test_a_full_disk_is_a_user_error(tmp_path):
    state = StateFolder(tmp_path / "checkpoint", "one")
    state.create()
    with pytest.raises(UserError, match="No space left"), state.save(1):
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="PytorchStreamWriter"), state.save(1):
        raise RuntimeError("PytorchStreamWriter failed writing file")
