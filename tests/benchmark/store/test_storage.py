"""Full, read-only, forbidden and vanished folders, made by the system itself; several runs on one folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmark import cli
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.core.files import write_atomic
from benchmark.core.progress import Lines
from benchmark.planning import plan as planning
from benchmark.running import pool, runner
from benchmark.store.cells import Store
from benchmark.training.checkpoint import StateFolder
from tests.benchmark import fakes


@pytest.fixture
def disk(tmp_path):
    """A file system of its own; `disk(options)` mounts it, or changes how it is mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if folder.is_mount() else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)], capture_output=True, text=True,
        ) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip() if done else 'no mount command'}")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def world(tmp_path, monkeypatch):
    (tmp_path / "world").mkdir()
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    monkeypatch.setattr(runner, "WAIT_SECONDS", 0.1)
    return fakes.world_in(tmp_path / "world", monkeypatch)


def after_first_cell(world, action):
    """Run Full FT and SPIDER on the command line, and do something when the first cell is finished."""
    class Show(Lines):
        def finished(self, cell, text):
            super().finished(cell, text)
            if self._done == 1:
                action()

    return runner.run(request(world.overrides("methods=full_ft,spider")), Show())


def fill(folder: Path) -> None:
    with pytest.raises(OSError, match="No space left"), open(folder / "filler", "wb") as file:
        while True:
            file.write(b"\0" * 4096)
            file.flush()


def trained() -> list[str]:
    return [line.split()[2] for line in fakes.calls() if line.startswith("train")]


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_run_and_it_goes_on_when_there_is_space(disk, world):
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 0
    expected = world.scores()
    world.results = disk("size=120m") / "results"
    world.forget_calls()
    with pytest.raises(UserError, match="No space left on device.*RESULTS=dir"):
        after_first_cell(world, lambda: fill(world.results.parent))
    assert not list(world.results.rglob(".*.part")), "a half-written file is left"
    (world.results.parent / "filler").unlink()
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 0
    assert trained() == ["full_ft", "spider"]  # each once
    assert world.scores() == expected


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_stops_the_run(disk, world):
    world.results = disk("size=120m") / "results"
    with pytest.raises(UserError, match="Read-only file system.*RESULTS=dir"):
        after_first_cell(world, lambda: disk("ro"))
    disk("rw")
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 0
    assert trained() == ["full_ft", "spider"]


def test_a_state_that_does_not_fit_leaves_the_one_before(disk):
    state = StateFolder(disk("size=3m") / "checkpoint", "one")
    state.create()
    with state.save(1) as folder:
        torch.save(torch.zeros(100_000), folder / "x.pt")
    for size in (2_000_000, 700_000):  # more than the disk holds; more than it holds beside the first state
        with pytest.raises(UserError, match="Cannot write .*checkpoint"), state.save(2) as folder:
            torch.save(torch.zeros(size), folder / "x.pt")
        assert [path.name for path in state.path.iterdir()] == ["step-000000001"]  # the space is free again
        assert state.latest().name == "step-000000001"
    disk("size=9m")
    with state.save(2) as folder:
        torch.save(torch.zeros(700_000), folder / "x.pt")
    assert state.latest().name == "step-000000002"


