"""The learning rate: the smallest within one standard error of the best, ratio kept, validation only."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

from benchmark import cli
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.studies import learning_rate
from benchmark.studies.learning_rate import Point, choose, grid_of, table
from tests.benchmark import fakes


def point(rate: float, a_t: float, error: float = 1.0) -> Point:
    return Point("full_ft", rate, {"A_S": 50.0, "A_T": a_t, "H": 50.0}, error)


def test_smallest_rate_within_one_standard_error_of_the_best():
    points = [point(1e-4, 90.0), point(2e-4, 98.9), point(5e-4, 99.1), point(1e-3, 100.0), point(2e-3, 99.5)]
    assert choose(points) == 5e-4
    assert choose([point(1e-4, 90.0), point(1e-3, 100.0, error=0.1)]) == 1e-3
    assert choose(points[::-1]) == 5e-4


def test_no_points_is_an_error():
    with pytest.raises(UserError, match="No finished"):
        choose([])


def test_grid_keeps_the_ratio_and_never_sees_the_test_split():
    models = {model.id: model for model in request(["profile=pocket"], grid=False).models}
    for name, model in models.items():
        cells = grid_of(model, []).cells
        grid = request(["profile=pocket"], grid=False).profile.rate_grid
        assert {cell.train.learning_rate for cell in cells} == set(grid) and len(cells) == 2 * len(grid)
        for cell in cells:
            assert cell.model.id == name and cell.seed == 100 and cell.eval.split == "validation"
            assert cell.method.id == "full_ft" and cell.target in ("flickr30k", "coco")
            ratio = cell.train.projector_learning_rate / cell.train.learning_rate
            assert ratio == pytest.approx(model.projector_learning_rate / model.learning_rate)


@pytest.mark.parametrize("wrong", ["targets=coco", "seeds=1", "dataset=coco"])
def test_targets_and_seeds_are_the_protocols(wrong, capsys):
    assert cli.main(["rates", wrong]) == 2
    assert f"{wrong}: the rates are chosen on flickr30k,coco with seed 100 alone" in capsys.readouterr().err


def test_full_ft_is_needed():
    model = request(["profile=pocket"], grid=False).models[0]
    with pytest.raises(UserError, match="full_ft"):
        grid_of(model, ["methods=spider"])


def test_table_marks_the_choice():
    model = request(["profile=pocket"], grid=False).models[0]
    text = table(model, [point(1e-4, 90.0), point(2e-4, 95.0)], 2e-4)
    assert "| 0.0002 (chosen) |" in text and "| 0.0001 |" in text


@pytest.mark.slow
def test_the_protocol_is_written_by_the_grid_of_full_ft_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning_rate, "TARGETS", "iconqa")  # needs no Java
    monkeypatch.setattr(learning_rate.Digests, "records", lambda *_: "0" * 64)  # of sets that are not drawn here
    world = fakes.world_in(tmp_path, monkeypatch)
    own = [item for item in world.overrides() if not item.startswith(("table=", "targets=", "method"))]
    assert cli.main(["rates", *own]) == 0
    path = world.results / "rates" / "protocol.md"
    before = path.read_text()
    assert "Fixed before any method but Full FT was run" in before and before.count("(chosen)") == 1
    assert cli.main(["rates", "methods=full_ft,spider", *own]) == 0
    assert path.read_text() == before and "| spider |" in capsys.readouterr().out
    assert "spider" in (world.results / "rates" / "llava_pocket.csv").read_text()
    drawn = pd.read_csv(world.results / "rates" / "lr_llava_pocket.csv")
    assert set(drawn["method"]) == {"full_ft", "spider"}
    assert set(drawn["learning_rate"]) == {1e-4, 2e-4, 5e-4, 1e-3, 2e-3}
    assert (drawn["low"] <= drawn["value"]).all() and (drawn["value"] <= drawn["high"]).all()
    assert (drawn["low"] < drawn["high"]).any()


@pytest.mark.slow
def test_a_grid_goes_on_from_what_was_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learning_rate, "TARGETS", "iconqa")
    monkeypatch.setattr(learning_rate.Digests, "records", lambda *_: "0" * 64)
    for module in ("publish", "restore"):
        monkeypatch.setattr(f"benchmark.publishing.{module}.at_root", lambda path: tmp_path / "reference")
    world = fakes.world_in(tmp_path, monkeypatch)
    own = [item for item in world.overrides() if not item.startswith(("table=", "targets=", "method"))]
    assert cli.main(["rates", *own]) == 0
    before = (world.results / "rates" / "protocol.md").read_text()
    kept = [item for item in own if not item.startswith("jobs=")]
    assert cli.main(["publish", "--partial", "--rates", "table=table6", "targets=iconqa", *kept]) == 0
    assert (tmp_path / "reference" / "rates" / "protocol.md").read_text() == before
    shutil.rmtree(world.results)
    capsys.readouterr()
    assert cli.main(["restore", f"results={world.results}"]) == 0
    assert "5 cells." in capsys.readouterr().out, "a cell per rate"
    world.forget_calls()
    assert cli.main(["rates", *own]) == 0
    assert fakes.calls() == [] and (world.results / "rates" / "protocol.md").read_text() == before
