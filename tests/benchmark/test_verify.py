"""`verify`: the committed results hold; every kind of fault planted in a copy is named with cell, file and reason."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from benchmark import publish, tables
from benchmark.checkpoint import save_delta
from benchmark.cli import main
from benchmark.compose import changed, usual
from benchmark.files import SUMS, sha256_file, write_sums
from benchmark.findings import Findings, Wrong
from benchmark.render import write
from benchmark.scores import read_items
from benchmark.spec import ROOT, cell_id
from benchmark.store import output_of, read_cell
from benchmark.verify import _same, stages_of, verify
from tests.benchmark.cells import unpack_answers

COMMITTED = ROOT / "results" / next(
    path.parent.name for path in sorted((ROOT / "results").glob("*/cells")) if path.parent.name != "runs"
)
# Trained cells whose targets need no Java; each gets one fault.
CELLS = sorted(
    path.name for path in (COMMITTED / "cells").iterdir()
    if re.search(r"-(iconqa|scienceqa)-", path.name) and (path / "train.jsonl.gz").is_file()
)


def test_published_cells_have_the_names_that_a_run_gives_them():
    folders = [*(COMMITTED / "cells").glob("*-alpha0.4-*"), *sorted((COMMITTED / "cells").iterdir())[::9]]
    assert len(folders) > 30 and any("-epochs10-" in folder.name for folder in folders)
    for folder in folders:
        cell = read_cell(folder)
        assert cell_id(cell) == folder.name == cell_id(replace(cell, changed=changed(cell, usual(cell.profile))))



def faults_of(root: Path, sample: int = 1) -> dict[str, list[str]]:
    """Return the faults of a folder as lines, by cell."""
    lines: dict[str, list[str]] = {}
    verify(root, lambda fault: lines.setdefault(fault.cell, []).append(str(fault)), sample)
    return lines


def test_the_committed_results_hold(capsys):
    """A sample of the cells is scored again; `make verify RESULTS=...` does all."""
    assert main(["verify", str(COMMITTED), "--sample=40"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(
        r"Verified \S+: (\d+) cells, \d+ file digests, (\d+) answers scored again \(of (\d+) cells\), (\d+) tables "
        r"recomputed: no faults\.", last,
    )
    assert found, last
    assert int(found[1]) == len(list((COMMITTED / "cells").iterdir())) and int(found[3]) >= 1
    assert int(found[4]) == len(list((COMMITTED / "tables").glob("*.csv")))


def test_verify_tells_how_many_files_and_cells_it_has_checked(tmp_path):
    for name in CELLS[:2]:
        shutil.copytree(COMMITTED / "cells" / name, tmp_path / "cells" / name)
    write_sums(tmp_path, [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()])
    told = []
    verify(tmp_path, lambda fault: None, told=lambda *report: told.append(report))
    files = len((tmp_path / SUMS).read_text().splitlines())
    assert told == [*(("files", done, files) for done in range(files)), ("cells", 0, 2), ("cells", 1, 2)]


# ---------------------------------------------------------------------------------------------------------------
# Faults


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of a packed file."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in change(lines)).encode(), mtime=0))


def edit(path: Path, change: Callable[[dict], None]) -> None:
    """Change the values of a JSON or YAML file."""
    yaml_file = path.suffix == ".yaml"
    values = yaml.safe_load(path.read_text()) if yaml_file else json.loads(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False) if yaml_file else json.dumps(values))


def row(line: str, **changes: object) -> str:
    return json.dumps({**json.loads(line), **changes})


def all_right(lines: list[str]) -> list[str]:
    return [row(lines[0], score=1.0 - json.loads(lines[0])["score"]), *lines[1:]]


def bump(cell: Path) -> None:
    """Alter a score of a set and all that follows from it, in scores.json only: consistent in itself."""
    def change(values: dict) -> None:
        values["datasets"]["gqa"]["low"] -= 1.0
    edit(cell / "scores.json", change)


def average(cell: Path) -> None:
    def change(values: dict) -> None:
        next(iter(values["averages"].values()))["H"]["value"] += 0.01
    edit(cell / "scores.json", change)


# kind of fault -> (what is done to a cell's folder, the file and the reason that the line names)
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no answers": (lambda c: (c / "answers/gqa.jsonl.gz").unlink(), r"answers/gqa\.jsonl: is missing"),
    "half a file": (
        lambda c: (c / "answers/gqa.jsonl.gz").write_bytes((c / "answers/gqa.jsonl.gz").read_bytes()[:500]),
        r"answers/gqa\.jsonl\.gz: cannot be read \(EOFError",
    ),
    "an answer is lost": (
        lambda c: rewrite(c / "answers/gqa.jsonl.gz", lambda lines: lines[1:]),
        r"answers/gqa\.jsonl\.gz: holds 499 answers, the data have 500 items",
    ),
    "an answer to nothing": (
        lambda c: rewrite(c / "answers/gqa.jsonl.gz", lambda lines: [*lines, lines[0]]),
        r"answers/gqa\.jsonl\.gz: holds 501 answers, the data have 500 items",
    ),
    "no text": (
        lambda c: rewrite(c / "answers/gqa.jsonl.gz", lambda lines: ["null", *lines[1:]]),
        r"answers/gqa\.jsonl\.gz: cannot be read \(ValueError: line 1 is no answer",
    ),
    "another answer": (
        lambda c: rewrite(c / "answers/ocrvqa.jsonl.gz", lambda lines: ['"nothing"' for _ in lines]),
        r"items/ocrvqa\.jsonl\.gz: \d+ of 500 scores are not those of the answers; item \w+: stored 1\.0, scored "
        r"again 0\.0",
    ),
    "another score": (
        lambda c: rewrite(c / "items/gqa.jsonl.gz", all_right),
        r"items/gqa\.jsonl\.gz: 1 of 500 scores are not those of the answers",
    ),
    "no number": (
        lambda c: rewrite(c / "items/gqa.jsonl.gz", lambda lines: [row(lines[0], score=float("nan")), *lines[1:]]),
        r"items/gqa\.jsonl\.gz: item \w+ has the score nan",
    ),
    "another group": (
        lambda c: rewrite(c / "items/gqa.jsonl.gz", lambda lines: [row(lines[0], group="x"), *lines[1:]]),
        r"items/gqa\.jsonl\.gz: item \w+ is in group 'x', in the data in",
    ),
    "another type": (
        lambda c: rewrite(c / "items/gqa.jsonl.gz", lambda lines: [row(lines[0], type="x"), *lines[1:]]),
        r"items/gqa\.jsonl\.gz: 1 of 500 scores .* stored type 'x'",
    ),
    "another order": (
        lambda c: rewrite(c / "items/gqa.jsonl.gz", lambda lines: lines[::-1]),
        r"items/gqa\.jsonl\.gz: the items are not in the order of the data",
    ),
    "no scores": (lambda c: (c / "scores.json").unlink(), r"scores\.json: No such file"),
    "an interval": (bump, r"scores\.json: datasets\.gqa\.low is .*, from the item scores it is"),
    "an average": (average, r"scores\.json: \w+ H is .*, from the scores beside it"),
    "another count": (
        lambda c: edit(c / "scores.json", lambda v: v["datasets"]["gqa"].update(n=499)),
        r"scores\.json: gqa has n=499, the protocol has 500 items",
    ),
    "a set more": (
        lambda c: shutil.copyfile(c / "items/gqa.jsonl.gz", c / "items/coco.jsonl.gz"),
        r"items/coco\.jsonl\.gz: belongs to no dataset of cell\.yaml",
    ),
    "another cell": (
        lambda c: edit(c / "cell.yaml", lambda v: v.update(seed=7)),
        r"cell\.yaml: describes the cell \S+-s7-\w+, not this folder's",
    ),
    "no yaml": (lambda c: (c / "cell.yaml").write_text("{"), r"cell\.yaml: Cannot read"),
    "no provenance": (lambda c: (c / "provenance.json").unlink(), r"provenance\.json: No such file"),
    "no commit": (
        lambda c: edit(c / "provenance.json", lambda v: v.update(commit=None)),
        r"provenance\.json: commit is None: nobody can find the code again",
    ),
    "no processor": (
        lambda c: edit(c / "provenance.json", lambda v: v.pop("cpu_flags")),
        r"provenance\.json: lacks the key 'cpu_flags'",
    ),
    "no version": (
        lambda c: edit(c / "provenance.json", lambda v: v["packages"].pop("torch")),
        r"provenance\.json: has no version of torch",
    ),
    "no time": (
        lambda c: edit(c / "provenance.json", lambda v: v["seconds"].pop("generate/gqa")),
        r"provenance\.json: has no time of generate/gqa",
    ),
    "other items": (
        lambda c: edit(c / "provenance.json", lambda v: v.update(items={
            name: {split: {"n": 500, "ids": "0" * 64} for split in ("test", "train")}
            for name in ("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa", "scienceqa")
        })),
        r"provenance\.json: okvqa/test had 500 items 00000000, the data have 500",
    ),
    "half a training": (
        lambda c: (c / "train.jsonl.gz").write_bytes(
            gzip.compress(b"".join(gzip.decompress((c / "train.jsonl.gz").read_bytes()).splitlines(True)[:-3]))
        ),
        r"train\.jsonl: has \d+ rows up to step \d+, the training has steps 1 to \d+",
    ),
}  # fmt: skip


def test_every_planted_fault_is_named_and_no_other(tmp_path):
    trained = [name for name in CELLS if "-dare-" not in name and "-tailor-" not in name]
    spare = [name for name in CELLS if name not in trained]
    kinds = sorted(FAULTS, key=lambda kind: kind != "half a training")  # a post-hoc cell has no steps
    names = [*trained, *spare][: len(kinds)]
    assert len(names) + 1 >= len(kinds), "not enough cells to plant every fault in"
    planted = dict(zip(names, kinds, strict=False))
    for name in planted:
        shutil.copytree(COMMITTED / "cells" / name, tmp_path / "cells" / name)
        FAULTS[planted[name]][0](tmp_path / "cells" / name)
    found = faults_of(tmp_path)
    for name, kind in planted.items():
        assert len(found.get(name, [])) == 1, (kind, found.get(name))
        assert re.match(rf"{re.escape(name)}: {FAULTS[kind][1]}", found[name][0]), (kind, found[name])
    assert set(found) == set(planted)


# ---------------------------------------------------------------------------------------------------------------
# A folder with tables and digests, and one of runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a published folder of one cell, its table and its digests."""
    name = next(name for name in CELLS if "-full_ft-" in name)
    root = tmp_path / "published"
    shutil.copytree(COMMITTED / "cells" / name, root / "cells" / name)
    cell = read_cell(root / "cells" / name)
    items = {
        dataset.id: {cell.seed: read_items(root / "cells" / name / "items" / f"{dataset.id}.jsonl.gz")}
        for dataset in cell.datasets
    }
    only = tables.RowResult(
        model=cell.model.id, model_name=cell.model.name, method="full_ft", method_name="Full FT", target=cell.target,
        target_name=cell.dataset(cell.target).name, items=items, seeds=(cell.seed,),
    )
    write(tables.build("Table", [only], {one.id: one.name for one in cell.upstream}), root / "tables", "table6")
    (root / "protocol.md").write_text("words of people")
    write_sums(root, [str(path.relative_to(root)) for path in root.rglob("*") if path.suffix != ".md" or "tables" in
                      path.parts if path.is_file()])
    return root


