"""Cells that torchrun's processes train and evaluate: the same answers as one process, exact resume, clear refusals."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.core import hosts, signals
from benchmark.core.errors import UserError
from benchmark.core.signals import Preempted
from benchmark.data import load as load_records
from benchmark.models.loading import load_model
from benchmark.running import endings, multi_process, rank
from benchmark.spec import MethodSpec
from benchmark.store import cells
from benchmark.training.generate import generate
from tests.forked import Program
from tests.multiprocess import warm
from tests.multiprocess.small_world import ICONQA, cell, folder_of

pytestmark = pytest.mark.slow


@pytest.fixture
def launchers(monkeypatch):
    """Launchers are forked with all imports done, and listed here. `trained` starts them as the program does."""
    return warm.start_warm(monkeypatch)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A cell that torchrun's processes have trained, started as the program starts them."""
    spec = cell(world)
    folder = folder_of(tmp_path_factory.mktemp("cells") / "straight", spec)
    told: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []
    multi_process.train_together(
        spec, folder, None, 6, lambda step, steps, row: told.append((step, steps)), lambda *done: read.append(done)
    )
    assert told[-1] == (6, 6) and read[-1] == (12, 12)  # every process reads all images
    return spec, folder


def test_a_method_of_ones_own_trains_on_two_processes(world, tmp_path, launchers):
    """examples/my_method.py through the program's own launcher: what its share never reaches stays at w*."""
    spec = cell(world, method=MethodSpec("examples.my_method:TopKGradient", {}))
    folder = folder_of(tmp_path / "own", spec)
    multi_process.train_together(spec, folder, None, 6, None)
    row = json.loads((folder / "train.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 6 and 0.3 < row["restored_fraction"] < 0.9 and row["rms_delta"] > 0


def test_two_processes_train_and_answer(world, trained, launchers):
    spec, folder = trained
    assert sorted(path.name for path in folder.iterdir()) == [
        "cell.yaml", "checkpoint", "delta.safetensors", "speed.json", "train.jsonl", "train.log",
    ]
    speed = json.loads((folder / "speed.json").read_text())
    assert (speed["engine"], speed["processes"], speed["steps"], speed["samples"]) == ("zero2", 2, 6, 24)
    assert 0 <= speed["share_waiting_for_data"] < 1 and speed["seconds"] > 0
    records = load_records(ICONQA, Path(spec.data_root), "test")
    ids = [record.item_id for record in records]
    answers = folder / "answers" / "iconqa.jsonl"
    told: list[tuple[int, int]] = []
    multi_process.answer_together(spec, folder, None, "iconqa", ids, lambda *done: told.append(done))
    assert told[-1] == (7, 7) and [path.name for path in answers.parent.iterdir()] == ["iconqa.jsonl"]
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["item_id"] for row in rows] == ids

    from benchmark.training.checkpoint import apply_delta, load_delta

    loaded = load_model(spec.model, "float32", "cpu")
    apply_delta(loaded.model, load_delta(folder / "delta.safetensors", loaded.digest))
    alone = folder / "alone.jsonl"
    generate(loaded, records, ICONQA, alone, spec.eval.batch_size)
    assert {row["item_id"]: row for row in rows} == {
        row["item_id"]: row for row in map(json.loads, alone.read_text().splitlines())
    }
    alone.unlink()


def test_a_stopped_training_goes_on_and_names_the_processes_it_needs(world, trained, tmp_path, launchers):
    spec, straight = trained
    folder = folder_of(tmp_path / "stopped", spec)

    def stop() -> None:
        while not (folder / "train.jsonl").is_file() or not (folder / "train.jsonl").read_text():
            time.sleep(0.05)
        (folder / multi_process.STOP).touch()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        multi_process.train_together(spec, folder, None, 6)
        stopped = False  # a fast machine may finish in the second before the processes look
    except Preempted:
        stopped = True
    thread.join()
    if stopped:
        with pytest.raises(UserError, match=r"continue with engine=zero2 and GPUS=2 \(gpus=2\), or delete"):
            multi_process.train_together(replace(spec, processes=1), folder, None, 6)
        multi_process.train_together(spec, folder, None, 6)
    one, other = (_delta(path) for path in (straight, folder))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


KILLED = r"train failed: process 1 of 2 was killed by signal 9 \(Killed\), .*; the others stopped. Run the same command"


def test_the_others_stop_when_one_process_is_killed(world, tmp_path, launchers):
    """As the system's memory killer does it: a message in seconds, not torch's half an hour of waiting."""
    spec = cell(world)
    spec = replace(spec, train=replace(spec.train, epochs=200))
    folder, killed = folder_of(tmp_path / "killed", spec), []

    def kill() -> None:
        while not (folder / "train.jsonl").is_file() or not (folder / "train.jsonl").read_text():
            time.sleep(0.05)
        killed.append(warm.children(launchers[0].pid)[1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=KILLED):
        multi_process.train_together(spec, folder, None, 600)
    thread.join(10)
    assert len(killed) == 1 and time.monotonic() - start < 120
    assert not any(path.name.startswith(("outcome", "images")) for path in folder.iterdir())


def test_the_processes_end_when_the_program_that_started_them_is_killed(world, tmp_path, launchers):
    """They would train on without anybody who waits for them, and hold their GPUs."""
    spec = cell(world)
    spec = replace(spec, train=replace(spec.train, epochs=200))
    folder, started = folder_of(tmp_path / "orphans", spec), []

    def told(*_) -> None:
        if not started:
            started.extend(warm.children(launchers[0].pid))
            launchers[0].kill()

    with pytest.raises(RuntimeError, match="train failed: .* by signal 9"):
        multi_process.train_together(spec, folder, None, 600, told)
    end = time.monotonic() + 120
    while left := [process for process in started if warm.running(process)]:
        assert time.monotonic() < end, left
        time.sleep(0.2)
    assert len(started) == 2


def test_processes_that_do_not_stop_are_killed(monkeypatch):
    for name in ("PATIENCE", "GRACE"):
        monkeypatch.setattr(multi_process, name, 0.5)
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    multi_process._end(process)
    assert process.wait(30) == -signal.SIGKILL


def test_a_log_that_another_process_holds_is_waited_for_only_so_long(world, tmp_path, monkeypatch):
    for name in ("PATIENCE", "GRACE"):
        monkeypatch.setattr(multi_process, name, 0.2)
    spec, folder = cell(world), folder_of(tmp_path / "held", cell(world))
    with open(folder / "train.log", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process has held .*train.log for 0 s. End it"):
            multi_process.train_together(spec, folder, None)


def test_images_that_processes_read_before_their_first_step_are_told(world, monkeypatch, tmp_path):
    """In training each reads all, so the slowest counts; of the answers each reads its share."""
    spec, folder = cell(world), folder_of(tmp_path / "reads", cell(world))
    program = (
        "import pathlib, sys, time; from benchmark.running import rank; folder = pathlib.Path(sys.argv[1]);"
        "rank._images_in(folder / 'images-0.json')(300, 1000); rank._images_in(folder / 'images-1.json')(900, 1000);"
        "time.sleep(2.5)"
    )
    monkeypatch.setattr(multi_process, "command", lambda *_: [sys.executable, "-c", program, str(folder)])
    trained, answered, told = [], [], []
    multi_process.train_together(spec, folder, None, 6, None, lambda *done: trained.append(done))
    multi_process.answer_together(
        spec, folder, None, "iconqa", ["a"], lambda *done: told.append(done), lambda *done: answered.append(done)
    )
    assert set(trained) == {(300, 1000)} and set(answered) == {(1200, 2000)}
    assert sorted(path.name for path in folder.iterdir()) == ["cell.yaml", "generate.log", "train.log"]


def test_a_driver_that_hangs_is_said(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(hosts, "output_of", functools.partial(hosts.output_of, seconds=0.5))
    with pytest.raises(UserError, match="nvidia-smi gave no answer in 0 s: the driver hangs"):
        hosts.gpus_in_sight(None)


def test_the_first_to_end_waits_for_the_others(tmp_path):
    """Else its leaving resets connections that they still read, and their end looks like a crash."""
    done = endings.Ending(endings.How.DONE)
    others = threading.Timer(0.5, lambda: endings.note(tmp_path, 1, done))
    endings.note(tmp_path, 0, done)
    others.start()
    start = time.monotonic()
    rank.leave_together(tmp_path, 2)
    assert 0.4 < time.monotonic() - start < 30 and endings.noted(tmp_path) == {0: done, 1: done}
    start = time.monotonic()
    rank.leave_together(tmp_path, 3, seconds=0.2)  # one died
    assert time.monotonic() - start < 30


def _delta(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "delta.safetensors")


def test_the_processes_of_a_killed_run_are_waited_for(world, monkeypatch, tmp_path):
    """Their parent was killed; they inherited the log, and with it its lock."""
    spec, folder = cell(world), folder_of(tmp_path / "orphans", cell(world))
    left = "import fcntl, sys, time; fcntl.flock(1, fcntl.LOCK_EX); print('here', flush=True); time.sleep(2)"
    with open(folder / "train.log", "w") as output:
        orphan = subprocess.Popen([sys.executable, "-c", left], stdout=output)
    while "here" not in (folder / "train.log").read_text():
        time.sleep(0.02)
    program = f"import os, sys; sys.exit(os.path.exists('/proc/{orphan.pid}/fd/1'))"
    monkeypatch.setattr(multi_process, "command", lambda *_: [sys.executable, "-c", program])
    threading.Thread(target=orphan.wait, daemon=True).start()
    multi_process.train_together(spec, folder, None)  # code 1 if the orphan still had its files open


def test_a_process_stops_when_the_program_that_started_it_was_killed(tmp_path):
    """Training then saves its state: it is told so by SIGTERM."""
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = {"host": socket.gethostname(), "pid": parent.pid, "started": cells._started(parent.pid)}
    (tmp_path / "lock").write_text(json.dumps(owner))
    watched = Program(_watched, tmp_path, owner, folder=tmp_path)
    time.sleep(3 * multi_process.POLL)
    assert watched.poll() is None
    parent.kill()
    parent.wait()
    assert watched.wait(30) == 75


def _watched(folder: Path, owner: dict[str, Any]) -> int:
    """Wait for the signal. Not in the test's own process, which the watch would kill 15 minutes later."""
    try:
        with signals.raising():
            threading.Thread(target=rank._watch, args=(folder, owner, os.getppid()), daemon=True).start()
            time.sleep(60)
    except signals.Terminated:
        return 75
    return 0


def test_commands_and_environment(world, monkeypatch):
    spec = cell(world)
    words = multi_process.command(spec, Path("/cell"), 8, "train")
    assert words[1:] == [
        "-m", "benchmark.running.torchrun", "/cell", "--standalone", "--nproc-per-node", "8",
        "-m", "benchmark.running.rank", "/cell",
        "train",
    ]
    hosts = multi_process.command(replace(spec, hostfile="hosts"), Path("/cell"), 8, "generate/coco")
    assert hosts[1:5] == ["-m", "deepspeed.launcher.runner", "--hostfile", "hosts"]
    assert hosts[-4:] == ["--module", "benchmark.running.rank", "/cell", "generate/coco"]
    gpu = replace(spec, device="cuda", processes=0)
    assert multi_process.processes_of(gpu, "3,5,6") == 3 and multi_process.processes_of(spec, None) == 2
    assert multi_process.environment(gpu, "3,5,6")["CUDA_VISIBLE_DEVICES"] == "3,5,6"
    assert multi_process.environment(replace(gpu, devices=(4, 5)), "3")["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert multi_process.environment(spec, "3")["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="nvidia-smi finds no GPU"):
        multi_process.processes_of(gpu, None)
