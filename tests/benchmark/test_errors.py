"""A GPU that is full is one message that says what may fit, whichever process met it."""

from __future__ import annotations

import contextlib
import json

import pytest

from benchmark import launch, ranks, signals
from benchmark.errors import UserError, counted, did_you_mean, explained
from benchmark.store import Store
from benchmark.worker import Worker


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


FULL = OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def full(*_, **__):
    raise FULL


def test_only_a_full_gpu_is_explained():
    other = ValueError("x")
    assert explained(other) is other
    told = explained(FULL)
    assert isinstance(told, UserError) and told.__cause__ is FULL
    assert str(told).startswith("The GPU has too little memory (CUDA out of memory. Tried to allocate 20.00 MiB.). ")


def test_a_process_of_several_notes_it_for_the_one_that_started_all(tmp_path, monkeypatch):
    for name in ("read_cell", "read_lock", "_prepare", "_watch"):
        monkeypatch.setattr(ranks, name, lambda *_: None)
    monkeypatch.setattr(ranks, "_train", full)
    monkeypatch.setattr(ranks.signals, "PREEMPTING", ())
    assert ranks.main(tmp_path, "train") == 1
    with pytest.raises(UserError, match="train.gradient_checkpointing=true or a smaller train.micro_batch_size"):
        launch._raise(tmp_path, 1, tmp_path / "train.log")


@pytest.mark.parametrize(("outcomes", "code", "expected"), [
    # One fails while the others load or answer: torchrun tells them to stop, which is no preemption.
    ([("Preempted", ""), ("RuntimeError", "RuntimeError: CUDA error")], 1, "CUDA error"),
    ([("Preempted", "")], 1, "killed, the log says"),  # the other was killed and noted nothing
    ([("Preempted", ""), ("RuntimeError", "RuntimeError: x")], 0, "RuntimeError: x"),
])
def test_what_one_process_failed_at_is_not_a_preemption_of_the_others(outcomes, code, expected, tmp_path):
    (tmp_path / "train.log").write_text("killed, the log says")
    for rank, (kind, message) in enumerate(outcomes):
        (tmp_path / launch.OUTCOME.format(rank)).write_text(json.dumps({"kind": kind, "message": message}))
    with pytest.raises(RuntimeError, match=expected):
        launch._raise(tmp_path, code, tmp_path / "train.log")


@pytest.mark.parametrize(("message", "killed"), [
    ("RuntimeError: Read error: Connection reset by peer.", True), ("RuntimeError: Process 0 waited in vain", True),
    ("RuntimeError: CUDA error: an illegal memory access", False),  # torchrun kills the others, which is no news
])
def test_a_process_that_left_no_word_is_named_if_no_other_knows_more(message, killed, tmp_path):
    (tmp_path / "train.log").write_text("log")
    outcome = json.dumps({"kind": "RuntimeError", "message": message})
    (tmp_path / launch.OUTCOME.format(0)).write_text(outcome)
    with pytest.raises(RuntimeError) as caught:
        launch._raise(tmp_path, 1, tmp_path / "train.log", 2)
    assert message in str(caught.value)
    assert ("process 1 of 2 was killed" in str(caught.value)) == killed


def test_a_preemption_of_all_is_one(tmp_path):
    for rank in range(2):
        (tmp_path / launch.OUTCOME.format(rank)).write_text(json.dumps({"kind": "Preempted", "message": "saved"}))
    with pytest.raises(signals.Preempted, match="saved"):
        launch._raise(tmp_path, 0, tmp_path / "train.log")


def test_a_worker_calls_it_a_users_mistake(tmp_path, monkeypatch):
    worker = Worker(Store(tmp_path))
    monkeypatch.setattr(worker, "_load", full)
    for name in ("lock", "missing", "folder", "check_writable", "finish"):
        monkeypatch.setattr(worker._store, name, lambda *_: ["train"])
    monkeypatch.setattr(worker._store, "lock", lambda cell: contextlib.nullcontext())
    failure = worker.run(type("Cell", (), {"engine": "single", "datasets": ()})(), None, None, None)
    assert failure.user and "says what fits" in failure.message


@pytest.mark.parametrize(
    ("value", "hint"),
    [("lora", ""), ("spyder", "spider"), ("llava", "llava_pocket"), ("METHOD", "METHODS"), ("xx", "")],
)
def test_only_a_slip_or_a_beginning_is_a_guess(value, hint):
    said = did_you_mean(value, ["tailor", "spider", "llava_pocket", "METHODS", "xxlarge"])
    assert ("Did you mean" in said) == bool(hint) and (not hint or f"Did you mean {hint!r}?" in said)


def test_a_number_and_its_word():
    assert [counted(n, "cell") for n in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]


def test_readers_that_give_nothing_are_one_message_with_the_room_in_shared_memory():
    told = explained(RuntimeError("DataLoader timed out after 30 seconds"))
    assert isinstance(told, UserError)
    for words in ("timed out after 30 seconds", "/dev/shm", "--shm-size"):
        assert words in str(told)
    other = RuntimeError("something else")
    assert explained(other) is other