def test_only_bounds_may_differ_in_the_last_bit():
    """They are quantiles of matrix products, which another number of threads sums in another order."""
    stored, seen = {"value": 0.5, "low": 0.25}, Findings(lambda fault: None)
    _same(stored, {"value": 0.5, "low": math.nextafter(0.25, 1)}, True, seen)
    assert seen.rounded == 1
    for wrong in ({"value": math.nextafter(0.5, 1), "low": 0.25}, {"value": 0.5, "low": 0.250001}):
        with pytest.raises(Wrong):
            _same(stored, wrong, True, seen)


@pytest.mark.parametrize(("file", "change", "reasons"), [
    ("", None, []),
    ("protocol.md", lambda path: path.write_text("other words"), []),
    ("tables/table6.csv", lambda path: path.write_text(path.read_text().replace("A_S,", "A_S,9", 1)),
     [r"its digest is not the one in SHA256SUMS", r"full_ft on \w+ \(\w+\), A_S: value is '9\S+', from the cells"]),
    ("tables/table6.md", lambda path: path.write_text(path.read_text().replace("| Full FT |", "| Full FT | 9", 1)),
     [r"its digest is not", r"a line is '\| Full FT \| 9"]),
    ("tables/table6.tex", lambda path: path.write_text(re.sub(r"tiny \d", "tiny 7.5", path.read_text(), count=1)),
     [r"its digest is not", r"a line is ' & .*tiny 7\.5"]),
    ("tables/table6.tex", lambda path: path.unlink(), [r"is missing; SHA256SUMS lists it", r"No such file"]),
    ("tables/other.csv", lambda path: path.write_text("model\n"),
     [r"is not in SHA256SUMS: it was added later", r"is no table of conf/table"]),
    (SUMS, lambda path: path.write_text(path.read_text() + "0" * 64 + "  ../../etc/passwd\n"),
     [r"line \d+ is no digest of a file in this folder", None]),
])  # fmt: skip
def test_files_beside_the_cells(folder, file, change, reasons):
    if change is not None:
        change(folder / file)
    found = faults_of(folder, sample=10**6)
    if None in reasons:  # nothing is listed any more
        assert re.match(rf"-: {file}: .*{reasons[0]}", found["-"][0])
        return
    assert len(found.get("-", [])) == len(reasons) and set(found) <= {"-"}, found
    for line, reason in zip(found.get("-", []), reasons, strict=True):
        assert line.startswith(f"-: {file}: ") and re.search(reason, line), line


