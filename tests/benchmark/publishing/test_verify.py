"""`verify`: the committed results hold; every kind of fault planted in a copy is named with cell, file and reason."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmark import results
from benchmark.cli import main
from benchmark.config.compose import usual
from benchmark.config.grid import changed
from benchmark.core.errors import UserError
from benchmark.core.files import SUMS, sha256_file, write_sums
from benchmark.publishing import publish
from benchmark.publishing.findings import Findings, Wrong
from benchmark.publishing.verify import verify
from benchmark.publishing.verify_cell import _same
from benchmark.reporting import tables
from benchmark.reporting.render import write
from benchmark.spec import ROOT, cell_id
from benchmark.store.answers import read_items
from benchmark.store.cells import Store, output_of, read_cell, stages_of
from benchmark.training.checkpoint import save_delta
from tests.benchmark.cells import Tables, unfold

COMMITTED = ROOT / "results" / next(
    path.parent.name for path in sorted((ROOT / "results").glob("*/cells.parquet"))
)
FOLDERS = {folder.name: folder for folder in Store(COMMITTED).all_cells()}
# Trained cells whose targets need no Java; each gets one fault.
CELLS = sorted(
    name for name, folder in FOLDERS.items()
    if re.search(r"-(iconqa|scienceqa)-", name) and (folder / "train.jsonl").is_file()
)


def test_published_cells_have_the_names_that_a_run_gives_them():
    names = [*(name for name in FOLDERS if "-alpha0.4-" in name or "-epochs10-" in name), *sorted(FOLDERS)[::9]]
    assert len(names) > 30 and any("-epochs10-" in name for name in names)
    for name in names:
        cell = read_cell(FOLDERS[name])
        assert cell_id(cell) == name == cell_id(replace(cell, changed=changed(cell, usual(cell.profile))))


def faults_of(root: Path, sample: int = 1) -> dict[str, list[str]]:
    """Return the faults of a folder as lines, by cell."""
    lines: dict[str, list[str]] = {}
    verify(root, lambda fault: lines.setdefault(fault.cell, []).append(str(fault)), sample)
    return lines


@pytest.mark.slow
def test_the_committed_results_hold(capsys):
    """A sample of the cells is scored again; `make verify RESULTS=...` does all."""
    assert main(["verify", str(COMMITTED), "--sample=40"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(
        r"Verified \S+: (\d+) cells, \d+ file digests, (\d+) answers scored again \(of (\d+) cells?\), (\d+) tables "
        r"recomputed: no faults\.", last,
    )
    assert found, last
    assert int(found[1]) == len(FOLDERS) and int(found[3]) >= 1
    assert int(found[4]) == len(list((COMMITTED / "tables").glob("*.csv")))


@pytest.mark.slow
def test_verify_tells_how_many_files_and_cells_it_has_checked(tmp_path):
    Tables(FOLDERS[name] for name in CELLS[:2]).write(tmp_path)
    write_sums(tmp_path, [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()])
    told = []
    verify(tmp_path, lambda fault: None, told=lambda *report: told.append(report))
    files = len((tmp_path / SUMS).read_text().splitlines())
    assert told == [*(("files", done, files) for done in range(files)), ("cells", 0, 2), ("cells", 1, 2)]


# ---------------------------------------------------------------------------------------------------------------
# Faults


def edit(path: Path, change: Callable[[dict], None]) -> None:
    """Change the values of a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def row(line: str, **changes: object) -> str:
    return json.dumps({**json.loads(line), **changes})


def gqa(change: Callable[[pd.DataFrame], pd.DataFrame], dataset: str = "gqa") -> Callable[[Tables, str], None]:
    """Return what changes the items of a cell's dataset."""
    return lambda tables, cell: tables.rows(cell, dataset, change)


def first(column: str, value: Callable[[object], object]) -> Callable[[Tables, str], None]:
    """Return what changes one value of the first item of GQA."""
    def change(items: pd.DataFrame) -> pd.DataFrame:
        return items.assign(**{column: [value(items[column].iloc[0]), *items[column].iloc[1:]]})
    return gqa(change)


