"""Three hundred generated hostile inputs in one process: a clear message or a result, never a traceback."""

from __future__ import annotations

import time

import pytest

from benchmark.cli import main
from benchmark.spec import ROOT
from tests.benchmark import hostile


@pytest.mark.slow
def test_three_hundred_hostile_inputs(tmp_path, monkeypatch, capsys):
    assert main(["data", "draw"]) == 0  # on a new machine `verify` would have to, and seem to hang
    monkeypatch.chdir(tmp_path)
    world = hostile.write_world(tmp_path)
    before = [hostile.tree(ROOT / name, ROOT / name / "runs") for name in ("results", "conf", "benchmark/checkpoints")]
    assert not hostile.sound(world)
    began = time.process_time()
    hostile.run(world)
    after = [hostile.tree(ROOT / name, ROOT / name / "runs") for name in ("results", "conf", "benchmark/checkpoints")]
    with capsys.disabled():
        print(f"\n{world.summary()} in {time.process_time() - began:.0f} s")
    assert sum(world.counts.values()) >= 300
    kinds = {kind for kind, _ in world.counts}
    assert all(world.counts[kind, "a result"] for kind in kinds), "a kind whose every case is refused tests nothing"
    assert not world.faults, "\n".join(world.faults)
    assert before == after and time.process_time() - began < 180
