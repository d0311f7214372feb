"""Comparison of two results folders: identical, near, off, and not comparable with the reason."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.cli import runs
from benchmark.core.errors import UserError
from benchmark.publishing.compare import compare, describe, line
from tests.benchmark import fakes


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, fakes.World]:
    world = fakes.world_in(tmp_path, monkeypatch)
    assert cli.main(["run", *world.overrides("methods=full_ft,spider"), "--cells-only"]) == 0
    other = tmp_path / "other"
    shutil.copytree(world.results, other)
    return world.results, other, world


def cell(folder: Path, method: str) -> Path:
    return next(folder.glob(f"cells/*{method}*"))


def rewrite(path: Path, change) -> None:
    rows = [json.loads(text) for text in gzip.decompress(path.read_bytes()).decode().splitlines()]
    for row in rows:
        change(row)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def test_a_copy_is_identical(folders):
    gaps, alone = compare(*folders[:2])
    assert [gap.verdict for gap in gaps] == ["identical"] * 2 and alone == []
    assert "2 of 2 cells have identical item scores." in line(gaps, folders[1])


def test_a_cell_is_the_same_whatever_words_its_name_has(folders):
    ours, theirs, world = folders
    shutil.rmtree(world.results)
    assert cli.main(["run", *world.overrides("methods=full_ft", "train.epochs=2"), "--cells-only"]) == 0
    name = cell(ours, "full_ft").name
    assert "-epochs2-" in name
    shutil.copytree(ours / "cells" / name, theirs / "cells" / name.replace("-epochs2", ""))
    gaps, alone = compare(ours, theirs)
    assert [(gap.cell, gap.verdict) for gap in gaps] == [(name, "identical")] and alone == []


@pytest.mark.slow
@pytest.mark.parametrize(("change", "verdict"), [(-0.1, "near"), (-300.0, "off")])
def test_numbers_are_near_inside_the_intervals_and_off_outside(folders, change, verdict):
    ours, theirs, _ = folders
    folder = cell(theirs, "spider")
    scores = json.loads((folder / "scores.json").read_text())
    entry = scores["averages"]["iconqa"]["A_T"]
    scores["averages"]["iconqa"]["A_T"] = {key: value + change for key, value in entry.items()}
    (folder / "scores.json").write_text(json.dumps(scores))
    rewrite(folder / "items" / "iconqa.jsonl.gz", lambda row: row.update(score=row["score"] / 2))
    (gap,) = [gap for gap in compare(ours, theirs)[0] if "spider" in gap.cell]
    assert gap.verdict == verdict and gap.metric == "iconqa A_T"
    assert gap.ours - gap.theirs == pytest.approx(-change)
    assert gap.low <= gap.high and "95 % interval" in describe(gap)


@pytest.mark.slow
def test_other_settings_and_other_items_are_not_comparable_and_say_why(folders):
    ours, theirs, world = folders
    rewrite(cell(theirs, "full_ft") / "items" / "gqa.jsonl.gz", lambda row: row.update(item_id="x" + row["item_id"]))
    shutil.rmtree(cell(theirs, "spider"))
    arguments = [item for item in world.overrides("methods=spider", "train.epochs=7") if "results=" not in item]
    assert cli.main(["run", *arguments, f"results={theirs}", "--cells-only"]) == 0
    found = {gap.cell.split("-")[2]: gap for gap in compare(ours, theirs)[0]}
    assert found["full_ft"].verdict == found["spider"].verdict == "not comparable"
    assert "other test items in gqa (12 | 12)" in found["full_ft"].why
    assert "train.epochs 5 | 7" in found["spider"].why
    assert line(list(found.values()), theirs).startswith("Nothing to compare")


@pytest.mark.slow
def test_an_untuned_model_asked_otherwise_is_not_comparable(folders):
    ours, _, world = folders
    other = world.root / "asked otherwise"
    assert cli.main(["run", *world.overrides("methods=zero_shot"), "--cells-only"]) == 0
    given = [item for item in world.overrides("methods=zero_shot") if not item.startswith("results=")]
    given += [f"results={other}", "dataset.iconqa.prompt='Say: {question}'"]
    assert cli.main(["run", *given, "--cells-only"]) == 0
    (gap,) = [gap for gap in compare(ours, other)[0] if "zero_shot" in gap.cell]
    assert gap.verdict == "not comparable" and "iconqa.prompt" in gap.why and "Say: {question}" in gap.why


@pytest.mark.slow
def test_other_inputs_are_named(folders):
    """The same settings on another base model have the same name; only the keys tell."""
    ours, theirs, world = folders
    (world.checkpoint / "weights").write_text("another base")
    given = [item for item in world.overrides("methods=full_ft,spider") if not item.startswith("results=")]
    assert cli.main(["run", *given, f"results={theirs}", "--cells-only"]) == 0
    assert [gap.verdict for gap in compare(ours, theirs)[0]] == ["identical"] * 2  # the stand-in scores no otherwise
    rewrite(cell(theirs, "spider") / "items" / "iconqa.jsonl.gz", lambda row: row.update(score=row["score"] / 2))
    (gap,) = [gap for gap in compare(ours, theirs)[0] if gap.verdict != "identical"]
    assert "(other base model, data or code)" in describe(gap)


def test_another_schema_is_refused(folders):
    (folders[1] / "schema").write_text("2\n")
    with pytest.raises(UserError, match="schema version 2, this program reads and writes version 1"):
        compare(*folders[:2])
    assert cli.main(["run", *folders[2].overrides("methods=full_ft", f"results={folders[1]}")]) == 2
    assert cli.main(["report", f"results={folders[1]}"]) == 2


@pytest.mark.slow
def test_a_published_cell_of_older_code_says_so(folders, monkeypatch):
    ours, theirs, _ = folders
    for path in theirs.glob("cells/*/status.json"):
        path.unlink()
    gaps, _ = compare(ours, theirs)
    assert not any(gap.older for gap in gaps) and line(gaps, theirs).endswith("identical item scores.")
    path = cell(theirs, "spider") / "provenance.json"
    known = json.loads(path.read_text())
    known["code"]["score"] = "0" * 64
    path.write_text(json.dumps(known))
    gaps, _ = compare(ours, theirs)
    assert [gap.older for gap in gaps if gap.older] == [("score",)]
    assert line(gaps, theirs).endswith("identical item scores; 1 of theirs is of older code.")
    assert any(describe(gap).endswith("identical (theirs: older code)") for gap in gaps)


@pytest.mark.slow
def test_after_a_run_only_its_own_cells_are_compared(folders, monkeypatch, capsys):
    """Older cells of the folder say nothing about this run; what the reference lacks is named as such."""
    _, theirs, world = folders
    real = runs._compare_with_reference
    monkeypatch.setattr(runs, "_compare_with_reference", lambda reference, *rest: real(str(theirs), *rest))
    assert cli.main(["run", *world.overrides("methods=full_ft", "targets=scienceqa")]) == 0
    text = capsys.readouterr().out
    assert "identical" not in text
    first = "1 cell not in the reference (first: llava_pocket-scienceqa-full_ft-"
    assert f"Nothing to compare with {theirs}; {first}" in text
    assert cli.main(["run", *world.overrides("methods=full_ft")]) == 0
    assert f"Compared with {theirs}: 1 of 1 cell has identical item scores." in capsys.readouterr().out
    assert cli.main(["run", *world.overrides("methods=full_ft", "targets=iconqa,scienceqa")]) == 0
    text = capsys.readouterr().out
    assert "1 of 1 cell has identical item scores; 1 cell not in the reference (first: llava_pocket-scienceqa-" in text


def test_a_cell_is_found_by_what_it_is_and_not_by_how_its_folder_is_called(folders):
    ours, theirs, world = folders
    for folder in list(theirs.glob("cells/*")):
        folder.rename(folder.with_name(f"renamed-{folder.name}-x"))
    gaps, alone = compare(ours, theirs)
    assert [gap.verdict for gap in gaps] == ["not comparable"] * 2 and alone == []
