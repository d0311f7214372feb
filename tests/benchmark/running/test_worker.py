"""What a worker refuses before it starts a stage, and what it reports during one."""

from __future__ import annotations

import contextlib
import signal
from types import SimpleNamespace

import pytest

from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.core.progress import read_image
from benchmark.running import worker
from benchmark.store.cells import Store
from benchmark.store.keys import Keys


def test_a_missing_java_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    """CIDEr needs it; without the check the cell trains and answers first."""
    def none():
        raise UserError("No Java found")

    began = []
    monkeypatch.setattr(worker, "find_java", none)
    monkeypatch.setattr(worker.Worker, "_load", lambda self, cell: began.append("load"))
    monkeypatch.setattr(worker.Worker, "stage", lambda self, stage, *rest: began.append(stage))
    cell = request(["method=full_ft", "model=llava_pocket", "dataset=coco"]).cells[0]
    names = [dataset.id for dataset in cell.datasets]
    keys = Keys("t", dict.fromkeys(names, "g"), dict.fromkeys(names, "s"), "y")
    store = Store(tmp_path)
    store.check_writable()
    result = worker.Worker(store).run(cell, keys, (), lambda *event: None)
    assert isinstance(result, worker.Failure) and result.user and result.message == "No Java found" and not began


def test_a_reader_that_dies_late_does_not_hide_why_the_cell_failed(tmp_path, monkeypatch):
    """Its pipe breaks first. The handler that torch set during the stage raised while the failure was recorded."""
    def dies(*_):
        raise RuntimeError("a reader died")

    def stage(*_):
        signal.signal(signal.SIGCHLD, dies)
        raise UserError("its pipe broke")

    own, finish = worker.Worker(Store(tmp_path)), Store.finish
    monkeypatch.setattr(worker.Worker, "_load", lambda *_, **__: None)
    monkeypatch.setattr(worker.Worker, "stage", stage)
    monkeypatch.setattr(worker.signals, "_of_children", [])
    monkeypatch.setattr(Store, "finish", lambda *told: signal.raise_signal(signal.SIGCHLD) or finish(*told))
    cell = request(["method=full_ft", "model=llava_pocket", "dataset=iconqa"]).cells[0]
    names = [dataset.id for dataset in cell.datasets]
    result = own.run(cell, Keys("t", dict.fromkeys(names, "g"), dict.fromkeys(names, "s"), "y"), (), lambda *_: None)
    assert isinstance(result, worker.Failure) and result.message == "its pipe broke"


def test_images_that_a_stage_reads_before_its_first_step_are_reported(tmp_path, monkeypatch):
    """The tower's features of 10,000 images take minutes, in which the step stood at 0 of 1."""
    def reads(*_, **__):
        read_image(640, 10_000)

    cell = request(["method=full_ft", "model=llava_pocket", "dataset=iconqa"]).cells[0]
    own, told = worker.Worker(Store(tmp_path)), []
    monkeypatch.setattr(worker.Worker, "base", lambda *_, **__: contextlib.nullcontext({}))
    monkeypatch.setattr(worker.Worker, "_load", lambda *_, **__: SimpleNamespace(model=None, digest=""))
    monkeypatch.setattr(worker.Worker, "training_records", lambda *_: [])
    monkeypatch.setattr(worker.Worker, "records", lambda *_: [])
    for name in (
        "benchmark.training.train.train", "benchmark.training.posthoc.transform",
        "benchmark.training.generate.generate",
    ):
        monkeypatch.setattr(name, reads)
    for name in ("apply_delta", "load_delta"):
        monkeypatch.setattr(f"benchmark.training.checkpoint.{name}", lambda *_: None)
    wise_ft = request(["method=wise_ft", "model=llava_pocket", "dataset=iconqa"]).cells[0]
    for stage, one, label in (
        ("train", cell, "train"), ("train", wise_ft, "train"), ("generate/gqa", cell, "generate/gqa"),
    ):
        told.clear()
        own.stage(stage, one, (cell,), lambda *report: told.append(report))
        assert told == [(stage, 0, 1, ""), (f"{label}: images", 640, 10_000, "")]
    read_image(1, 2)
    assert len(told) == 2


def test_a_model_that_a_failed_cell_has_used_is_loaded_anew(tmp_path, monkeypatch):
    """In bfloat16 its trained tensors are float32 until the training ends."""
    own = worker.Worker(Store(tmp_path))

    def fails(*_):
        raise UserError("diverged")

    def load(self, *_, **__):
        self._model = ("key", "model")

    monkeypatch.setattr(worker.Worker, "_load", load)
    monkeypatch.setattr(worker.Worker, "stage", fails)
    cell = request(["method=full_ft", "model=llava_pocket", "dataset=iconqa"]).cells[0]
    names = [dataset.id for dataset in cell.datasets]
    own.run(cell, Keys("t", dict.fromkeys(names, "g"), dict.fromkeys(names, "s"), "y"), (), lambda *_: None)
    assert own._model is None


def test_a_stopped_stage_leaves_the_time_that_it_took(tmp_path, monkeypatch):
    own, store = worker.Worker(Store(tmp_path)), Store(tmp_path)

    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker.Worker, "_load", lambda *_, **__: None)
    monkeypatch.setattr(worker.Worker, "stage", stops)
    monkeypatch.setattr(Store, "start_stage", lambda *_: 40.0)
    monkeypatch.setattr(Store, "stop_stage", lambda self, cell, stage, seconds: told.append((stage, seconds)))
    told = []
    cell = request(["method=full_ft", "model=llava_pocket", "dataset=iconqa"]).cells[0]
    names = [dataset.id for dataset in cell.datasets]
    store.begin(cell)
    with pytest.raises(KeyboardInterrupt):
        own.run(cell, Keys("t", dict.fromkeys(names, "g"), dict.fromkeys(names, "s"), "y"), (), lambda *_: None)
    assert [stage for stage, _ in told] == ["train"] and 40.0 <= told[0][1] < 60.0