def edited(column: str, change: Callable[[dict], object]) -> Callable[[Tables, str], None]:
    """Return what changes values of a column of JSON."""
    return lambda tables, cell: tables.edit(cell, column, change)


def gone(column: str, value: object = None) -> Callable[[Tables, str], None]:
    """Return what takes a cell's value of a column away, or puts another in its place."""
    def change(tables: Tables, cell: str) -> None:
        tables.cells.loc[tables.cells.cell == cell, column] = value
    return change


def shortened(tables: Tables, cell: str) -> None:
    mine = [row for row in tables.logs if row["cell"] == cell]
    tables.logs = [row for row in tables.logs if row not in mine[-3:]]


def bump(values: dict) -> None:
    """Alter a bound of a set, in scores.json only: consistent in itself."""
    values["datasets"]["gqa"]["low"] -= 1.0


def average(values: dict) -> None:
    next(iter(values["averages"].values()))["H"]["value"] += 0.01


# kind of fault -> (what is done to a cell's rows, the file and the reason that the line names)
FAULTS: dict[str, tuple[Callable[[Tables, str], None], str]] = {
    "no answers": (first("answer", lambda _: None), r"answers/gqa\.jsonl: item '\w+' has no answer"),
    "an item is lost": (
        gqa(lambda items: items.iloc[1:]), r"answers/gqa\.jsonl: 1 of 500 items are missing, the first is",
    ),
    "an item to nothing": (
        first("item_id", lambda _: "x"), r"answers/gqa\.jsonl: 1 of 500 items are missing, the first is",
    ),
    "an item twice": (
        gqa(lambda items: pd.concat([items, items.iloc[:1]])), r"items/gqa\.jsonl\.gz: holds item '\w+' twice",
    ),
    "a set is lost": (gqa(lambda items: items.iloc[:0]), r"answers/gqa\.jsonl: is missing"),
    "another answer": (
        gqa(lambda items: items.assign(answer="nothing"), "ocrvqa"),
        r"items/ocrvqa\.jsonl\.gz: \d+ of 500 scores are not those of the answers; item \w+: stored 1\.0, scored "
        r"again 0\.0",
    ),
    "another score": (
        first("score", lambda score: 1.0 - score),
        r"items/gqa\.jsonl\.gz: 1 of 500 scores are not those of the answers",
    ),
    "no number": (first("score", lambda _: math.inf), r"items/gqa\.jsonl\.gz: item \w+ has the score inf"),
    "no score": (first("score", lambda _: None), r"items/gqa\.jsonl\.gz: item \w+ has the score None"),
    "another group": (
        first("group", lambda _: "x"), r"items/gqa\.jsonl\.gz: item \w+ is in group 'x', in the data in",
    ),
    "another type": (first("type", lambda _: "x"), r"items/gqa\.jsonl\.gz: 1 of 500 scores .* stored type 'x'"),
    "another order": (
        gqa(lambda items: items.iloc[::-1]), r"items/gqa\.jsonl\.gz: the items are not in the order of the data",
    ),
    "no scores": (gone("scores"), r"scores\.json: No such file"),
    "half the scores": (gone("scores", '{"datasets": {'), r"scores\.json: cannot be read \(JSONDecodeError"),
    "an interval": (edited("scores", bump), r"scores\.json: datasets\.gqa\.low is .*, from the item scores it is"),
    "an average": (edited("scores", average), r"scores\.json: \w+ H is .*, from the scores beside it"),
    "another count": (
        edited("scores", lambda v: v["datasets"]["gqa"].update(n=499)),
        r"scores\.json: gqa has n=499, the protocol has 500 items",
    ),
    "a set more": (
        gqa(lambda items: pd.concat([items, items.assign(dataset="coco")])),
        r"(items|answers)/coco\.jsonl(\.gz)?: belongs to no dataset of cell\.yaml",
    ),
    "another cell": (
        edited("spec", lambda v: v.update(seed=7)),
        r"cell\.yaml: describes the cell \S+-s7-\w+, not this folder's",
    ),
    "no spec": (gone("spec", "{"), r"cell\.yaml: Cannot read"),
    "no provenance": (gone("provenance"), r"provenance\.json: No such file"),
    "no commit": (
        edited("provenance", lambda v: v.update(commit=None)),
        r"provenance\.json: commit is None, which does not identify the code",
    ),
    "no processor": (
        edited("provenance", lambda v: v.pop("cpu_flags")), r"provenance\.json: lacks the key 'cpu_flags'",
    ),
    "no version": (
        edited("provenance", lambda v: v["packages"].pop("torch")), r"provenance\.json: has no version of torch",
    ),
    "no time": (
        edited("provenance", lambda v: v["seconds"].pop("generate/gqa")),
        r"provenance\.json: has no time of generate/gqa",
    ),
    "other items": (
        edited("provenance", lambda v: v.update(items={
            name: {split: {"n": 500, "ids": "0" * 64} for split in ("test", "train")}
            for name in ("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa", "scienceqa")
        })),
        r"provenance\.json: okvqa/test had 500 items 00000000, the data have 500",
    ),
    "half a training": (
        shortened, r"train\.jsonl: has \d+ rows up to step \d+, the training has steps 1 to \d+",
    ),
}


