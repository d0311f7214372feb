"""Processes that read images ahead and die, hang or find /dev/shm full: the training ends and says so."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.core import signals
from benchmark.models import batch, loading
from benchmark.running import endings, worker
from benchmark.store.cells import read_cell
from benchmark.training import train as training
from benchmark.training import trainer
from tests.multiprocess.launch import context
from tests.multiprocess.small_world import cell, folder_of

pytestmark = pytest.mark.slow
NEW_MOUNTS = 0x20000  # CLONE_NEWNS of unshare(2), which Python has from 3.12 on


def train_in_trouble(folder: Path, trouble: str, size: str | None) -> None:
    """Train a cell in a process of its own, and write to a file how that ended.

    Args:
        folder: the cell's.
        trouble: "dies" (its readers, after the second step), "hangs" (they do), or "".
        size: of /dev/shm; None for the machine's.
    """
    multiprocessing.set_start_method(None, force=True)  # that of a program, not of its fork server
    if size is not None:  # as in a container with a small one
        assert ctypes.CDLL(None).unshare(NEW_MOUNTS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", "/dev/shm"], check=True)
    output = os.open(folder / "output", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(output, stream)
    batch.FEATURE_BYTES = 0  # as with 10,000 large images: they are read while the training goes on
    trainer.READ_SECONDS = 5
    spec, parent, read = read_cell(folder), os.getpid(), batch.open_image

    def told(step, steps, row):
        if step == 2 and trouble == "dies":
            for child in Path(f"/proc/self/task/{parent}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)

    def hangs(*arguments):  # as on a network disk that no longer answers
        if trouble == "hangs" and os.getpid() != parent:
            time.sleep(600)
        return read(*arguments)

    batch.open_image = hangs
    try:
        records = worker.Worker(None).training_records(spec)
        model = loading.load_model(spec.model, spec.dtype, "cpu")
        with signals.children_watched():
            training.train(spec, model, records, worker.method_of(spec), folder, told)
    except Exception as error:
        ending = endings.of_error(error)
        print(ending.how.value, ending.message, flush=True)


def outcome(world: Path, folder: Path, trouble: str, size: str | None = None) -> str:
    """Return how a training ends whose readers die after the second step, hang, or have no trouble of their own."""
    spec = cell(world)
    spec = replace(spec, engine="single", processes=0, train=replace(spec.train, epochs=50))
    folder = folder_of(folder / "cell", spec)
    process = context.Process(target=train_in_trouble, args=(folder, trouble, size))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "still running"
    return (folder / "output").read_text()


@pytest.mark.parametrize(("trouble", "reasons"), [
    # Which of them depends on what the reader was doing.
    ("dies", ("DataLoader worker (pid", "one of them ended in the middle of an image", "[Errno 104]")),
    ("hangs", ("DataLoader timed out after 5 seconds",)),
])
def test_a_reader_that_dies_or_hangs_ends_the_training_with_the_reason(world, tmp_path, trouble, reasons):
    said = outcome(world, tmp_path, trouble)
    told = "refused The processes that read images ahead stopped or gave nothing"
    assert any(f"{told} ({reason}" in said for reason in reasons), said


@pytest.mark.parametrize("size", ["32k", "256k"])  # too small for the readers' locks, or for their images
def test_a_full_dev_shm_ends_the_training_with_the_reason(world, tmp_path, size):
    small = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", f"size={size}", "none", "/dev/shm"]
    if not shutil.which("unshare") or subprocess.run(small, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    said = outcome(world, tmp_path, "", size)
    assert "refused The processes that read images ahead stopped or gave nothing (" in said
    assert "/dev/shm has 0 of 0 MiB free" in said, said
    assert "docker run --shm-size=8g" in said