def test_the_digests_are_those_of_sha256sum(folder):
    for line in (folder / SUMS).read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert digest == sha256_file(folder / name)
    assert "write_sums" in vars(publish)


@pytest.fixture
def run_folder(folder: Path) -> Path:
    """Return the cell as a run leaves it: plain answers, a delta, stages with digests."""
    shutil.rmtree(folder / "tables")
    (folder / SUMS).unlink()
    path = next((folder / "cells").iterdir())
    unpack_answers(path)
    base = {"weight": torch.zeros(3)}
    save_delta(path / "delta.safetensors", {"weight": torch.ones(3)}, base, ["weight"], "base")
    stages = {}
    for stage in stages_of(read_cell(path)):
        stages[stage] = {"key": "k", "state": "done", "seconds": 1.0}
        if stage != "train":
            stages[stage]["sha256"] = sha256_file(output_of(path, stage))
    (path / "status.json").write_text(json.dumps({"state": "done", "stages": stages}))
    return folder


def spoil_delta(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("file", "change", "reason"), [
    ("", lambda cell: None, None),
    ("delta.safetensors", lambda cell: spoil_delta(cell / "delta.safetensors"), "is damaged: its digest differs"),
    ("delta.safetensors", lambda cell: (cell / "delta.safetensors").unlink(), "is missing"),
    ("items/gqa.jsonl.gz", lambda cell: (cell / "items/gqa.jsonl.gz").write_bytes(
        gzip.compress(gzip.decompress((cell / "items/gqa.jsonl.gz").read_bytes()), mtime=1)),
     "its digest is not the one in status.json"),
    ("scores.json", lambda cell: edit(cell / "status.json", lambda v: v["stages"].pop("summary")),
     "status.json says that the stage summary is not done"),
    ("answers/gqa.jsonl", lambda cell: rewrite_plain(cell / "answers/gqa.jsonl", prompt_hash="0" * 16),
     "was asked with another prompt"),
    ("answers/gqa.jsonl", lambda cell: rewrite_plain(cell / "answers/gqa.jsonl", item_id="x"),
     "1 of 500 items are missing, the first is"),
    ("answers/gqa.jsonl", lambda cell: rewrite_plain(cell / "answers/gqa.jsonl", text=None), "line 1 is no answer"),
    ("answers/gqa.jsonl", lambda cell: (cell / "answers/gqa.jsonl").write_text(
        (cell / "answers/gqa.jsonl").read_text() + row((cell / "answers/gqa.jsonl").read_text().splitlines()[0]) + "\n"
     ), r"item '\w+' is answered twice \(line 501\)"),
    ("answers/gqa.jsonl", lambda cell: (cell / "answers/gqa.jsonl").write_text(
        (cell / "answers/gqa.jsonl").read_text() + json.dumps({"item_id": "x", "text": ""}) + "\n"
     ), "1 items are not in the evaluated split, the first is 'x'"),
])  # fmt: skip
def test_a_run(run_folder, file, change, reason):
    cell = next((run_folder / "cells").iterdir())
    change(cell)
    found = faults_of(run_folder, sample=10**6).get(cell.name, [])
    if reason is None:
        assert not found
        return
    assert any(re.search(rf": {file}: .*{reason}", line) for line in found), found


def rewrite_plain(path: Path, **changes: object) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([row(lines[0], **changes), *lines[1:]]) + "\n")


def test_an_unfinished_cell_is_counted_and_no_result(run_folder, capsys):
    edit(next((run_folder / "cells").iterdir()) / "status.json", lambda v: v.update(state="running"))
    assert main(["verify", str(run_folder)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "1 unfinished cells: not results, not checked."


def test_what_is_no_results_folder_is_refused(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "has no cells" in capsys.readouterr().err
    assert main(["verify", str(tmp_path), "--sample=x"]) == 2
    assert main(["verify", "a", "b"]) == 2
