"""`figure NAME` and `all` from end to end with stand-ins: what is missing is run, then drawn."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmark import cli, everything
from benchmark.errors import UserError
from tests.benchmark import fakes


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    return fakes.world_in(tmp_path, monkeypatch)


def figure(world: fakes.World, name: str, *more: str) -> int:
    return cli.main(["figure", name, *(item for item in world.overrides(*more) if not item.startswith("table="))])


def test_figures_run_what_they_lack_and_share_it(world):
    assert figure(world, "fig5", "train.epochs=1,2", "methods=full_ft,spider") == 0
    assert sum(line.startswith("train ") for line in fakes.calls()) == 4
    (path,) = (world.results / "sweeps").glob("fig5-*.csv")
    swept = pd.read_csv(path)
    assert set(swept["train.epochs"]) == {1, 2} and set(swept["method"]) == {"full_ft", "spider"}
    assert figure(world, "plane", "train.epochs=2", "methods=zero_shot,full_ft,spider") == 0
    # Both trainings were there; the curve is made from Full FT without another.
    assert sum(line.startswith("train ") for line in fakes.calls()) == 4
    assert sum(line.startswith("posthoc ") for line in fakes.calls()) == 9
    assert figure(world, "fig3", "train.epochs=2") == 0
    assert sum(line.startswith("train ") for line in fakes.calls()) == 4
    # Each is a part of its figure, and leaves the name of the whole alone.
    for stem in ("fig5-*", "plane-*_llava_pocket", "fig3-*_llava_pocket_iconqa"):
        assert {path.suffix for path in (world.results / "figures").glob(f"{stem}.*")} == {".png", ".pdf", ".csv"}
    assert not list((world.results / "figures").glob("fig5.*"))


def test_all_goes_on_after_a_failure_and_says_so(monkeypatch, capsys):
    made = []

    def step(name, overrides):
        def run():
            made.append(name)
            if name == "fig6":
                raise UserError("nothing to draw")
            return 1 if name == "table3" else 0

        return run

    monkeypatch.setattr(everything, "_table", step)
    monkeypatch.setattr(everything, "_figure", step)
    monkeypatch.setattr(everything, "_report", lambda overrides: made.append("report") or 0)
    monkeypatch.setattr(everything.rates, "run", lambda overrides: made.append("rates") or 0)
    assert everything.run(["seeds=0"]) == 1  # the first code that was not 0
    assert made == [*everything.TABLES, *everything.FIGURES, "rates", "report"]
    out = capsys.readouterr().out
    assert "table3" in out and "exit code 1" in out and "nothing to draw" in out
    assert {"table2", "table3", "table4", "table5", "table6", "variants"} == set(everything.TABLES)


def test_all_stops_where_it_is_stopped(monkeypatch):
    made = []
    monkeypatch.setattr(everything, "_table", lambda name, overrides: lambda: made.append(name) or 75)
    assert everything.run([]) == 75 and made == [everything.TABLES[0]]
    with pytest.raises(UserError, match="own"):
        everything.run(["targets=coco"])
