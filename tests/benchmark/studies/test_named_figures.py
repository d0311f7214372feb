"""`figure NAME` and `all` from end to end with stand-ins: what is missing is run, then drawn."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmark import cli
from benchmark.core.errors import UserError
from benchmark.core.progress import read_image
from benchmark.studies import discrepancy, everything, named_figures
from tests.benchmark import fakes


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    return fakes.world_in(tmp_path, monkeypatch)


def figure(world: fakes.World, name: str, *more: str) -> int:
    given = world.grid(*more) if name == "fig1" else world.overrides(*more)  # Fig. 1 runs no cell
    return cli.main(["figure", name, *(item for item in given if not item.startswith("table="))])


@pytest.mark.slow
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


def test_images_that_a_figure_reads_itself_are_told(world, monkeypatch, capsys):
    """Fig. 1 reads the training images of eight sets, without a cell whose progress is shown."""
    def reads(*_):
        read_image(640, 10_000)
        raise UserError("enough")

    monkeypatch.setattr(discrepancy, "measure", reads)
    monkeypatch.setattr("benchmark.core.progress.QUIET_SECONDS", 0)
    assert figure(world, "fig1") == 2
    assert "fig1 llava_pocket: images 640/10,000" in capsys.readouterr().out


@pytest.mark.slow
def test_form_asks_everything_twice_and_trains_once(world, capsys):
    assert figure(world, "form", "methods=zero_shot,full_ft") == 0
    assert sum(line.startswith("train ") for line in fakes.calls()) == 1
    out = capsys.readouterr().out
    assert "| Zero-shot |" in out and "after 1 solved question " in out
    (path,) = (world.results / "studies").glob("form-*.csv")
    found = pd.read_csv(path)
    assert list(found["method"]) == ["zero_shot", "full_ft"] and list(found["seeds"]) == [1, 1]
    assert {item.suffix for item in (world.results / "figures").glob("form-*")} == {".png", ".pdf", ".csv"}
    assert figure(world, "form", "methods=zero_shot,full_ft", "eval.examples=2") == 0
    assert sum(line.startswith("train ") for line in fakes.calls()) == 1
    assert "after 2 solved questions" in capsys.readouterr().out
    assert figure(world, "form", "methods=full_ft") == 2 and "the untuned model is needed" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "given"), [
    ("form", ["train.epochs=1,2"]), ("form", ["eval.examples=1,2"]), ("plane", ["train.epochs=1,2"]),
    ("fig3", ["train.epochs=1,2"]), ("forgetting", ["train.batch_size=16,32"]),
    ("survey", ["train.epochs=1,2", "methods=full_ft"]),
])
def test_a_figure_of_one_setting_refuses_several_before_it_runs(world, capsys, name, given):
    assert figure(world, name, *given) == 2
    assert "shows one setting, but a key has several values" in capsys.readouterr().err and not fakes.calls()


def test_a_checkpoint_of_the_users_own_is_no_point_of_the_planes_curve(world, tmp_path):
    (tmp_path / "own").mkdir()
    asked, curve = named_figures.requests("plane", [*world.overrides(), f"checkpoints=mine:{tmp_path / 'own'}"])
    assert {cell.method.id for cell in curve.cells} == {"wise_ft"}


OWN = "examples.my_method:TopKGradient"


@pytest.mark.slow
def test_parameters_go_to_the_methods_that_have_them():
    asked, curve = named_figures.requests("plane", [f"methods=full_ft,{OWN}", "method.share=0.3"])
    own = {"share": 0.3, "momentum": 0.9}
    assert {cell.method.id: dict(cell.method.params) for cell in asked.cells} == {"full_ft": {}, OWN: own}
    assert sorted({cell.method.params["alpha"] for cell in curve.cells}) == [n / 10 for n in range(1, 10)]
    # A value of the curve's own key replaces the file's, unless a method of the figure has that key too.
    _, curve = named_figures.requests("plane", ["methods=full_ft", "method.alpha=0.25,0.75"])
    assert {cell.method.params["alpha"] for cell in curve.cells} == {0.25, 0.75}
    asked, curve = named_figures.requests("plane", ["methods=full_ft,wise_ft", "method.alpha=0.25"])
    assert len({cell.method.params["alpha"] for cell in curve.cells}) == 9
    assert {cell.method.params.get("alpha") for cell in asked.cells} == {None, 0.25}
    (asked,) = named_figures.requests("fig5", ["method.momentum=0.9"])
    assert {cell.method.params.get("momentum") for cell in asked.cells} == {None, 0.9}


@pytest.mark.parametrize(("name", "given"), [
    ("plane", ["methods=full_ft,spider", "method.momentun=0.9"]), ("fig5", ["method.alpha=0.5"]),
    ("plane", ["methods=full_ft", "method.momentum=0.9"]),
])
def test_a_parameter_that_no_method_of_a_figure_has_is_an_error(name, given):
    with pytest.raises(UserError, match=rf"{given[-1].partition('=')[0]}: no such parameter in full_ft.* Valid: "):
        named_figures.requests(name, given)


@pytest.mark.slow
def test_all_gives_a_parameter_to_the_tables_and_figures_that_have_it(monkeypatch):
    given = {}
    monkeypatch.setattr(everything, "_table", lambda name, own: lambda: given.update({name: own}) or 0)
    monkeypatch.setattr(everything, "_figure", lambda name, own: lambda: given.update({name: own}) or 0)
    monkeypatch.setattr(everything, "_report", lambda own: given.update(report=own) or 0)
    monkeypatch.setattr(everything.learning_rate, "run", lambda own: given.update(rates=own[1:]) or 0)
    assert everything.run(["seeds=2,1", "method.alpha=0.4"]) == 0
    # table5 and table6 have no WiSE-FT; the plane's curve and the report's do.
    assert given["table5"] == given["fig5"] == ["seeds=2,1"]
    assert given["plane"] == given["report"] == ["seeds=2,1", "method.alpha=0.4"]
    assert given["rates"] == [] and given["fig3"] == ["seeds=1"]  # of one seed each
    given.clear()
    with pytest.raises(UserError, match=r"method.aplha: no such parameter in .*Did you mean 'method.alpha'"):
        everything.run(["method.aplha=0.4"])
    assert not given


@pytest.mark.slow
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
    monkeypatch.setattr(everything.learning_rate, "run", lambda overrides: made.append("rates") or 0)
    assert everything.run(["seeds=0"]) == 1  # the first code that was not 0
    assert made == [*everything.TABLES, *everything.FIGURES, "rates", "report"]
    out = capsys.readouterr().out
    assert "table3" in out and "exit code 1" in out and "nothing to draw" in out
    assert {"table2", "table3", "table4", "table5", "table6", "variants"} == set(everything.TABLES)


@pytest.mark.slow
def test_all_stops_where_it_is_stopped(monkeypatch):
    made = []
    monkeypatch.setattr(everything, "_table", lambda name, overrides: lambda: made.append(name) or 75)
    assert everything.run([]) == 75 and made == [everything.TABLES[0]]
    with pytest.raises(UserError, match="own"):
        everything.run(["targets=coco"])
