"""`restore`: published cells count as finished on another machine; what needs their weights makes them again."""

from __future__ import annotations

import shutil

import pytest

from benchmark import cli
from benchmark.publishing.verify import verify
from benchmark.store.cells import Store
from tests.benchmark import fakes
from tests.benchmark.cells import change_tables

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A world whose cells of Full FT and SPIDER are published, on a machine that has none of them."""
    for module in ("publish", "restore"):
        monkeypatch.setattr(f"benchmark.publishing.{module}.at_root", lambda path: tmp_path / "reference")
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    world = fakes.world_in(tmp_path, monkeypatch)
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 0
    assert cli.main(["publish", *world.grid("methods=full_ft,spider")]) == 0
    shutil.rmtree(world.results)
    world.forget_calls()
    return world


def restore(world: fakes.World) -> int:
    return cli.main(["restore", f"results={world.results}"])


def faults(world: fakes.World) -> list[str]:
    """Return what `verify` finds in the results, but for the stand-ins' twelve items per set."""
    found: list[str] = []
    verify(world.results, lambda fault: found.append(str(fault)))
    return [fault for fault in found if "has n=12" not in fault]


def test_restored_cells_are_finished_and_stand_every_check(world, capsys):
    assert restore(world) == 0
    assert "2 cells." in capsys.readouterr().out
    assert cli.main(["run", *world.overrides("methods=full_ft,spider")]) == 0
    assert "2 cells, 2 done." in capsys.readouterr().out and fakes.calls() == []
    assert faults(world) == []
    assert cli.main(["compare", str(world.results), str(world.root / "reference")]) == 0
    assert "2 of 2 cells have identical item scores" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in (world.root / "reference").glob("items.parquet")}
    assert cli.main(["publish", *world.grid("methods=full_ft,spider")]) == 0
    assert (world.root / "reference" / "items.parquet").read_bytes() == before["items.parquet"]
    assert restore(world) == 0
    assert "0 cells, 2 were there." in capsys.readouterr().out


def test_a_cell_that_needs_the_weights_makes_them_again(world):
    restore(world)
    assert cli.main(["run", *world.overrides("methods=full_ft,dare,spider")]) == 0
    trained = [line.split()[2] for line in fakes.calls() if line.startswith(("train", "posthoc"))]
    assert trained == ["full_ft", "dare"], "SPIDER's weights are needed by nobody"
    full_ft = next(path for name, path in world.cells().items() if "full_ft" in name)
    assert (full_ft / "delta.safetensors").is_file()


def test_a_set_that_is_asked_for_later_is_answered_with_new_weights(world):
    restore(world)
    spider = next(path for name, path in world.cells().items() if "spider" in name)
    shutil.rmtree(spider / "answers")
    assert cli.main(["run", *world.overrides("methods=spider")]) == 0
    assert [line.split()[0] for line in fakes.calls()][:2] == ["load", "train"]


def test_cells_of_other_code_or_data_are_left_out_and_named(world, capsys):
    def change(tables):
        tables.cells.loc[tables.cells.method == "spider", "key"] = "another"

    change_tables(world.root / "reference", change)
    capsys.readouterr()
    assert restore(world) == 0
    said = capsys.readouterr().out
    assert "1 cell." in said and "Left out" in said and "spider" in said and "full_ft" not in said


@pytest.mark.parametrize("file", ["answers", "scores.json"])
def test_an_interrupted_restore_is_finished_by_the_next(file, world, monkeypatch, capsys):
    from benchmark.publishing import restore as module

    def killed(path, content):
        if file in str(path):
            raise KeyboardInterrupt
        write(path, content)

    write = module.write_atomic
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", killed)
        assert restore(world) == 130
    assert not Store(world.results).finished() or file == "answers"
    assert restore(world) == 0 and "2 cells." in capsys.readouterr().out
    assert faults(world) == []


def test_without_published_results_it_says_so(world, capsys):
    shutil.rmtree(world.root / "reference")
    assert restore(world) == 2
    assert "no published results here" in capsys.readouterr().err
