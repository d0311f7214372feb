"""The targets: rows that nest, drawn in parallel and alone, and words that lie near pretraining's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark.config.request import request
from benchmark.data import digest, load, subset
from benchmark.data.readers.captions import sampled
from benchmark.pocket.world import target_sets
from benchmark.pocket.world.splits import TARGETS, owner
from benchmark.pocket.world.suite import Suite
from benchmark.pocket.world.targets import FIRST, flickr_caption
from benchmark.pocket.world.upstream import scene_with
from benchmark.spec import ROOT

FEW = {"train": 30, "validation": 6, "test": 9}
FEWER = {**FEW, "train": 12}
pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def drawn(folder, counts):
    suite = Suite(dict.fromkeys(TARGETS, counts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_sets, "BLOCK", 3)  # so 30 rows are drawn by two processes, and 12 by this one
        assert not suite.complete(folder)
        suite.draw(folder, TARGETS)
        assert suite.complete(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("many"), FEW)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("few"), FEWER)


def records(root, name, split, limit=None):
    spec = request(["profile=pocket_10k"], grid=False).datasets[name]
    return load(replace(spec, counts={}), root, split, limit)


@pytest.mark.parametrize("name", TARGETS)
def test_the_limit_keeps_the_rows_that_are_drawn_first(name):
    numbers = sorted(target_sets.row_numbers(name))
    chosen = {n: f"_{sampled('abcde', str(n), 1, 0)[0]}" if name in ("flickr30k", "coco") else "" for n in numbers}
    rows = [SimpleNamespace(dataset=name, item_id=f"{number}{chosen[number]}") for number in numbers]
    assert len(rows) == 10_000
    for limit in (1, 128, 512, 9_999):
        kept = {int(row.item_id.partition("_")[0]) for row in subset(rows, limit)}
        assert kept == set(target_sets.row_numbers(name, limit))


@pytest.mark.parametrize("name", TARGETS)
def test_fewer_rows_are_the_same_rows(root, smaller, name):
    few, many = records(smaller, name, "train"), records(root, name, "train", 12)
    assert len(few) == 12 and [row.item_id for row in few] == [row.item_id for row in many]
    assert digest(few) == digest(many)
    for split in ("validation", "test"):
        assert digest(records(smaller, name, split)) == digest(records(root, name, split))


def test_contents_of_every_split_are_its_own(root):
    for name in TARGETS:
        for split, keys in json.loads((root / name / "scene_keys.json").read_text()).items():
            assert len(keys) == FEW[split]
            assert {owner(key) for key in keys.values()} == {(name, split)}


def test_a_share_of_the_words_is_near():
    import random

    def share(distance):
        rng = random.Random(0)
        texts = [flickr_caption(rng, scene_with(rng, ["cat", "truck"], False), distance).split() for _ in range(2000)]
        near = sum(" cat " in f" {' '.join(text)} ".replace(".", " ") for text in texts)
        return near / len(texts)

    assert share(FIRST) == 0.0
    # Six of ten near nouns are the name itself; a caption of one thing (a form in six) may lack the cat.
    half, whole = share(replace(FIRST, near_words=0.5)), share(replace(FIRST, near_words=1.0))
    assert 0.5 < whole < 0.62 and abs(half - whole / 2) < 0.03


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_drawing_ends_its_processes_and_leaves_nothing_half_done(tmp_path, number):
    program = f"""
from pathlib import Path
from benchmark.pocket.world import suite, target_sets
target_sets.usable_cores = lambda: 2
if __name__ == "__main__":
    print("ready", flush=True)
    suite.POCKET_10K.draw(Path({str(tmp_path / "data")!r}), ["flickr30k"])
"""
    (tmp_path / "draw.py").write_text(program)
    (tmp_path / "data").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "draw.py")], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    while not list((tmp_path / "data").glob(".*/*/*.jpg")):
        assert process.poll() is None
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert errors.count("Traceback") == (number == signal.SIGINT)  # this program's own, none of a process
    deadline = time.monotonic() + 60
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(process.pid) == []
    assert not (tmp_path / "data" / "flickr30k").exists()


def members(session: int) -> list[str]:
    """Return the processes of a session that still live."""
    living = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            living += [path.parent.name] if int(own) == session and state != "Z" else []
    return living