@pytest.mark.slow
def test_every_planted_fault_is_named_and_no_other(tmp_path):
    trained = [name for name in CELLS if "-dare-" not in name and "-tailor-" not in name]
    spare = [name for name in CELLS if name not in trained]
    kinds = sorted(FAULTS, key=lambda kind: kind != "half a training")  # a post-hoc cell has no steps
    names = [*trained, *spare][: len(kinds)]
    assert len(names) + 1 >= len(kinds), "not enough cells to plant every fault in"
    planted = dict(zip(names, kinds, strict=False))
    tables = Tables(FOLDERS[name] for name in planted)
    for name, kind in planted.items():
        FAULTS[kind][0](tables, name)
    found = faults_of(tables.write(tmp_path))
    for name, kind in planted.items():
        lines = found.get(name, [])
        # What is wrong with a row is wrong with its answer and its score.
        assert 1 <= len(lines) <= (2 if "item" in kind or "set" in kind else 1), (kind, lines)
        assert any(re.match(rf"{re.escape(name)}: {FAULTS[kind][1]}", line) for line in lines), (kind, lines)
    assert set(found) == set(planted)


def spoilt(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


@pytest.mark.parametrize("name", ["cells", "items", "logs"])
@pytest.mark.parametrize(("change", "reason"), [
    (lambda path: path.unlink(), "is missing. A published folder has cells.parquet, items.parquet, logs.parquet"),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "Cannot read"),
    (lambda path: path.write_bytes(b""), "Cannot read"),
    (lambda path: path.write_text("cell,dataset\n"), "Cannot read"),
    (lambda path: rewritten(path, lambda table: table.replace_schema_metadata({"spiderbench_schema": "7\x1b"})),
     r"has results of schema version 7\\x1b, this program reads and writes version 1"),
    (lambda path: rewritten(path, lambda table: table.replace_schema_metadata({})), r"schema version \(none\)"),
    (lambda path: rewritten(path, lambda table: table.rename_columns(
        ["x", *table.column_names[1:]]).replace_schema_metadata(table.schema.metadata)),
     "is damaged: it has no column cell"),
    (lambda path: rewritten(path, lambda table: table.set_column(0, "cell", pa.array([1] * len(table)))),
     "is damaged: its column cell holds int64"),
])
def test_a_table_that_cannot_be_read_is_one_message_of_every_verb(tmp_path, capsys, name, change, reason):
    root = Tables([FOLDERS[CELLS[0]]]).write(tmp_path / "published")
    change(root / f"{name}.parquet")
    own = f"results={root}"
    verbs = [["verify", str(root)], ["compare", str(root), str(COMMITTED)], ["inspect", CELLS[0], own],
             ["list", "cells", own], ["report", own], ["publish", own, "table=table6"]]
    # The check is one for all verbs, so one damage shows that each of them asks for it.
    for verb in verbs if "is missing" in reason else verbs[:1]:
        assert main(verb) == 2, verb
        said = capsys.readouterr().err
        assert re.search(reason, said) and f"{name}.parquet" in said and "Traceback" not in said, (verb, said)
    with pytest.raises(UserError, match=reason):
        results.load(root)


