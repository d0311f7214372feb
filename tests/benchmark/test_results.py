"""A results folder as tables: published and of a run, what the lines say, and what a damaged file says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmark import cli, results
from benchmark.errors import UserError
from benchmark.spec import ROOT
from benchmark.store import read_cell
from tests.benchmark import fakes

PUBLISHED = ROOT / "results" / "pocket"


@pytest.fixture
def published(tmp_path) -> Path:
    """Return a results folder with three published cells: VILA untuned, Full FT and SPIDER on COCO with seed 0."""
    names = re.compile(r"vila_pocket-(zero_shot|coco-(full_ft|spider)-s0)-\w+")
    for folder in (PUBLISHED / "cells").iterdir():
        if names.fullmatch(folder.name):
            shutil.copytree(folder, tmp_path / "cells" / folder.name)
    return tmp_path


def test_a_number_of_table_5_follows_from_the_items(published):
    """The example of docs/results.md, on the cells that it needs."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    lines = re.search(r"from benchmark import results\n.*?mean\(\)\)\n", text, re.DOTALL)[0]
    code = "\n".join(line.strip() for line in lines.splitlines())
    found: list[pd.Series] = []
    exec(code.replace("results/pocket", str(published)), {"print": found.append})
    folder = next(published.glob("cells/*-spider-*"))
    scores = json.loads((folder / "scores.json").read_text())["datasets"]
    assert dict(found[0]) == pytest.approx({name: entry["value"] for name, entry in scores.items()})


def test_every_published_cell_has_its_lines(published):
    loaded = results.load(published)
    assert sorted(loaded.cells.method) == sorted(["zero_shot"] * 4 + ["full_ft", "spider"])
    spider = loaded.cells[loaded.cells.method == "spider"].iloc[0]
    scores = json.loads((published / "cells" / spider.cell / "scores.json").read_text())["averages"]["coco"]
    for name, entry in scores.items():
        assert [spider[name], spider[f"{name}_low"], spider[f"{name}_high"]] == list(
            map(pytest.approx, (entry["value"], entry["low"], entry["high"]))
        )
    cell = read_cell(published / "cells" / spider.cell)
    assert (spider.epochs, spider.learning_rate, spider.seed) == (cell.train.epochs, cell.train.learning_rate, 0)
    assert json.loads(spider.spec)["method"]["id"] == "spider" and len(spider.key) == 64 and spider.seconds > 0
    assert loaded.cells[loaded.cells.method == "zero_shot"].epochs.isna().all()
    steps = loaded.logs.groupby("cell").step.max()
    assert set(steps) == {160} and len(loaded.logs) == 320
    assert loaded.items.answer.map(type).eq(str).all() and loaded.items.score.notna().all()


def test_a_run_has_the_same_tables_as_a_published_folder(tmp_path, monkeypatch):
    world = fakes.world_in(tmp_path, monkeypatch)
    assert cli.main(["run", *world.overrides("methods=zero_shot,full_ft"), "--cells-only"]) == 0
    loaded = results.load(world.results)
    assert set(loaded.cells.method) == {"zero_shot", "full_ft"} and loaded.cells.key.isna().all()
    for (cell, dataset), group in loaded.items.groupby(["cell", "dataset"], observed=True):
        entry = json.loads((world.results / "cells" / cell / "scores.json").read_text())["datasets"][dataset]
        assert len(group) == entry["n"] and 100 * group.score.mean() == pytest.approx(entry["value"])
    assert set(loaded.logs.cell) == set(loaded.cells[loaded.cells.method == "full_ft"].cell)


def test_what_cannot_be_read_is_named(published, tmp_path):
    with pytest.raises(UserError, match="has no finished cells. Name a results folder"):
        results.load(tmp_path / "nowhere")
    folder = next(published.glob("cells/*-spider-*"))
    (folder / "train.jsonl.gz").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"Cannot read .*train.jsonl.gz"):
        results.load(published).logs  # noqa: B018
    (folder / "provenance.json").write_text("{")
    with pytest.raises(UserError, match=r"Cannot read .*provenance.json"):
        results.load(published).cells  # noqa: B018
