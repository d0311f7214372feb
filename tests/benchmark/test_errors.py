"""A GPU that is full is one message that says what may fit, whichever process met it."""

from __future__ import annotations

import contextlib

import pytest

from benchmark import launch, ranks
from benchmark.errors import UserError, explained
from benchmark.store import Store
from benchmark.worker import Worker


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


FULL = OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def full(*_):
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


def test_a_worker_calls_it_a_users_mistake(tmp_path, monkeypatch):
    worker = Worker(Store(tmp_path))
    monkeypatch.setattr(worker, "_load", full)
    for name in ("lock", "missing", "folder", "check_writable", "finish"):
        monkeypatch.setattr(worker._store, name, lambda *_: ["train"])
    monkeypatch.setattr(worker._store, "lock", lambda cell: contextlib.nullcontext())
    failure = worker.run(type("Cell", (), {"engine": "single"})(), None, None, None)
    assert failure.user and "says what fits" in failure.message
