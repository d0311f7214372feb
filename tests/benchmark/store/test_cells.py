"""Cell folders: state of stages, locks and their take-over, checks before anything is computed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.config.request import request
from benchmark.core.errors import Locked, UserError
from benchmark.spec import CellSpec
from benchmark.store import cells as store_module
from benchmark.store.cells import Store, read_cell, short_lock
from benchmark.store.keys import Keys

KEYS = Keys("t1", {"gqa": "g1"}, {"gqa": "s1"}, "m1")
FILES = {
    "train": "delta.safetensors", "generate/gqa": "answers/gqa.jsonl", "score/gqa": "items/gqa.jsonl.gz",
    "summary": "scores.json",
}


@pytest.fixture
def cell() -> CellSpec:
    return request(["method=spider", "model=vila_pocket", "dataset=iconqa"]).cells[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def finish(store: Store, cell: CellSpec, keys: Keys) -> None:
    store.begin(cell)
    for stage, key in keys.stages.items():
        store.start_stage(cell, stage, key)
        path = store.folder(cell) / FILES[stage]
        path.parent.mkdir(exist_ok=True)
        path.write_text(key)
        store.finish_stage(cell, stage, key, 1.5)
    (store.folder(cell) / "provenance.json").write_text("{}")
    store.finish(cell, "done")


def test_a_folder_that_an_older_version_named_is_found_by_its_digits(store):
    cell = request(["method=spider", "model=vila_pocket", "dataset=iconqa", "train.epochs=2"]).cells[0]
    finish(store, cell, KEYS)
    new = store.folder(cell)
    old = new.with_name(new.name.replace("-epochs2", ""))
    new.rename(old)
    assert new != old and store.folder(cell) == old and store.missing(cell, KEYS) == []
    assert Store(store.root).find(new.name) == old  # by whichever name a note has
    with store.lock(cell):
        assert (old / "lock").is_file() and not new.exists()
    for name in (f"vila_pocket-coco-spider-s0-{old.name[-8:]}", f"vila_pocket-iconqa-spider-s1-{old.name[-8:]}"):
        old.rename(old := old.with_name(name))
        assert store.folder(cell) == new  # the same digits are not enough


def test_a_new_cell_misses_everything_and_a_finished_one_nothing(store, cell):
    assert store.missing(cell, KEYS) == list(FILES)
    finish(store, cell, KEYS)
    assert store.missing(cell, KEYS) == []
    folder = store.folder(cell)
    assert store.seconds(folder) == dict.fromkeys(FILES, 1.5)
    assert read_cell(folder) == cell
    status = store.status(folder)
    assert status["state"] == "done" and status["about"]["method"] == "spider"


def test_a_cell_that_was_killed_before_its_provenance_is_summarised_again(store, cell):
    finish(store, cell, KEYS)
    (store.folder(cell) / "provenance.json").unlink()
    assert store.missing(cell, KEYS) == ["summary"]


def test_a_stage_that_is_stopped_and_goes_on_has_the_time_of_all_its_runs(store, cell):
    store.begin(cell)
    assert store.start_stage(cell, "train", "t1") == 0.0
    store.stop_stage(cell, "train", 20.0)
    assert store.start_stage(cell, "train", "t1") == 20.0
    store.stop_stage(cell, "train", 23.5)
    assert store.start_stage(cell, "train", "t1") == 23.5
    assert store.start_stage(cell, "train", "t2") == 0.0  # of another key: from nothing


@pytest.mark.parametrize("stage", FILES)
def test_a_stage_without_its_file_is_missing(store, cell, stage):
    finish(store, cell, KEYS)
    (store.folder(cell) / FILES[stage]).unlink()
    assert store.missing(cell, KEYS) == [stage]


def test_a_stage_with_another_key_is_missing_and_its_old_files_go(store, cell):
    finish(store, cell, KEYS)
    folder = store.folder(cell)
    (folder / "checkpoint").mkdir()
    newer = Keys("t1", {"gqa": "g2"}, {"gqa": "s2"}, "m2")
    assert store.missing(cell, newer) == ["generate/gqa", "score/gqa", "summary"]
    store.start_stage(cell, "generate/gqa", "g2")
    assert not (folder / "answers" / "gqa.jsonl").exists()
    assert (folder / "delta.safetensors").exists() and (folder / "checkpoint").exists()
    assert store.missing(cell, newer) == ["generate/gqa", "score/gqa", "summary"]
    store.start_stage(cell, "train", "t2")
    assert not (folder / "delta.safetensors").exists() and not (folder / "checkpoint").exists()


def test_a_stage_that_was_cut_off_keeps_its_files_to_resume(store, cell):
    store.begin(cell)
    store.start_stage(cell, "generate/gqa", "g1")
    answers = store.folder(cell) / "answers" / "gqa.jsonl"
    answers.parent.mkdir()
    answers.write_text("half of it")
    assert "generate/gqa" in store.missing(cell, KEYS)  # the file alone proves nothing
    store.start_stage(cell, "generate/gqa", "g1")
    assert answers.read_text() == "half of it"


def test_a_cell_that_only_answers_in_another_way_takes_the_weights(store, cell):
    shown, other = (request(["method=spider", "model=vila_pocket", "dataset=iconqa", item]).cells[0]
                    for item in ("eval.examples=1", "seed=1"))
    assert store.trained(shown, "t1") is None
    finish(store, cell, KEYS)
    assert store.trained(cell, "t1") is None  # a cell is no source of its own
    assert store.trained(shown, "t2") is None and store.trained(other, "t1") is None
    source, folder = store.folder(cell), store.folder(shown)
    store.begin(shown)
    store.start_stage(shown, "train", "t1")
    assert store.take_weights(shown, "t2") is None and not (folder / "delta.safetensors").exists()
    assert store.take_weights(shown, "t1") == 1.5
    assert (folder / "delta.safetensors").samefile(source / "delta.safetensors")  # no room taken twice
    store.finish_stage(shown, "train", "t1", 1.5)
    store.start_stage(cell, "train", "t2")  # the source is trained anew
    assert (folder / "delta.safetensors").read_text() == "t1" and sorted(folder.glob(".*")) == []


def test_weights_that_are_not_on_this_machine_are_not_taken(store, cell):
    shown = request(["method=spider", "model=vila_pocket", "dataset=iconqa", "eval.examples=1"]).cells[0]
    finish(store, cell, KEYS)
    (store.folder(cell) / "delta.safetensors").unlink()
    store.finish_elsewhere(cell, KEYS, {})
    assert store.missing(cell, KEYS) == [] and store.trained(shown, "t1") is None


def test_where_files_cannot_be_linked_weights_are_copied(store, cell, monkeypatch):
    shown = request(["method=spider", "model=vila_pocket", "dataset=iconqa", "eval.examples=1"]).cells[0]
    finish(store, cell, KEYS)
    store.begin(shown)

    def refused(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    assert store.take_weights(shown, "t1") == 1.5
    assert (store.folder(shown) / "delta.safetensors").read_text() == "t1"
    assert not (store.folder(shown) / "delta.safetensors").samefile(store.folder(cell) / "delta.safetensors")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stages": {}}'])
def test_a_damaged_record_means_that_nothing_is_done(store, cell, content):
    finish(store, cell, KEYS)
    (store.folder(cell) / "status.json").write_text(content)
    assert store.missing(cell, KEYS) == list(FILES)


def test_a_folder_that_is_no_cell_is_refused(store, cell):
    finish(store, cell, KEYS)
    (store.folder(cell) / "cell.yaml").write_text("profile: 3\n")
    with pytest.raises(UserError, match="faults in the configuration"):
        read_cell(store.folder(cell))
    with pytest.raises(UserError, match="Cannot read"):
        read_cell(store.cells / "nothing")


def test_writability_is_checked_with_space(store, monkeypatch, tmp_path):
    store.check_writable(1.0)
    assert list(store.cells.iterdir()) == []  # the probe is gone
    with pytest.raises(UserError, match="MB free, but the run needs about"):
        store.check_writable(1e12)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="RESULTS=dir"):
        Store(tmp_path / "file" / "inside").check_writable()


# -- locks --------------------------------------------------------------------------------------------------------


def owner(**changes) -> str:
    return json.dumps({**store_module._owner(), **changes})


def test_a_lock_names_its_owner_and_goes(store, cell):
    path = store.folder(cell) / "lock"
    with store.lock(cell):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(Locked, match=f"process {os.getpid()} on "), store.lock(cell):
            pass
        assert path.exists()  # the refused attempt did not take it away
    assert not path.exists()
    with pytest.raises(ValueError), store.lock(cell):
        raise ValueError
    assert not path.exists()


def test_the_lock_of_a_dead_process_is_taken_over(store, cell):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store.folder(cell).mkdir(parents=True)
    path = store.folder(cell) / "lock"
    path.write_text(owner(pid=dead.pid, started="1"))
    with store.lock(cell):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_later_process_with_the_same_number_does_not_keep_a_lock(store, cell):
    store.folder(cell).mkdir(parents=True)
    (store.folder(cell) / "lock").write_text(owner(started="1"))
    with store.lock(cell):
        pass


def test_a_lock_of_another_host_counts_as_long_as_it_is_touched(store, cell):
    store.folder(cell).mkdir(parents=True)
    path = store.folder(cell) / "lock"
    path.write_text(owner(host="elsewhere"))
    with pytest.raises(Locked, match="on elsewhere"), store.lock(cell):
        pass
    old = time.time() - store_module.STALE_SECONDS - 1
    os.utime(path, (old, old))
    with store.lock(cell):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_half_a_lock_is_no_lock(store, cell, content):
    store.folder(cell).mkdir(parents=True)
    (store.folder(cell) / "lock").write_text(content)
    with store.lock(cell):
        pass


def test_a_held_lock_is_touched(store, cell, monkeypatch):
    monkeypatch.setattr(store_module, "HEARTBEAT_SECONDS", 0.01)
    with store.lock(cell):
        path = store.folder(cell) / "lock"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def _compete(root: str, cell: CellSpec, start, results) -> None:
    start.wait()
    try:
        with Store(Path(root)).lock(cell):
            results.put("got it")
            time.sleep(1.0)
    except Locked:
        results.put("refused")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_of_several_processes_one_gets_a_stale_lock(store, cell):
    store.folder(cell).mkdir(parents=True)
    (store.folder(cell) / "lock").write_text(owner(started="1"))
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [context.Process(target=_compete, args=(str(store.root), cell, start, results)) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    found = sorted(results.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert found == ["got it"] + ["refused"] * 5


def test_cells_of_another_schema_version_are_neither_listed_nor_found(store):
    store.root.mkdir()
    (store.root / "schema").write_text("99")
    with pytest.raises(UserError, match="schema version 99, this program reads and writes version 1"):
        store.all_cells()
    with pytest.raises(UserError, match="schema version 99"):
        store.find("anything")


def test_a_beginning_without_settings_is_the_cell_that_has_none(store):
    plain, shown = (request(["method=zero_shot", "model=vila_pocket", "dataset=iconqa", *more]).cells[0]
                    for more in ([], ["eval.examples=1"]))
    for one in (plain, shown):
        finish(store, one, KEYS)
    assert store.find("vila_pocket-zero_shot") == store.folder(plain)
    assert store.find("vila_pocket-zero_shot-eval") == store.folder(shown)
    with pytest.raises(UserError, match="2 cells begin with 'vila_pocket-zero'"):
        store.find("vila_pocket-zero")
    with pytest.raises(UserError, match="No cell"):
        store.find("vila_pocket-zero_shotx")


def test_a_file_system_without_locks_is_named(store, cell, monkeypatch, tmp_path):
    def flock(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    reason = rf"file system of {store.cells}/\.lock cannot lock files .flock: No locks"
    with pytest.raises(UserError, match=reason), store.lock(cell):
        raise AssertionError("held without a lock")
    reason = r"Cannot write .*gone/\.lock: No such file.*data_root=DIR"
    with pytest.raises(UserError, match=reason), short_lock(tmp_path / "gone" / ".lock"):
        raise AssertionError("held without a lock")
