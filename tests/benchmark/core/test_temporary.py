"""TMPDIR: usable as it is, replaced with a word, or one message before anything runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.core import temporary
from benchmark.core.errors import UserError
from benchmark.spec import ROOT
from tests.benchmark import fakes

# Tensors from a process that reads ahead, as in training and answering at full size.
READS_AHEAD = """
from benchmark.core import temporary
temporary.settle()
import torch
from torch.utils.data import DataLoader
assert [int(batch.sum()) for batch in DataLoader(torch.ones(4, 3), batch_size=2, num_workers=1, timeout=20)] == [6, 6]
"""


@pytest.fixture(autouse=True)
def own_tempdir(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test changes from the others."""
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def short() -> Path:
    """A folder with a short path, which tmp_path has not always."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


def folder_of(short: Path, kind: str) -> Path:
    """Return a folder for temporary files of some kind."""
    path = short / {"long": "x" * 120, "letters": "ü漢字 x"}.get(kind, kind)
    if kind == "file":
        path.write_text("")
    elif kind != "missing":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [("long", "but sockets in it allow at most 75"), ("missing", "does not exist"), ("file", "is not a folder")],
)
def test_a_folder_that_cannot_be_used_is_replaced_and_named(kind, said, short, monkeypatch, capsys):
    given = folder_of(short, kind)
    monkeypatch.setenv("TMPDIR", str(given))
    temporary.settle()
    error = capsys.readouterr().err
    assert f"note: TMPDIR={given} " in error and said in error and "Using /tmp instead." in error
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == "/tmp"
    temporary.settle()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["plain", "letters"])
def test_a_usable_folder_is_left_alone(kind, short, monkeypatch, capsys):
    given = str(folder_of(short, kind))
    monkeypatch.setenv("TMPDIR", given)
    temporary.settle()
    assert os.environ["TMPDIR"] == given and capsys.readouterr().err == ""
    monkeypatch.delenv("TMPDIR")
    temporary.settle()
    assert "TMPDIR" not in os.environ and capsys.readouterr().err == ""


def test_a_folder_that_is_not_writable(short, monkeypatch, capsys):
    def refuse(dir: str, **_):
        if dir == str(short):
            raise PermissionError(13, "Permission denied")
        return open(os.devnull)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setenv("TMPDIR", str(short))
    temporary.settle()
    assert f"TMPDIR={short} cannot be written (Permission denied). Using /tmp instead." in capsys.readouterr().err


def test_without_any_folder_nothing_runs(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(temporary, "OTHERS", (f"{short}/no", f"{short}/neither"))
    monkeypatch.setenv("TMPDIR", f"{short}/gone")
    with pytest.raises(UserError, match=f"{short}/gone does not exist, .*Set it to a writable folder"):
        temporary.settle()
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    world = fakes.world_in(tmp_path, monkeypatch)
    assert cli.main(["run", *world.overrides("methods=full_ft")]) == 2
    assert "TMPDIR is " in capsys.readouterr().err and fakes.calls() == [] and not world.results.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["long", "letters", "missing"])
def test_processes_that_read_ahead_work_with_any_folder(kind, short):
    done = subprocess.run(
        [sys.executable, "-c", READS_AHEAD], env={**os.environ, "TMPDIR": str(folder_of(short, kind))}, cwd=ROOT,
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