@pytest.mark.slow
def test_a_byte_of_a_table_is_a_fault_or_one_message(tmp_path, capsys):
    """Wherever it is: in a page, in the footer, in the magic number."""
    root = Tables([FOLDERS[CELLS[0]]]).write(tmp_path / "published")
    write_sums(root, [f"{name}.parquet" for name in ("cells", "items", "logs")])
    for name in ("cells", "items", "logs"):
        path = root / f"{name}.parquet"
        data = path.read_bytes()
        for place in range(3, len(data), max(1, len(data) // 4)):
            spoilt(path, place)
            code, said = main(["verify", str(root), "--sample=100000"]), capsys.readouterr()
            assert code == 2 and said.err.count("\n") == 1 or code == 1 and f"{name}.parquet: its digest" in said.out
            assert "Traceback" not in said.err
            path.write_bytes(data)
    assert main(["verify", str(root)]) == 0


@pytest.mark.slow
def test_published_results_are_not_written_by_a_run(tmp_path, capsys):
    root = Tables([FOLDERS[CELLS[0]]]).write(tmp_path / "published")
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    assert main(["run", "table=table6", "models=llava_pocket", "methods=full_ft", f"results={root}"]) == 2
    assert "holds published results, which only `publish` writes. Choose another" in capsys.readouterr().err
    assert {name: (root / name).read_bytes() for name in before} == before and not (root / "cells").exists()


# ---------------------------------------------------------------------------------------------------------------
# A folder with tables and digests, and one of runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a published folder of one cell, its table and its digests."""
    name = next(name for name in CELLS if "-full_ft-" in name)
    root = tmp_path / "published"
    Tables([FOLDERS[name]]).write(root)
    cell = read_cell(FOLDERS[name])
    items = {dataset.id: {cell.seed: read_items(FOLDERS[name], dataset.id)} for dataset in cell.datasets}
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


@pytest.mark.slow
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
     [r"is not in SHA256SUMS: it was added later", r"is not a table of conf/table"]),
    (SUMS, lambda path: path.write_text(path.read_text() + "0" * 64 + "  ../../etc/passwd\n"),
     [r"line \d+ is not a digest of a file in this folder", None]),
])
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
def run_folder(tmp_path: Path) -> Path:
    """Return the cell as a run leaves it: plain answers, a delta, stages with digests."""
    name = next(name for name in CELLS if "-full_ft-" in name)
    path = unfold(FOLDERS[name], tmp_path / "run" / "cells" / name)
    base = {"weight": torch.zeros(3)}
    save_delta(path / "delta.safetensors", {"weight": torch.ones(3)}, base, ["weight"], "base")
    stages = {}
    for stage in stages_of(read_cell(path)):
        stages[stage] = {"key": "k", "state": "done", "seconds": 1.0}
        if stage != "train":
            stages[stage]["sha256"] = sha256_file(output_of(path, stage))
    (path / "status.json").write_text(json.dumps({"state": "done", "stages": stages}))
    return tmp_path / "run"


def spoil_delta(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
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
    ("answers/gqa.jsonl", lambda cell: rewrite_plain(cell / "answers/gqa.jsonl", text=None), "line 1 is not an answer"),
    ("answers/gqa.jsonl", lambda cell: (cell / "answers/gqa.jsonl").write_text(
        (cell / "answers/gqa.jsonl").read_text() + row((cell / "answers/gqa.jsonl").read_text().splitlines()[0]) + "\n"
     ), r"item '\w+' is answered twice \(line 501\)"),
    ("answers/gqa.jsonl", lambda cell: (cell / "answers/gqa.jsonl").write_text(
        (cell / "answers/gqa.jsonl").read_text() + json.dumps({"item_id": "x", "text": ""}) + "\n"
     ), "1 items are not in the evaluated split, the first is 'x'"),
])
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
    assert capsys.readouterr().out.splitlines()[0] == "Unfinished, so neither results nor checked: 1 cell."


def test_what_is_no_results_folder_is_refused(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "has no cells" in capsys.readouterr().err
    assert main(["verify", str(tmp_path), "--sample=x"]) == 2
    assert main(["verify", "a", "b"]) == 2
