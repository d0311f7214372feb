"""A part of a table or figure: its own file name and heading; the whole table's files are never replaced by it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.config.compose import options_of
from benchmark.config.request import request
from benchmark.publishing import findings, publish, verify_tables
from benchmark.reporting import outputs, slices
from benchmark.spec import cell_id
from benchmark.store.cells import Store, read_cell
from tests.benchmark import fakes


def found(*overrides: str) -> dict[str, str]:
    asked = request(["table=table5", *overrides])
    return slices.differences(asked, outputs.whole(asked))


@pytest.mark.parametrize("table", options_of("table"))
@pytest.mark.parametrize("overrides", [[], ["seeds=0,1,2"], ["jobs=2", "data_root=/x", "model.checkpoint=/y"]])
def test_a_whole_table_keeps_its_name(table, overrides):
    asked = request([f"table={table}", *overrides])
    assert slices.differences(asked, outputs.whole(asked)) == {}


@pytest.mark.parametrize(("overrides", "name", "heading"), [
    (["methods=full_ft,spider"], "-full_ft+spider", "; here: methods full_ft, spider"),
    (["models=llava_pocket", "targets=coco"], "-llava_pocket-coco", "; here: models llava_pocket; targets coco"),
    (["targets=coco,iconqa"], "-coco+iconqa", "; here: targets coco, iconqa"),
    (["targets=flickr30k,coco,iconqa"], "-with_iconqa", "; here: with iconqa"),
    (["seeds=1"], "-seeds_1", "; here: seeds 1"),
    (["train.epochs=7"], "-epochs_7", "; here: train.epochs 7"),
    (["eval.limit=4", "train.limit=16"], "-limit_4-limit_16", "; here: eval.limit 4; train.limit 16"),
])
def test_a_part_says_what_it_holds(overrides, name, heading):
    parts = found(*overrides)
    assert slices.suffix(parts) == name and slices.heading(parts) == heading


def test_a_long_list_is_counted_in_a_heading_and_cut_in_a_name():
    parts = {"targets": "coco", "methods": ", ".join(f"method_{number}" for number in range(30))}
    assert slices.heading(parts) == "; here: targets coco; 30 methods"
    others = parts | {"methods": parts["methods"].replace("method_29", "method_31")}
    assert re.fullmatch("-coco-30_methods-[0-9a-f]{8}", slices.suffix(parts))
    assert slices.suffix(parts) != slices.suffix(others)


def test_named_cells_of_all_models_and_methods_are_no_whole_table():
    names = [cell_id(cell) for cell in request(["table=table5"]).cells]
    parts = found(f"only={','.join(names[1:])}")
    assert re.fullmatch("-cells_[0-9a-f]{8}", slices.suffix(parts)) and parts != found(f"only={','.join(names[2:])}")
    assert found(f"only={','.join(names)}") == {}


def test_names_are_safe_and_differ_where_the_parts_do():
    texts = [{"train.x": "a b"}, {"train.x": "a/b"}, {"methods": ", ".join(f"method{k}" for k in range(40))},
             {"methods": ", ".join(f"method{k}" for k in range(41))}]
    names = [slices.suffix(one) for one in texts]
    assert len(set(names)) == 4 and all(len(name) < 120 and set(name).isdisjoint("/ .") for name in names)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    return fakes.world_in(tmp_path, monkeypatch)


def run(world: fakes.World, *more: str) -> int:
    own = [item for item in world.overrides() if not item.startswith(("models=", "targets="))]
    return cli.main(["run", *own, *more])


def files(world: fakes.World) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for folder in ("tables", "figures") for path in
            (world.results / folder).iterdir()}


@pytest.mark.slow
def test_a_slice_leaves_the_files_of_the_whole_table_alone(world, capsys):
    """All of md, csv, tex, png and pdf; the slice stands beside them and its first line says what it holds."""
    assert run(world) == 0
    before = files(world)
    assert {"table6.md", "table6.csv", "table6.tex", "fig4_llava_pocket_iconqa.png"} <= before.keys()
    assert run(world, "methods=full_ft,spider", "models=llava_pocket") == 0
    after = files(world)
    assert {name: after[name] for name in before} == before
    new = after.keys() - before.keys()
    stem = "llava_pocket-full_ft+spider"
    tables = {f"table6-{stem}.{kind}" for kind in ("md", "csv", "tex")}
    radars = {f"fig4-{stem}_llava_pocket_{target}.{kind}" for target in ("iconqa", "scienceqa")
              for kind in ("png", "pdf", "csv")}
    assert new == tables | radars
    first = after[f"table6-{stem}.md"].decode().splitlines()[0]
    assert first.endswith("here: models llava\\_pocket; methods full\\_ft, spider")
    assert "methods full" in after[f"table6-{stem}.tex"].decode()
    assert f"tables/table6-{stem}." in capsys.readouterr().out


@pytest.mark.slow
def test_a_slice_of_another_setting_is_verified_from_its_own_cells(world):
    """Two settings of a cell lie side by side: the table itself names those it is of."""
    for epochs in (5, 7):
        assert run(world, "methods=full_ft,spider", "models=llava_pocket", "targets=iconqa",
                   f"train.epochs={epochs}") == 0
    cells = {folder.name: read_cell(folder) for folder in Store(world.results).all_cells()}
    faults = findings.Findings(print)
    tables = sorted((world.results / "tables").glob("table6-*.csv"))
    for path in tables:
        verify_tables.check_table(Store(world.results), path, cells, faults)
    assert len(tables) == 2 and any("epochs_7" in path.name for path in tables) and faults.faults == []


def test_publishing_takes_no_slice_for_the_whole(tmp_path):
    for name, part in (("fig4_m_coco.png", False), ("fig4-full_ft_m_coco.png", True), ("fig5.csv", False),
                       ("fig5-vila_pocket.csv", True), ("plane-full_ft_m.pdf", True), ("my-sweep.csv", False),
                       ("protocol-x.md", False)):
        assert publish._of_a_slice(tmp_path / name) is part, name
