"""What a command prints: an output that is closed, full or not UTF-8 loses letters, and nothing else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.core import terminal
from benchmark.spec import ROOT
from tests.benchmark import fakes

# A run of the fakes as a program of its own.
PROGRAM = """
import os, sys
from functools import partial
from pathlib import Path
import pytest
from benchmark.core import terminal
from benchmark.reporting import radar
from benchmark.running import runner
from benchmark.cli import main
from benchmark.running.pool import Pool
from tests.benchmark import fakes
if __name__ == "__main__":  # worker processes import it again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radar, "radars", lambda *_: [])
        patch.setattr(runner, "Pool", partial(Pool, body=fakes.serve_fake))
        trouble = os.environ.get(fakes.TROUBLE, "")
        world = fakes.world_in(Path(sys.argv[1]), patch)
        os.environ[fakes.TROUBLE] = trouble
        code = main([sys.argv[2], *world.overrides("methods=zero_shot,full_ft,spider", *sys.argv[3:])])
    terminal.discard_rest()
    sys.exit(code)
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    return fakes.world_in(tmp_path, monkeypatch)


def files(results: Path) -> dict[str, bytes]:
    """Return the table files of a results folder."""
    return {path.name: path.read_bytes() for path in (results / "tables").iterdir()}


def start(folder: Path, *words: str, **options) -> subprocess.Popen:
    """Start a run of the fakes in a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder, *words], cwd=ROOT, text=True, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, **options,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a run whose output arrives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
        world = fakes.world_in(tmp_path_factory.mktemp("whole"), patch)
        assert cli.main(["run", *world.overrides("methods=zero_shot,full_ft,spider")]) == 0
    return files(world.results)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_a_terminal_of_few_letters_loses_letters_and_no_table(encoding, world, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
    assert cli.main(["run", *world.overrides("methods=zero_shot,full_ft,spider")]) == 0
    sys.stdout.flush()
    shown = raw.getvalue().decode(encoding)
    assert "SPIDER" in shown and "Table: " in shown and len(files(world.results)) == 3
    signs = {"ascii": "~+", "iso-8859-1": "±+", "utf-8": "±↑"}[encoding]
    assert all(sign in shown for sign in signs)
    assert shown.isascii() == (encoding == "ascii")
    assert sys.stdout.errors == "strict"  # the stream is the caller's


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_who_reads_one_line_and_leaves_loses_no_file_and_no_cell(jobs, whole, tmp_path):
    process = start(tmp_path / "cut", "run", f"jobs={jobs}", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "Traceback" not in errors and "Exception ignored" not in errors, errors
    assert files(tmp_path / "cut" / "results") == whole


@pytest.mark.slow
def test_the_exit_code_of_failed_cells_survives_a_closed_pipe(tmp_path):
    process = start(
        tmp_path, "run", stdout=subprocess.PIPE, env={**os.environ, fakes.TROUBLE: "train spider=fail"}
    )
    assert process.stdout is not None
    process.stdout.close()
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "Exception ignored" not in errors, errors
    assert len(files(tmp_path / "results")) == 3


@pytest.mark.slow
def test_a_full_disk_behind_the_output_is_said_after_the_files_are_written(whole, tmp_path):
    with open("/dev/full", "w") as full:
        process = start(tmp_path / "full", "run", stdout=full)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and "Not all of the output could be printed: No space left on device" in errors
    assert "Exception ignored" not in errors and files(tmp_path / "full" / "results") == whole


@pytest.mark.slow
def test_without_stdout_and_stderr_no_file_takes_their_place(whole, tmp_path):
    def close() -> None:
        os.close(1)
        os.close(2)

    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "none", "run"], cwd=ROOT, stdin=subprocess.DEVNULL, preexec_fn=close
    )
    assert process.returncode == 0 and files(tmp_path / "none" / "results") == whole


@pytest.mark.parametrize("text", ["caf\u00e9", "\udce9 of a file name", "漢字"])
def test_what_an_encoding_lacks_is_replaced(text):
    raw = io.BytesIO()
    output = terminal.Output(io.TextIOWrapper(raw, encoding="ascii"))
    print(text, "end", file=output, flush=True)
    assert output.lost is None and raw.getvalue().endswith(b" end\n") and b"?" in raw.getvalue()


def test_a_closed_stream_is_noted_once_and_left_alone():
    stream = io.StringIO()
    output = terminal.Output(stream)
    stream.close()
    print("one", file=output)
    first = output.lost
    print("two", file=output, flush=True)
    assert isinstance(first, ValueError) and output.lost is first


def test_the_streams_of_the_caller_come_back():
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), terminal.guarded():
        assert isinstance(sys.stdout, terminal.Output) and isinstance(sys.stderr, terminal.Output)
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == before
