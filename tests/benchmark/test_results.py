"""A results folder as tables: published and of a run, what the lines say, and what a damaged file says."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from benchmark import cli, results
from benchmark.core.errors import UserError
from benchmark.spec import ROOT
from benchmark.store.cells import Store, read_cell
from tests.benchmark import fakes
from tests.benchmark.cells import Tables, unfold

PUBLISHED = ROOT / "results" / "pocket"


NAMES = re.compile(r"vila_pocket-(zero_shot|coco-(full_ft|spider)-s0)-\w+")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Return a folder with three published cells: VILA untuned, Full FT and SPIDER on COCO with seed 0."""
    return Tables(folder for folder in Store(PUBLISHED).all_cells() if NAMES.fullmatch(folder.name)).write(
        tmp_path_factory.mktemp("published")
    )


@pytest.mark.slow
def test_a_row_of_table_5_follows_from_the_items(monkeypatch):
    """The example of docs/results.md, as it stands there."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    lines = re.search(r"    import pandas\n.*?\n\n", text, re.DOTALL)[0]
    printed: list[pd.Series] = []
    monkeypatch.chdir(ROOT)
    exec("\n".join(line.removeprefix("    ") for line in lines.splitlines()), {"print": printed.append})
    with open(PUBLISHED / "tables" / "table5.csv", encoding="utf-8", newline="") as file:
        row = {
            line["metric"]: line["value"] for line in csv.DictReader(file)
            if (line["model"], line["target"], line["method"]) == ("vila_pocket", "coco", "spider")
        }
    assert {name: f"{value:.4f}" for name, value in printed[0].items()} == {
        "coco": row["A_T"], **{name: row[name] for name in ("okvqa", "textvqa", "ocrvqa", "gqa")},
    }
    for name, value in printed[0].items():
        assert f"{name} {value:.2f}" in text or name == "coco" and f"A^T {value:.2f}" in text


@pytest.mark.slow
def test_pandas_reads_the_committed_tables_in_one_line():
    loaded = results.load(PUBLISHED)
    for name, rows in (("cells", 959), ("items", 2_375_500), ("logs", 121_240)):
        frame = pd.read_parquet(PUBLISHED / f"{name}.parquet")
        assert len(frame) == rows
        if name == "items":  # the file has the cells of an item together, loading gives the items of a cell
            frame = frame.sort_values("cell", key=lambda cells: cells.cat.codes, kind="stable", ignore_index=True)
        assert frame.equals(getattr(loaded, name))  # a comparison that names the cells that differ takes a minute


def test_every_published_cell_has_its_lines(published):
    loaded = results.load(published)
    assert sorted(loaded.cells.method) == sorted(["zero_shot"] * 4 + ["full_ft", "spider"])
    spider = loaded.cells[loaded.cells.method == "spider"].iloc[0]
    scores = json.loads(spider.scores)["averages"]["coco"]
    for name, entry in scores.items():
        assert [spider[name], spider[f"{name}_low"], spider[f"{name}_high"]] == list(
            map(pytest.approx, (entry["value"], entry["low"], entry["high"]))
        )
    cell = read_cell(Store(published).cells / spider.cell)
    assert (spider.epochs, spider.learning_rate, spider.seed) == (cell.train.epochs, cell.train.learning_rate, 0)
    assert json.loads(spider.spec)["method"]["id"] == "spider" and len(spider.key) == 64 and spider.seconds > 0
    assert loaded.cells[loaded.cells.method == "zero_shot"].epochs.isna().all()
    steps = loaded.logs.groupby("cell").step.max()
    assert set(steps) == {160} and len(loaded.logs) == 320
    assert loaded.items.answer.map(type).eq(str).all() and loaded.items.score.notna().all()


@pytest.mark.slow
def test_a_run_has_the_same_tables_as_a_published_folder(tmp_path, monkeypatch):
    world = fakes.world_in(tmp_path, monkeypatch)
    assert cli.main(["run", *world.overrides("methods=zero_shot,full_ft"), "--cells-only"]) == 0
    loaded = results.load(world.results)
    assert set(loaded.cells.method) == {"zero_shot", "full_ft"} and loaded.cells.key.isna().all()
    for (cell, dataset), group in loaded.items.groupby(["cell", "dataset"], observed=True):
        entry = json.loads((world.results / "cells" / cell / "scores.json").read_text())["datasets"][dataset]
        assert len(group) == entry["n"] and 100 * group.score.mean() == pytest.approx(entry["value"])
    assert set(loaded.logs.cell) == set(loaded.cells[loaded.cells.method == "full_ft"].cell)


@pytest.mark.slow
def test_publishing_the_same_cells_gives_the_same_bytes_whatever_they_are_read_from(published, tmp_path):
    """From folders of a run, from tables, from some of each; other columns of logs do not change their order."""
    folders = {folder.name: folder for folder in Store(published).all_cells()}
    unfolded = {name: unfold(folder, tmp_path / "run" / name) for name, folder in folders.items()}
    last = max(folders)
    contents = []
    for number, mixed in enumerate((folders, unfolded, {**folders, last: unfolded[last]}, folders)):
        root = tmp_path / str(number)
        root.mkdir()
        results.write(root, dict(reversed(mixed.items())), {})
        contents.append({path.name: path.read_bytes() for path in root.iterdir()})
    assert contents[0].keys() == {"cells.parquet", "items.parquet", "logs.parquet"}
    assert all(one == contents[0] for one in contents)


def test_the_file_has_the_cells_of_an_item_together_and_loading_gives_the_items_of_a_cell(published, tmp_path):
    folders = {folder.name: folder for folder in Store(published).all_cells()}
    results.write(tmp_path, folders, {})
    written = pd.read_parquet(tmp_path / "items.parquet")
    answered = written.groupby(["dataset", "item_id"], observed=True).cell.nunique()
    runs = (written[["dataset", "item_id"]] != written[["dataset", "item_id"]].shift()).any(axis=1).sum()
    assert runs == len(answered) and answered.max() > 1
    expected = results.items_of(folders)
    pd.testing.assert_frame_equal(results.load(tmp_path).items, expected, check_categorical=False)


def test_numbers_that_are_not_finite_and_odd_keys_come_back(published, tmp_path):
    folder = unfold(next(folder for folder in Store(published).all_cells() if "spider" in folder.name), tmp_path / "a")
    (folder / "train.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1, "selected/\\u2028": 0.5}\n')
    (tmp_path / "b").mkdir()
    results.write(tmp_path / "b", {"a": folder}, {})
    text = (Store(tmp_path / "b").cells / "a" / "train.jsonl").read_text()
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    assert rows[0].keys() == {"step", "loss"} and math.isnan(rows[0]["loss"])
    assert rows[1] == {"step": 2, "loss": 1, "selected/\u2028": 0.5}


def test_a_drift_is_published_with_its_cell_and_older_tables_do_without(published, tmp_path):
    cells = {folder.name: unfold(folder, tmp_path / "run" / folder.name) for folder in Store(published).all_cells()}
    for folder in cells.values():
        (folder / "drift.json").unlink(missing_ok=True)
    older = tmp_path / "older"
    older.mkdir()
    results.write(older, cells, {})
    assert "drift" not in results.load(older).cells and not list(Store(older).cells.glob("*/drift.json"))
    spider = next(name for name in cells if "spider" in name)
    (cells[spider] / "drift.json").write_text('{"kl": 0.5}')
    roots = [tmp_path / name for name in ("once", "twice")]
    for root in roots:  # from folders of a run, then from the tables that this gave
        root.mkdir()
        results.write(root, cells, {})
        cells = {name: Store(root).cells / name for name in cells}
        assert [path.parent.name for path in Store(root).cells.glob("*/drift.json")] == [spider]
        assert (Store(root).cells / spider / "drift.json").read_text() == '{"kl": 0.5}'
        assert results.load(root).cells.drift.notna().sum() == 1


def test_what_cannot_be_read_is_named(published, tmp_path):
    with pytest.raises(UserError, match="has no finished cells. Name a results folder"):
        results.load(tmp_path / "nowhere")
    source = next(folder for folder in Store(published).all_cells() if "spider" in folder.name)
    folder = unfold(source, tmp_path / "cells" / source.name)
    (folder / "train.jsonl").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"Cannot read .*train.jsonl"):
        results.load(tmp_path).logs  # noqa: B018
    for text in ("{", "[]", '{"seconds": 5}'):
        (folder / "provenance.json").write_text(text)
        with pytest.raises(UserError, match=r"Cannot read .*provenance.json"):
            results.load(tmp_path).cells  # noqa: B018
