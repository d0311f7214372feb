"""The short form of `make chaos`: a kill in every stage, then everything equal to a quiet run; and it can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmark.spec import ROOT
from tests import chaos


@pytest.mark.slow
@pytest.mark.multiprocess
def test_kills_in_every_stage_change_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.chaos", "kills=7", "sharded=0", "install=0", "small=1",
               f"out={tmp_path / 'chaos'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything is equal, bit for bit" in done.stdout and done.stdout.count(": hit ") == 7
    assert ", 0 differ" in done.stdout


def quiet_run() -> list[chaos.Span]:
    return [
        chaos.Span(f"{stage} cell{cell} {number}", 100 * cell + 10 * place + number, 0.5)
        for cell in range(2) for place, stage in enumerate(chaos.STAGES) for number in range(3)
    ]


def test_kills_are_spread_over_the_stages_and_come_in_the_order_of_a_run():
    kills = chaos.choose(quiet_run(), 40, seed=1)
    counts = Counter(kill.span.stage for kill in kills)
    assert set(counts) == set(chaos.STAGES) and max(counts.values()) - min(counts.values()) <= 1
    others = [kill.span.start + kill.delay for kill in kills if kill.span.stage not in ("train", "checkpoint")]
    assert others == sorted(others) and len(set(others)) == len(others)
    for cell in ("cell0", "cell1"):
        names = [kill.span.stage for kill in kills if kill.span.label.split()[1] == cell]
        training = [name for name in names if name in ("train", "checkpoint")]
        assert training == sorted(training)  # checkpoint, train
        assert names.index("checkpoint") > names.index("draw") and names[-1] == "table"
    assert {kill.signal for kill in kills} == set(chaos.CODES)
    assert kills == chaos.choose(quiet_run(), 40, seed=1) != chaos.choose(quiet_run(), 40, seed=2)
    for kill in kills:
        assert kill.span.label in kill.labels and 0 <= kill.delay <= kill.span.length


def test_a_difference_a_missing_file_and_an_unfinished_cell_are_found(tmp_path):
    for name in ("quiet", "killed"):
        for file, text in {"scores.json": "1", "status.json": '{"state": "done"}', "answers/a.jsonl": "x"}.items():
            path = tmp_path / name / "cells" / "cell" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    pair = tmp_path / "quiet", tmp_path / "killed"
    assert chaos.differences(*pair) == (2, [], [])
    cell = tmp_path / "killed" / "cells" / "cell"
    (cell / "scores.json").write_text("2")
    (cell / ".half").write_text("")
    (cell / "answers" / "a.jsonl").unlink()
    (cell / "status.json").write_text('{"state": "interrupted"}')
    assert chaos.differences(*pair)[1] == [
        "cells/cell/.half: only in one", "cells/cell/answers/a.jsonl: only in one", "cells/cell/scores.json: differs",
        "cell: interrupted",
    ]


def test_a_folder_of_the_users_is_not_deleted(tmp_path: Path, capsys):
    (tmp_path / "mine").write_text("keep")
    assert chaos.main([f"out={tmp_path}"]) == 2
    assert (tmp_path / "mine").exists() and "not from an earlier run" in capsys.readouterr().err
    assert chaos.main(["kill=3"]) == 2


def test_a_relative_folder_is_the_same_one_in_the_copy(tmp_path, monkeypatch):
    """Else the copy copied itself below itself until the path was too long."""
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: calls.append(command) or subprocess.CompletedProcess(command, 0)
    )
    monkeypatch.setattr(shutil, "copytree", lambda *_, **__: None)
    monkeypatch.setattr(shutil, "copy", lambda *_: None)
    assert chaos.main(["kills=1", "out=build/other"]) == 0
    assert f"out={tmp_path / 'build' / 'other'}" in calls[0]


def test_only_ranks_of_the_program_itself_are_hunted():
    """Those of a program that was killed before live on for a moment."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert chaos.descends(child.pid, os.getpid()) and chaos.descends(child.pid, os.getppid())
        assert not chaos.descends(os.getpid(), child.pid)
    finally:
        child.communicate(b"\n")
