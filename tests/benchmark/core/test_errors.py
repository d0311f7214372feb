"""A GPU that is full is one message that says what may fit, whichever process met it."""

from __future__ import annotations

import contextlib

import pytest

from benchmark.core.errors import UserError, counted, did_you_mean, explained
from benchmark.running import rank
from benchmark.running.endings import How, noted
from benchmark.running.worker import Worker
from benchmark.store.cells import Store


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
        monkeypatch.setattr(rank, name, lambda *_: None)
    monkeypatch.setattr(rank, "_train", full)
    monkeypatch.setattr(rank.signals, "PREEMPTING", ())
    assert rank.main(tmp_path, "train") == 1
    (ending,) = noted(tmp_path).values()
    assert ending.how is How.REFUSED
    assert "train.gradient_checkpointing=true or a smaller train.micro_batch_size" in ending.message


def test_a_worker_calls_it_a_users_mistake(tmp_path, monkeypatch):
    worker = Worker(Store(tmp_path))
    monkeypatch.setattr(worker, "_load", full)
    for name in ("lock", "missing", "folder", "check_writable", "finish"):
        monkeypatch.setattr(worker._store, name, lambda *_: ["train"])
    monkeypatch.setattr(worker._store, "lock", lambda cell: contextlib.nullcontext())
    failure = worker.run(type("Cell", (), {"engine": "single", "datasets": (), "train": object()})(), None, None, None)
    assert failure.user and "To see what fits, run plan" in failure.message


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


@pytest.mark.parametrize("module", ["torch.utils.data.dataloader", "urllib3"])
@pytest.mark.parametrize(("error", "reason"), [
    ("ConnectionResetError(104, 'Connection reset by peer')", "[Errno 104] Connection reset"),
    ("EOFError()", "one of them ended in the middle of an image"),
])
def test_a_reader_that_dies_while_it_passes_an_image_on_is_explained(module, error, reason):
    """Then the pipe breaks before torch sees that the process has ended."""
    space = {"__name__": module}
    exec(f"def read():\n    raise {error}", space)
    with pytest.raises((ConnectionResetError, EOFError)) as caught:
        space["read"]()
    told = explained(caught.value)
    if module == "urllib3":
        assert told is caught.value
    else:
        assert isinstance(told, UserError) and f"stopped or gave nothing ({reason}" in str(told)
