"""Sweeps on stand-ins: any key, several axes, shared cells, interruption, mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmark import cli
from benchmark.core.errors import UserError
from benchmark.studies import sweep
from eval import stats
from tests.benchmark import fakes


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    drawn = []
    monkeypatch.setattr("benchmark.reporting.plots.lines", lambda *given: drawn.append(given) or [Path("x.png")])
    made = fakes.world_in(tmp_path, monkeypatch)
    made.drawn = drawn
    return made


def arguments(world: fakes.World, *more: str) -> list[str]:
    return [item for item in world.overrides(*more) if not item.startswith("table=")]


def trained() -> int:
    return sum(line.startswith("train ") for line in fakes.calls())


@pytest.mark.slow
def test_a_sweep_over_two_axes_is_a_tidy_csv_and_shares_its_cells(world, capsys):
    grid = ["train.epochs=5,6", "train.batch_size=16,32", "methods=full_ft,spider", "name=both"]
    assert cli.main(["sweep", *arguments(world, *grid)]) == 0
    assert trained() == 8
    frame = pd.read_csv(world.results / "sweeps" / "both.csv")
    assert list(frame.columns[:2]) == ["train.epochs", "train.batch_size"]
    assert len(frame) == 2 * 2 * 2 * 8 and set(frame["metric"]) >= {"A_S", "A_T", "H", "gqa"}
    own = frame[(frame.method == "spider") & (frame.metric == "H")]
    assert own["delta"].notna().all() and (own["low"] <= own["value"]).all() and (own["value"] <= own["high"]).all()
    assert own["p_holm"].ge(own["p"]).all()  # corrected over the whole sweep
    assert world.drawn[0][1] == ["train.epochs", "train.batch_size"]
    assert "H over train.epochs" in capsys.readouterr().out
    world.forget_calls()
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 0
    assert trained() == 0  # the table's cells are points of the sweep
    assert cli.main(["sweep", *arguments(world, "train.epochs=5,6,7", "methods=full_ft")]) == 0
    assert trained() == 1


@pytest.mark.parametrize("key", ["eval.batch_size", "model.checkpoint", "data_root"])
def test_an_axis_that_no_cell_is_named_by_is_refused(key, world, capsys):
    given = [item for item in arguments(world, "methods=full_ft") if not item.startswith(key)]
    values = ["4", "8"]
    for place in {"model.checkpoint": [world.checkpoint], "data_root": [world.data]}.get(key, []):
        values = [str(place), f"{place}2"]
        shutil.copytree(*values)
    axis = f"{key}={','.join(values)}"
    assert cli.main(["sweep", *given, axis]) == 2
    said = capsys.readouterr().err
    assert f"{axis}: both cells have the name" in said and trained() == 0


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(world, monkeypatch):
    grid = arguments(world, "train.epochs=5,6,7", "methods=full_ft,spider")
    monkeypatch.setenv(fakes.TROUBLE, "train spider=interrupt")
    assert cli.main(["sweep", *grid]) == 130
    before = trained()
    assert 0 < before < 6 and not (world.results / "sweeps").exists()
    monkeypatch.delenv(fakes.TROUBLE)
    world.forget_calls()
    assert cli.main(["sweep", *grid]) == 0
    assert trained() == 6 - before + 1  # the cell that was cut off is trained again


@pytest.mark.slow
def test_failed_cells_leave_gaps_and_a_code(world, monkeypatch, capsys):
    monkeypatch.setenv(fakes.TROUBLE, "train spider=fail")
    assert cli.main(["sweep", *arguments(world, "train.epochs=5,6", "methods=full_ft,spider")]) == 1
    (path,) = (world.results / "sweeps").glob("train.epochs-epochs_5+6-*full_ft+spider*.csv")
    frame = pd.read_csv(path)
    assert set(frame["method"]) == {"full_ft"} and "2 cells failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_parameter_of_one_method_leaves_the_other_the_same_at_every_point(world):
    assert cli.main(["sweep", *arguments(world, "method.momentum=0.5,0.85", "methods=full_ft,l2_reg,spider")]) == 0
    assert trained() == 4
    (path,) = (world.results / "sweeps").glob("method.momentum-momentum_0_5+0_85-*.csv")
    frame = pd.read_csv(path)
    full = frame[(frame.method == "full_ft") & (frame.metric == "H")]
    assert len(full) == 2 and full["value"].nunique() == 1
    # So it is one comparison for Holm's correction, not two (the stand-ins know no momentum: SPIDER's neither).
    tested = frame[(frame.metric == "H") & frame.p.notna()]
    compared = tested.drop_duplicates(["method", "value"])
    assert len(tested) == 4 and len(compared) == 2
    assert compared.p_holm.tolist() == pytest.approx(stats.holm(compared.p.tolist()), abs=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.epoch=5,6"], "train.epoch: no such key. Did you mean 'train.epochs'"),
        (["train.epochs=five,six"], "train.epochs=five: expected a whole number"),
        (["train.epochs=5"], "needs a key with several values"),
        (["train.epochs="], "expected a whole number"),
        (["train.epochs=5,6", "methods=[]"], "missing. Give table=table5, or method="),
        (["train.epochs=5,6", "seeds=[]"], "seed= missing"),
        (["train.epochs=5,6", "table=table5"], "A sweep has no table"),
        (["train.epochs=5,6", "name=../x"], "a file name of letters"),
        (["train.epochs=5,6", "targets=gqa"], "is not a target"),
    ],
)
def test_each_mistake_is_one_message_and_nothing_is_written(more, message, capsys, tmp_path):
    assert cli.main(["sweep", f"results={tmp_path}/r", "models=vila_pocket", *more]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "r").exists()


def test_models_methods_and_target_have_defaults():
    asked = sweep.ask(["train.epochs=5,6"])
    assert {cell.model.id for cell in asked.cells} == {"vila_pocket", "llava_pocket"}
    assert {cell.method.id for cell in asked.cells} == set(sweep.METHODS)
    assert {cell.target for cell in asked.cells} == {"flickr30k"} and len(asked.cells) == 12
    with pytest.raises(UserError):
        sweep.ask([])


@pytest.mark.slow
def test_sweeps_without_a_name_that_differ_have_files_of_their_own():
    """The second would take the place of the first: both were called train.epochs."""
    sweeps = [
        ["train.epochs=5,6"], ["train.epochs=5,6,7"], ["train.epochs=5,6", "methods=full_ft"],
        ["train.epochs=5,6", "targets=coco"], ["train.epochs=5,6", "seeds=1"], ["train.epochs=5,6", "train.limit=16"],
        ["train.epochs=5,6", "train.limit=32"], ["train.epochs=5,6", "models=llava_pocket"],
        ["train.epochs=5,6", "train.batch_size=16,32"], ["method.alpha=0.1,0.2", "methods=wise_ft"],
        ["method.alpha=0.1,0.2", "methods=wise_ft,full_ft"],
    ]
    asked = [sweep.ask(overrides) for overrides in sweeps]
    names = [sweep.name_of(one, sweep.axes(one)) for one in asked]
    assert len(set(names)) == len(sweeps) and names[0] == "train.epochs-epochs_5+6"
    again = sweep.ask(["methods=spider,full_ft,half_ft", "train.epochs=6,5"])
    assert sweep.name_of(again, sweep.axes(again)) == "train.epochs-epochs_6+5"
