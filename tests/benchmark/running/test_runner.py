"""Runs on stand-ins for models and data: order, reuse, failures, interruption, several processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path

import numpy
import pytest
import yaml

from benchmark import cli
from benchmark.config.request import request
from benchmark.core.errors import Locked
from benchmark.core.progress import Lines
from benchmark.planning import plan as planning
from benchmark.running import runner, worker
from benchmark.store.cells import Store, read_cell, short_lock
from tests.benchmark import fakes


@pytest.fixture
def drawing_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    return fakes.world_in(tmp_path, monkeypatch)


@pytest.fixture
def world(drawing_world: fakes.World, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    """The world without figures, which take a second per run."""
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    return drawing_world


def run(world: fakes.World, *more: str) -> int:
    return cli.main(["run", *world.overrides(*more)])


def trained() -> list[str]:
    return [line.split()[2] for line in fakes.calls() if line.startswith(("train", "posthoc"))]


@pytest.mark.slow
def test_a_grid_runs_writes_every_file_and_prints_its_table(drawing_world, capsys):
    world = drawing_world
    assert run(world, "methods=zero_shot,full_ft,dare,spider") == 0
    cells = world.cells()
    names = ["zero_shot", "iconqa-full_ft-s0", "iconqa-dare-s0", "iconqa-spider-s0"]
    assert sorted(cells) == sorted(f"llava_pocket-{name}" for name in names)
    files = {"cell.yaml", "status.json", "train.jsonl", "delta.safetensors", "scores.json", "provenance.json"}
    assert files == {path.name for path in cells["llava_pocket-iconqa-spider-s0"].iterdir() if path.is_file()}
    assert {p.name for p in (cells["llava_pocket-zero_shot"] / "items").iterdir()} == {
        f"{name}.jsonl.gz" for name in ("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa", "textvqa_no_ocr")
    }
    assert fakes.calls().count("load llava_pocket") == 1  # one load for all cells
    out = capsys.readouterr().out
    assert "SPIDER" in out and "Zero-shot" in out and "4 cells, 0 done" in out
    assert {p.suffix for p in (world.results / "tables").iterdir()} == {".md", ".csv", ".tex"}
    assert {p.name for p in (world.results / "figures").iterdir()} == {
        f"fig4-llava_pocket-iconqa-zero_shot+full_ft+dare+spider_llava_pocket_iconqa.{kind}"
        for kind in ("png", "pdf", "csv")
    }
    scores = json.loads((cells["llava_pocket-zero_shot"] / "scores.json").read_text())
    assert set(scores["averages"]) == {"iconqa"}  # the protocol variant beside the table is in no average
    values = {name: scores["datasets"][name]["value"] for name in scores["datasets"]}
    mean = sum(values[name] for name in ("okvqa", "textvqa", "ocrvqa", "gqa")) / 4
    assert scores["averages"]["iconqa"]["A_S"]["value"] == pytest.approx(mean)
    assert "textvqa_no_ocr" in values


@pytest.mark.slow
def test_results_of_a_version_that_named_cells_otherwise_are_used_and_finished(world, capsys):
    run(world, "methods=full_ft,wise_ft", "train.epochs=2", "method.alpha=0.4")
    before = world.scores()
    for path in world.cells().values():
        path.rename(path.with_name(path.name.replace("-alpha0.4", "").replace("-epochs2", "")))
    (world.cells()["llava_pocket-iconqa-wise_ft-s0"] / "scores.json").unlink()
    fakes.World.forget_calls(world)
    assert run(world, "methods=full_ft,wise_ft", "train.epochs=2", "method.alpha=0.4") == 0
    assert trained() == [] and "2 cells, 1 done" in capsys.readouterr().out.split("Results:")[-2]
    assert len(world.cells()) == len(list(world.results.glob("cells/*/"))) == 2
    assert sorted(world.scores().values()) == sorted(before.values())


def asked() -> list[str]:
    return [line.split()[1] for line in fakes.calls() if line.startswith("generate")]


@pytest.mark.slow
def test_cells_that_only_answer_in_another_way_train_once(world, capsys):
    """In two commands, where the plan knows it, and in one, where the second cell waits for the first."""
    assert run(world, "methods=full_ft,dare") == 0
    world.forget_calls()
    capsys.readouterr()
    assert run(world, "methods=full_ft,dare", "eval.examples=1") == 0
    assert trained() == [] and len(asked()) == 10 and "2 cells, 0 done" in capsys.readouterr().out
    cells = {path.name: path for path in world.results.glob("cells/*")}
    shown = [path for name, path in cells.items() if "eval.examples1" in name]
    assert len(shown) == 2 and all(json.loads((path / "status.json").read_text())["state"] == "done" for path in shown)
    assert run(world, "methods=spider", "eval.examples=1") == 0 and trained() == ["spider"]
    assert run(world, "methods=spider") == 0 and trained() == ["spider"]  # the other way round
    world.forget_calls()
    sweep = [item for item in world.overrides("methods=spider", "seeds=7", "eval.examples=0,1,2")
             if not item.startswith("table=")]
    assert cli.main(["sweep", *sweep]) == 0
    assert trained() == ["spider"] and len(asked()) == 15


@pytest.mark.slow
def test_finished_cells_are_reused_whoever_asks(world, capsys):
    run(world, "methods=full_ft,spider")
    world.forget_calls()
    assert run(world, "methods=spider,full_ft") == 0
    assert cli.main(["run", *world.overrides()[1:], "method=spider", "seed=0"]) == 0
    assert fakes.calls() == []
    assert "2 cells, 2 done." in capsys.readouterr().out
    run(world, "methods=spider,dare")  # dare needs Full FT, which is there
    assert trained() == ["dare"]


@pytest.mark.slow
def test_a_posthoc_cell_brings_its_full_ft_cell(world):
    assert run(world, "methods=dare", "seeds=3") == 0
    assert trained() == ["full_ft", "dare"]
    assert sorted(world.cells()) == ["llava_pocket-iconqa-dare-s3", "llava_pocket-iconqa-full_ft-s3"]


@pytest.mark.slow
def test_results_do_not_depend_on_the_order_of_cells(world, tmp_path):
    run(world, "methods=full_ft,spider,dare,zero_shot")
    first = world.scores()
    world.results = tmp_path / "again"
    run(world, "methods=zero_shot,dare,spider,full_ft")
    assert world.scores() == first


@pytest.mark.slow
def test_an_untuned_model_keeps_the_datasets_of_another_table(world):
    run(world, "methods=zero_shot")
    world.forget_calls()
    run(world, "methods=zero_shot", "targets=scienceqa")
    assert [line.split()[2] for line in fakes.calls() if line.startswith("generate")] == ["scienceqa"]
    scores = json.loads((world.cells()["llava_pocket-zero_shot"] / "scores.json").read_text())
    assert set(scores["averages"]) == {"iconqa", "scienceqa"}
    world.forget_calls()
    run(world, "methods=zero_shot")
    assert fakes.calls() == []


@pytest.mark.slow
def test_swept_settings_become_cells_of_their_own(world, capsys):
    arguments = [item for item in world.overrides("methods=spider", "train.epochs=5,7") if "table" not in item]
    assert cli.main(["run", *arguments]) == 0
    assert trained() == ["spider", "spider"]
    epochs = {yaml.safe_load(p.read_text())["train"]["epochs"] for p in world.results.glob("cells/*/cell.yaml")}
    assert epochs == {5, 7}
    assert run(world, "methods=spider", "train.epochs=5,7") == 2
    assert "A table or a figure shows one setting" in capsys.readouterr().err


# -- what makes a stage run again -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_new_data_of_one_dataset_redo_only_its_answers(world):
    run(world, "methods=full_ft")
    world.forget_calls()
    (world.data / "gqa" / "data.txt").write_text("other questions")
    run(world, "methods=full_ft")
    assert [line.split()[0::2] for line in fakes.calls() if not line.startswith("load")] == [["generate", "gqa"]]


@pytest.mark.slow
def test_a_new_checkpoint_redoes_everything(world):
    run(world, "methods=full_ft,dare")
    world.forget_calls()
    (world.checkpoint / "weights").write_text("better")
    run(world, "methods=full_ft,dare")
    assert trained() == ["full_ft", "dare"]
    assert len([line for line in fakes.calls() if line.startswith("generate")]) == 10


@pytest.mark.slow
def test_another_protocol_is_another_cell(world):
    run(world, "methods=full_ft")
    before = world.scores()
    run(world, "methods=full_ft", "dataset.okvqa.metric=vqa_official")
    assert len(world.scores()) == 2 and before.items() <= world.scores().items()


@pytest.mark.slow
def test_score_uses_stored_answers_without_a_model(world, capsys):
    run(world, "methods=full_ft,zero_shot")
    expected = world.scores()
    for path in world.results.glob("cells/*/scores.json"):
        path.unlink()
    for path in world.results.glob("cells/*/items/gqa.jsonl.gz"):
        path.write_bytes(b"damaged")
    world.forget_calls()
    assert cli.main(["score", *world.grid("methods=full_ft,zero_shot,spider")]) == 0
    assert fakes.calls() == []
    assert world.scores() == expected
    assert "spider" in capsys.readouterr().out  # named as not run yet


# -- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_others(world, monkeypatch, capsys):
    monkeypatch.setenv(fakes.TROUBLE, "train full_ft=fail")
    assert run(world, "methods=full_ft,dare,tailor,spider") == 1
    out = capsys.readouterr().out
    assert trained() == ["full_ft", "spider"]
    assert "3 cells failed" in out and "Traceback (" not in out and "the loss exploded" in out
    status = json.loads((world.cells()["llava_pocket-iconqa-full_ft-s0"] / "status.json").read_text())
    assert status["state"] == "failed"
    assert "the loss exploded" in status["error"]["message"] and "Traceback" in status["error"]["traceback"]
    assert not (world.cells()["llava_pocket-iconqa-full_ft-s0"] / "scores.json").exists()
    assert "Missing: Full FT" in next(world.results.glob("tables/table6*.md")).read_text()
    monkeypatch.setenv(fakes.TROUBLE, "")
    world.forget_calls()
    assert run(world, "methods=full_ft,dare,tailor,spider") == 0
    assert trained() == ["full_ft", "dare", "tailor"]


def test_a_mistake_of_the_user_inside_cells_is_said_once(world, monkeypatch, capsys):
    monkeypatch.setenv(fakes.TROUBLE, "generate gqa=user")
    assert run(world, "methods=full_ft,spider") == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert captured.out.count("x.png") == 2  # when it happens and in the list at the end
    assert "for the same reason" in captured.out


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(world, capsys):
    (world.checkpoint / "weights").write_text("truncated")
    assert run(world, "methods=full_ft,dare,spider") == 2
    assert "truncated" in capsys.readouterr().out
    assert not list(world.results.glob("cells/*/"))


def test_a_truncated_weight_file_stops_before_anything(world, capsys):
    from safetensors.numpy import save

    whole = save({"weight": numpy.zeros(1000, "float32")})
    (world.checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert run(world, "methods=full_ft,spider") == 2
    captured = capsys.readouterr()
    assert captured.err.count("model.safetensors is truncated") == 1 and captured.out == ""
    assert fakes.calls() == [] and world.cells() == {}


def test_a_missing_checkpoint_stops_before_anything(world, capsys):
    (world.checkpoint / "weights").unlink()
    assert run(world, "methods=full_ft") == 2
    captured = capsys.readouterr()
    assert str(world.checkpoint) in captured.err and "Traceback" not in captured.err
    assert fakes.calls() == [] and world.cells() == {}


def test_missing_data_stop_before_anything_and_all_are_named(world, capsys):
    (world.data / "gqa" / "data.txt").unlink()
    (world.data / "gqa").rmdir()
    assert run(world, "methods=full_ft", f"model.checkpoint={world.root}/nothing") == 2
    err = capsys.readouterr().err
    assert "2 folders do not exist" in err and f"{world.data}/gqa" in err and f"{world.root}/nothing" in err
    assert fakes.calls() == [] and world.cells() == {}


@pytest.mark.parametrize("folder", ["/proc/nowhere", "{tmp}/file/inside"])
def test_a_results_folder_that_cannot_be_written_stops_before_anything(world, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    world.results = Path(folder.format(tmp=tmp_path))
    assert run(world, "methods=full_ft") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: Cannot write") and "RESULTS=dir" in err and "Traceback" not in err
    assert fakes.calls() == []


def test_a_full_disk_stops_before_anything(world, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 3_000_000})
    monkeypatch.setattr("benchmark.store.cells.shutil.disk_usage", lambda path: usage)
    assert run(world, "methods=full_ft") == 2
    assert "3 MB free" in capsys.readouterr().err
    assert fakes.calls() == []


# -- interruption -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_keeps_finished_cells_and_says_how_to_go_on(world, monkeypatch, capsys):
    monkeypatch.setenv(fakes.TROUBLE, "train spider=interrupt")
    assert run(world, "methods=full_ft,spider") == 130
    assert "Finished cells (1) are kept" in capsys.readouterr().out
    spider = world.cells()["llava_pocket-iconqa-spider-s0"]
    assert json.loads((spider / "status.json").read_text())["state"] == "interrupted"
    assert not (spider / "lock").exists()
    monkeypatch.setenv(fakes.TROUBLE, "")
    world.forget_calls()
    assert run(world, "methods=full_ft,spider") == 0
    assert trained() == ["spider"]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_end_a_run_in_order(world, monkeypatch, sent, code):
    monkeypatch.setenv(fakes.TROUBLE, "train full_ft=sleep")
    with fakes.subprocess_main(["run", *world.overrides("methods=zero_shot,full_ft")]) as process:
        while not (world.root / "sleeping").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Finished cells (1) are kept" in out and "Traceback" not in err
    status = json.loads((world.cells()["llava_pocket-iconqa-full_ft-s0"] / "status.json").read_text())
    assert status["state"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["train spider", "generate iconqa"])
def test_a_kill_at_any_stage_leaves_the_same_results_after_another_run(world, monkeypatch, place, tmp_path):
    run(world, "methods=full_ft,spider")
    expected = world.scores()
    world.results = tmp_path / "killed"
    monkeypatch.setenv(fakes.TROUBLE, f"{place}=kill")
    with fakes.subprocess_main(["run", *world.overrides("methods=full_ft,spider")]) as process:
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert world.scores() != expected
    monkeypatch.setenv(fakes.TROUBLE, "")
    world.forget_calls()
    assert run(world, "methods=full_ft,spider") == 0
    assert world.scores() == expected
    if place != "train spider":  # what was finished before the kill is not done again
        assert "full_ft" not in trained()


# -- several processes --------------------------------------------------------------------------------------------


@pytest.fixture
def fake_pool(monkeypatch):
    fakes.fork_workers(monkeypatch, fakes.serve_fake)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_several_workers_give_the_same_results_whatever_happens_to_one(world, fake_pool, tmp_path, monkeypatch, capsys):
    """A worker that dies and one that fails do not stop the rest, which is what one process computes."""
    run(world, "methods=zero_shot,full_ft,dare")
    expected = world.scores()
    world.results = tmp_path / "jobs"
    world.forget_calls()
    monkeypatch.setenv(fakes.TROUBLE, "train spider=kill,train l2_reg=fail")
    arguments = world.overrides("methods=zero_shot,full_ft,l2_reg,spider,dare")
    assert cli.main(["run", *arguments, "--jobs", "2"]) == 1
    out = capsys.readouterr().out
    assert "2 cells failed" in out and "was killed by signal 9" in out and "the loss exploded" in out
    assert world.scores() == expected
    assert fakes.calls().count("load llava_pocket") >= 2


@pytest.mark.slow
@pytest.mark.multiprocess
def test_cells_are_spread_over_the_gpus_in_sight(world, monkeypatch):
    fakes.fork_workers(monkeypatch, fakes.serve_fake_gpu)
    monkeypatch.setattr(runner, "VISIBLE", "GPU-a, GPU-b")
    arguments = world.overrides("methods=full_ft,l2_reg,spider", "device=cuda", "jobs=2", "--cells-only")
    assert cli.main(["run", *arguments]) == 0
    assert sorted(line for line in fakes.calls() if line.startswith("on ")) == ["on cuda GPU-a", "on cuda GPU-b"]
    assert sum(line.startswith("train ") for line in fakes.calls()) == 3


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_runs_at_once_share_the_work(world, monkeypatch):
    """The second run waits for a cell that the first one holds, and does not repeat it."""
    monkeypatch.setenv(fakes.TROUBLE, "train full_ft=sleep")
    monkeypatch.setattr(runner, "WAIT_SECONDS", 0.1)
    arguments = ["run", *world.overrides("methods=full_ft,spider")]
    with fakes.subprocess_main(arguments) as first:
        while not (world.root / "sleeping").exists():
            assert first.poll() is None
            time.sleep(0.05)
        monkeypatch.setenv(fakes.TROUBLE, "")
        notes = []

        class Show(Lines):
            def note(self, text: str) -> None:
                notes.append(text)
                os.kill(first.pid, signal.SIGKILL)  # its lock is then taken over
                first.wait()

        assert runner.run(request(arguments[1:]), Show()) == 0
    assert len(notes) == 1 and f"process {first.pid}" in notes[0]
    assert trained() == ["full_ft", "spider", "full_ft"]


@pytest.mark.slow
def test_a_run_waits_for_a_full_ft_cell_of_another_process_without_spinning(world, monkeypatch):
    """DARE, made from the locked cell, is not ready: it must not keep the run from sleeping."""
    held, slept = [3], []
    whole = runner.Worker.run

    def locked(self, cell, *rest):
        if cell.method.id == "full_ft" and held[0]:
            held[0] -= 1
            raise Locked("process 1 on elsewhere")
        return whole(self, cell, *rest)

    monkeypatch.setattr(runner.Worker, "run", locked)
    monkeypatch.setattr(runner.time, "sleep", slept.append)
    assert cli.main(["run", *world.overrides("methods=full_ft,dare")]) == 0
    assert slept.count(runner.WAIT_SECONDS) == 3


def test_a_cell_of_another_process_is_one_message(world, monkeypatch, capsys):
    arguments = world.overrides("methods=full_ft")
    assert cli.main(["run", *arguments]) == 0
    capsys.readouterr()

    def locked(*_):
        raise Locked("process 1 on elsewhere")

    monkeypatch.setattr("benchmark.store.cells.Store.lock", locked)
    assert cli.main(["score", *world.grid("methods=full_ft")]) == 2
    assert capsys.readouterr().err.startswith("error: process 1 on elsewhere works on a cell that this needs.")


def test_two_draws_at_once_do_one_after_the_other_and_say_so(tmp_path, monkeypatch):
    drawn, notes = [], []
    suite = types.SimpleNamespace(complete=lambda folder: False, draw=lambda folder, on_progress: drawn.append(folder))
    monkeypatch.setitem(sys.modules, "stand_in_for_a_suite", types.SimpleNamespace(MINE=suite))
    profile = types.SimpleNamespace(id="mine", prepare="stand_in_for_a_suite:MINE")

    class Show(Lines):
        def note(self, text: str) -> None:
            notes.append(text)

    with short_lock(tmp_path / ".lock"):
        other = threading.Thread(target=runner.draw, args=(profile, str(tmp_path), Show()))
        other.start()
        end = time.monotonic() + 60
        while not notes:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert not drawn
    other.join(60)
    assert drawn == [tmp_path] and notes == [f"Waiting for another command that draws into {tmp_path}"]


def test_two_runs_at_once_keep_each_others_datasets_of_the_untuned_model(world):
    """Both were planned before either had evaluated it."""
    store = Store(world.results)
    store.check_writable()
    asked = [request(world.overrides("methods=zero_shot", f"targets={name}")) for name in ("iconqa", "scienceqa")]
    plans = [planning.make(one, store) for one in asked]
    for (item,) in plans:
        result = worker.Worker(store).run(item.cell, item.keys, (), lambda *_: None)
        assert isinstance(result, str), result
        assert not runner._lost(item.cell, item.keys, store)
    assert all(item.done for one in asked for item in planning.make(one, store))
    assert {dataset.id for dataset in read_cell(store.folder(plans[0][0].cell)).targets} == {"iconqa", "scienceqa"}
