"""Processes that read images ahead and die, hang or find /dev/shm full: the training ends and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.multiprocess.small_world import cell, folder_of

pytestmark = pytest.mark.slow
PROGRAM = """
import os, sys, time
from pathlib import Path
from benchmark.models import batch, loading
from benchmark.running import endings, worker
from benchmark.training import train
from benchmark.store.cells import read_cell

batch.FEATURE_BYTES = 0  # as with 10,000 large images: they are read while the training goes on
train.READ_SECONDS = 5
folder, trouble = Path(sys.argv[1]), sys.argv[2]
cell, parent, read = read_cell(folder), os.getpid(), batch.open_image

def told(step, steps, row):
    if step == 2 and trouble == "dies":
        for child in Path(f"/proc/self/task/{parent}/children").read_text().split():
            os.kill(int(child), 9)

def hangs(*arguments):  # as on a network disk that no longer answers
    if trouble == "hangs" and os.getpid() != parent:
        time.sleep(600)
    return read(*arguments)

batch.open_image = hangs

try:
    records = worker.Worker(None).training_records(cell)
    train.train(cell, loading.load_model(cell.model, cell.dtype, "cpu"), records, worker.method_of(cell), folder, told)
except Exception as error:
    ending = endings.of_error(error)
    print(ending.how.value, ending.message)
"""


def outcome(world: Path, folder: Path, trouble: str, *before: str) -> str:
    """Return how a training ends whose readers die after the second step, hang, or have no trouble of their own."""
    spec = cell(world)
    spec = replace(spec, engine="single", processes=0, train=replace(spec.train, epochs=50))
    folder = folder_of(folder / "cell", spec)
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [*before, sys.executable, str(folder / "program.py"), str(folder), trouble], capture_output=True, text=True,
        timeout=120, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, stdin=subprocess.DEVNULL,
    )
    return done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("trouble", "reason"), [("dies", "DataLoader worker (pid"), ("hangs", "timed out after 5 seconds")]
)
def test_a_reader_that_dies_or_hangs_ends_the_training_with_the_reason(world, tmp_path, trouble, reason):
    said = outcome(world, tmp_path, trouble)
    assert "refused The processes that read images ahead stopped or gave nothing (" in said and reason in said


@pytest.mark.parametrize("size", ["32k", "256k"])  # too small for the readers' locks, or for their images
def test_a_full_dev_shm_ends_the_training_with_the_reason(world, tmp_path, size):
    """As in a container with a small one."""
    small = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("mounting needs root")
    said = outcome(world, tmp_path, "", *small)
    assert "refused The processes that read images ahead stopped or gave nothing (" in said
    assert "/dev/shm has 0 of 0 MiB free" in said, said
    assert "docker run --shm-size=8g" in said