@pytest.mark.slow
def test_parts_of_files_that_a_kill_left_are_deleted(world):
    assert cli.main(["run", *world.overrides("methods=full_ft")]) == 0
    before = {path for path in world.results.rglob("*") if path.is_file()}
    (cell,) = world.cells().values()
    old, young = world.results / "tables" / ".x.md.abc.part", world.results / "tables" / ".y.md.abc.part"
    for path in (cell / ".status.json.abc.part", cell / "answers" / ".gqa.jsonl.abc.part", old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    (cell / "scores.json").unlink()
    assert cli.main(["run", *world.overrides("methods=full_ft")]) == 0
    assert {path for path in world.results.rglob("*") if path.is_file()} == before | {young}  # it may be in use


def test_a_folder_without_permission_is_refused_by_name(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    nobody = os.geteuid() == 0
    if nobody:
        os.seteuid(65534)  # root may write everywhere
    try:
        for action in (
            lambda: Store(closed / "results").check_writable(), lambda: write_atomic(closed / "x", "text"),
            lambda: StateFolder(closed / "checkpoint", "one").create(),
        ):
            with pytest.raises(UserError, match=r"Cannot write .*Permission denied.*RESULTS=dir"):
                action()
    finally:
        if nobody:
            os.seteuid(0)
    assert list(closed.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_vanishes_under_a_cell_is_no_finished_cell(world):
    cell = request(world.overrides("methods=full_ft")).cells[0]
    store = Store(world.results)
    store.begin(cell)
    store.start_stage(cell, "train", "key")
    shutil.rmtree(world.results)
    write_atomic(store.folder(cell) / "delta.safetensors", "made anew")  # as the stage does at its end
    with pytest.raises(UserError, match="cell.yaml was deleted while train ran .*Run the same command again"):
        store.finish_stage(cell, "train", "key", 1.0)
    assert cli.main(["run", *world.overrides("methods=full_ft")]) == 0


@pytest.mark.slow
def test_a_results_folder_that_vanishes_is_made_again_and_what_was_lost_is_said(world, capsys):
    assert after_first_cell(world, lambda: shutil.rmtree(world.results)) == 2
    said = capsys.readouterr().out
    assert "1 cell failed" in said and "its results were deleted while other cells ran" in said
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 0
    assert trained() == ["full_ft", "spider", "full_ft"]


def _serve_alone(ours, *arguments) -> None:
    ours.close()
    pool.serve(*arguments)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_worker_whose_parent_was_killed_stops_and_its_cell_can_be_had(world, capfd):
    asked = request(world.overrides("methods=full_ft"))
    store = Store(world.results)
    (item,) = planning.make(asked, store)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    worker = context.Process(
        target=_serve_alone, args=(ours, theirs, str(world.results), (1, "cpu", None), list(sys.path))
    )
    worker.start()
    theirs.close()
    ours.send((item.cell, item.keys, None))
    ours.close()  # as the end of this process would
    worker.join(60)
    assert worker.exitcode == 0 and "Traceback" not in capfd.readouterr().err
    assert store.status(store.folder(item.cell))["state"] == "interrupted"
    assert cli.main(["run", *world.overrides("methods=full_ft")]) == 0


def _run(arguments: list[str], number: int, codes) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    codes[number] = cli.main(arguments)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_eight_processes_compute_each_cell_once(world, monkeypatch):
    expected = {}
    quiet, world.results = world.results, world.root / "quiet"
    assert cli.main(["run", *world.overrides("methods=zero_shot,full_ft,dare,spider")]) == 0
    expected = world.scores()
    world.results = quiet
    world.forget_calls()
    monkeypatch.setenv(fakes.TROUBLE, "train full_ft=pause,train spider=pause,posthoc dare=pause,generate gqa=pause")
    context = multiprocessing.get_context("fork")
    codes = context.Array("i", [-1] * 8)
    asked = ["run", *world.overrides("methods=zero_shot,full_ft,dare,spider")]
    processes = [context.Process(target=_run, args=(asked, number, codes)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert list(codes) == [0] * 8
    assert world.scores() == expected
    counts = Counter(line for line in fakes.calls() if not line.startswith("load"))
    assert set(counts.values()) == {1}, counts
    assert len([line for line in counts if line.startswith(("train", "posthoc"))]) == 3
    assert len([line for line in counts if line.startswith("generate")]) == 6 + 3 * 5
    one, other = (sorted(root.glob("tables/*.md")) for root in (world.results, world.root / "quiet"))
    assert [path.read_text() for path in one] == [path.read_text() for path in other] and len(one) == 1


def test_complete_data_of_another_owner_need_no_lock(tmp_path, monkeypatch):
    """Nothing has to be drawn, so nothing is opened for writing."""
    from benchmark.pocket.world import folder, suite
    from benchmark.running import runner

    for name, counts in suite.POCKET.counts.items():
        (tmp_path / name).mkdir()
        stamp = {"version": folder.code_version(), "counts": counts}
        (tmp_path / name / "drawn.json").write_text(json.dumps(stamp))
    called = []
    monkeypatch.setattr(suite.Suite, "draw", lambda self, root, on_progress: called.append(root))
    before = sorted(tmp_path.rglob("*"))
    profile = request([], grid=False).profile
    runner.draw(profile, str(tmp_path), None)
    assert not called and sorted(tmp_path.rglob("*")) == before
    (tmp_path / "gqa" / "drawn.json").unlink()
    runner.draw(profile, str(tmp_path), None)
    assert called == [tmp_path]
