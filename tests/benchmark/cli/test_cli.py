"""The command line and the Makefile: verbs, exit codes, one message per mistake, no traceback."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmark import cli, results
from benchmark.core.errors import UserError
from benchmark.profiling import doctor
from benchmark.spec import ROOT
from benchmark.store import scores as scores_of
from benchmark.store.cells import Store
from tests.benchmark import fakes
from tests.benchmark.cells import Tables, change_tables


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fakes.World:
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    return fakes.world_in(tmp_path, monkeypatch)


def test_help_lists_every_verb(capsys):
    for arguments in ([], ["--help"], ["help"]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"  {verb} " in out for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "Unknown command 'rum'. Did you mean 'run'?"),
        (["run", "--job", "2"], "Unknown option '--job'. Did you mean 'jobs'?"),
        (["run", "--jobs"], "--jobs needs a value"),
        (["run", "--cfg", "hydra"], "--cfg needs the word job"),
        (["run"], "missing. Give table=table5"),
        (["plan", "table=table9"], "Unknown table 'table9'"),
        (["list", "cell"], "only `list` and `list cells` exist"),
        (["data", "drow"], "Did you mean 'draw'?"),
        (["data", "show", "gqq"], "Did you mean 'gqa'?"),
        (["audit", "models"], "no such audit. Valid: data, protocol, published"),
        (["inspect"], "inspect needs one cell"),
        (["data", "draw", "profile=paper"], "has no data of its own to draw"),
        (["run", "table=table5", "profile=paper", "models=vila15_3b"],
         "7 folders do not exist"),
        (["publish", "table=table5", "profile=paper"], "has no reference folder"),
    ],
)
def test_each_mistake_is_one_message_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = [f"results={tmp_path}/results"] if arguments[0] in ("run", "plan", "publish", "inspect") else []
    assert cli.main([*arguments[:1], *more, *arguments[1:]]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("error: ")
    assert captured.err.count("error:") == 1 and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["zeroshot", "methods=spider"], "methods="), (["figure", "plane", "table=table6"], "table="),
        (["run", "table=smoke", "gpu=4090x8"], "gpu="), (["report", "gpu=4090x8"], "gpu="),
        (["compare", "methods=spider", "jobs=7"], "methods=, jobs="), (["verify", "methods=spider"], "methods="),
        (["list", "jobs=9"], "jobs="), (["inspect", "seeds=1", "CELL"], "seeds="),
        (["export", "CELL", "DIR", "train.epochs=3"], "train.epochs="),
    ],
)
def test_a_key_that_a_verb_would_ignore_is_refused(arguments, keys, capsys, tmp_path):
    assert cli.main([*arguments, f"results={tmp_path}/new"]) == 2
    error = capsys.readouterr().err
    assert f"{arguments[0]} does not read {keys}:" in error and "Leave " in error
    assert not (tmp_path / "new").exists()


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the machine does not know and who has no HOME, as in containers that are given a number only."""
    def unknown(*_):
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "SPIDERBENCH_CACHE", "HF_HOME", "HF_HUB_CACHE", "LOGNAME", "USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("pwd.getpwnam", unknown)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan", "table=table5", "profile=paper", "gpu=4090x8"], 0), (["doctor", "profile=paper"], 2),
        (["run", "table=table5", "profile=paper", "models=vila15_3b"], 2), (["list"], 0),
        (["run", "table=smoke", "results=~/r"], 2), (["run", "table=smoke", "model.checkpoint=~x/y"], 2),
    ],
)
def test_a_user_without_a_home_is_served_and_only_a_tilde_is_refused(arguments, code, homeless, capsys):
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert "home folder" in error if "~" in arguments[-1] else "home" not in error


def test_folders_and_files_that_a_verb_is_given_may_begin_with_a_tilde(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for arguments in (["verify", "~/no"], ["compare", "~/no", "~/other"], ["report", "results=~/no"]):
        assert cli.main(arguments) == 2
        assert f"{tmp_path}/no has no" in capsys.readouterr().err
    monkeypatch.setattr("benchmark.publishing.export.export", lambda store, name, folder: folder)
    assert cli.main(["export", "CELL", "~/out"]) == 0
    assert capsys.readouterr().out == f"Written: {tmp_path}/out\n"


@pytest.mark.slow
def test_a_process_ends_with_the_exit_code_and_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", "run", "table=table5", "methods=spidr", "seeds=x"], capture_output=True,
        text=True, cwd=ROOT, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2 and "2 faults" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_interpreter_without_the_packages_is_told_where_they_are():
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r});"
         "from benchmark.cli import main; sys.exit(main(['list']))"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2 and "packages are missing" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_plan_list_and_help_import_nothing_heavy():
    program = (
        "import sys; from benchmark.cli import main;"
        "codes = [main(a) for a in ([], ['list'], ['doctor'], ['compare', 'x', 'y'])];"
        "heavy = {'torch', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules);"
        "assert codes == [0, 0, 0, 2] and not heavy, (codes, heavy)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


def test_cfg_job_shows_every_cell(capsys):
    assert cli.main(["run", "method=spider", "model=vila_pocket", "dataset=coco", "seed=1,2", "--cfg", "job"]) == 0
    shown = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [(cell["method"]["id"], cell["seed"], cell["train"]["epochs"]) for cell in shown] == [
        ("spider", 1, 5), ("spider", 2, 5)
    ]


@pytest.mark.slow
def test_the_files_of_a_table_are_written_before_it_is_printed(world, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark.reporting.render.show", stop)
    assert cli.main(["run", *world.overrides("methods=full_ft")]) == 130
    assert len([*(world.results / "tables").iterdir()]) == 3


@pytest.mark.slow
def test_zeroshot_writes_its_rows_beside_the_table_that_they_are_of(world, capsys):
    cli.main(["run", *world.overrides("methods=zero_shot,full_ft,spider")])
    before = contents(world.results / "tables")
    assert cli.main(["zeroshot", *world.overrides()]) == 0
    out = capsys.readouterr().out
    written = {name: text for name, text in contents(world.results / "tables").items() if name not in before}
    assert {Path(name).suffix for name in written} == {".md", ".csv", ".tex"}
    assert all("zero_shot" in name and b"SPIDER" not in text for name, text in written.items())
    assert "Zero-shot gate" in out and f"Table: {world.results}/tables/{next(iter(written)).rpartition('.')[0]}" in out
    assert before.items() <= contents(world.results / "tables").items()


@pytest.mark.slow
def test_list_shows_what_there_is(world, capsys):
    cli.main(["run", *world.overrides("methods=zero_shot")])
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "SPIDER" in out and "flickr30k, coco, iconqa, scienceqa" in out and "vila15_3b" in out and "table6" in out
    assert cli.main(["list", "cells", f"results={world.results}"]) == 0
    assert "llava_pocket-zero_shot-" in capsys.readouterr().out


@pytest.mark.slow
def test_plan_before_and_after_a_run(world, capsys):
    arguments = world.overrides("methods=full_ft,dare")
    assert cli.main(["plan", *arguments]) == 0
    assert "2 cells, 0 done" in capsys.readouterr().out
    cli.main(["run", *arguments])
    capsys.readouterr()
    assert cli.main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "2 cells, 2 done." in out and out.count("  done\n") == 2


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where `publish` writes."""
    monkeypatch.setattr("benchmark.publishing.publish.at_root", lambda path: tmp_path / "reference")
    return tmp_path / "reference"


def publish(*arguments: str) -> int:
    """Publish what was run with these overrides; how many cells ran at a time is none of them."""
    return cli.main(["publish", *(item for item in arguments if not item.startswith("jobs="))])


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_inspect_shows_a_cell(world, capsys):
    cli.main(["run", *world.overrides("methods=full_ft,spider")])
    capsys.readouterr()
    assert cli.main(["inspect", "llava_pocket-iconqa-sp", f"results={world.results}"]) == 0
    out = capsys.readouterr().out
    assert "spider" in out and "A^S" in out and "generate/gqa" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "weights at step 5" in lines and "training loss 1" in lines and "root mean square of w - w* 0.5" in lines
    assert cli.main(["inspect", "llava_pocket", f"results={world.results}"]) == 2
    assert "2 cells begin with" in capsys.readouterr().err
    assert cli.main(["inspect", "llava_pocket-iconqa-spider-s1", f"results={world.results}"]) == 2
    assert "Did you mean" in capsys.readouterr().err


@pytest.mark.slow
def test_inspect_adds_nothing_to_a_published_folder(world, reference, capsys, monkeypatch):
    cli.main(["run", *world.overrides("methods=spider")])
    publish(*world.overrides("methods=spider"))
    drawn = []
    monkeypatch.setattr("benchmark.reporting.weight_log.draw", lambda rows, title, stem: drawn.append(stem) or stem)
    for root, place in ((world.results, world.results / "figures"), (reference, ROOT / "build")):
        capsys.readouterr()
        assert cli.main(["inspect", "llava_pocket-iconqa-sp", f"results={root}"]) == 0
        assert drawn[-1].parent == place and "drawn in" in capsys.readouterr().out

    def fail(*_):
        raise UserError("Cannot write there.")

    monkeypatch.setattr("benchmark.reporting.weight_log.draw", fail)
    assert cli.main(["inspect", "llava_pocket-iconqa-sp", f"results={world.results}"]) == 0
    out = capsys.readouterr().out
    assert "not drawn: Cannot write there." in out and "A^S" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table5", "METHOD=spider"], "does not read METHOD. Did you mean METHODS?"),
        (["table6", "JOB=3", "SEED=1"], "does not read JOB. Did you mean JOBS?"),
        (["verify", "METHODS=spider"], "make verify does not read METHODS."),
        (["fig5", "TABLE=table5"], "make fig5 does not read TABLE."),
        (["list", "ARGS=x"], "make list does not read ARGS."),
    ],
)
def test_a_variable_of_make_that_a_target_does_not_read_is_refused(words, said):
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stdout + done.stderr and "benchmark" not in done.stdout


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["table5", "METHODS=full_ft", "ARGS=a.b=1 seeds=0"], "table=table5 methods=full_ft a.b=1 seeds=0"),
        (["sweep", "AXIS=a b", "VALUES=1,2 3,4"], "sweep a=1,2 b=3,4"),
        (["sbatch", "TABLE=table6", "SBATCH=--partition=x"], "plan --sbatch table=table6 sbatch=--partition=x"),
        (["accept", "STAGE=train", "BUMP=1"], "accept train --bump"),
    ],
)
def test_what_a_target_reads_arrives_and_the_environment_disturbs_nobody(words, command):
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "METHOD": "x", "SEED": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert command in " ".join(done.stdout.replace("'", "").split())


def test_the_version_is_that_of_the_project(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"spiderbench \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [("ver", ["verify"]), ("run mode", ["model=", "models="]), ("run methods=full_ft,spider_co", ["spider_code"]),
     ("run table=table5 profile=p", ["pocket", "pocket_10k", "paper"]), ("run results=x", []),
     # Each command is offered what it reads, and no other.
     ("compare r", ["results="]), ("compare mo", []), ("plan table=table5 gp", ["gpu=", "gpus="]),
     ("run table=table5 gp", ["gpus="]), ("data draw p", ["profile="]), ("data draw m", []),
     ("figure fig1 g", ["gpus="]), ("figure fig5 g", ["gate=", "gpus="]), ("bench s", ["size="]),
     ("all see", ["seed=", "seeds="]), ("all tar", []), ("export CELL DIR res", ["results="])],
)
def test_bash_completes_commands_keys_and_values(line, wanted, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out + f"""
COMP_LINE='spiderbench {line}'; COMP_POINT=${{#COMP_LINE}}; COMP_CWORD={len(line.split())}
compopt() {{ :; }}
_spiderbench; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == sorted(wanted), done.stderr


def test_gpus_on_a_cpu_are_refused(capsys):
    assert cli.main(["plan", "table=table5", "gpus=0,1"]) == 2
    assert "gpus=0,1: device=cpu uses no GPU. Leave gpus out, or set device=cuda." in capsys.readouterr().err


@pytest.mark.slow
def test_compare_says_how_far_two_runs_are_apart(world, capsys, tmp_path):
    cli.main(["run", *world.overrides("methods=full_ft,spider")])
    other = tmp_path / "other"
    shutil.copytree(world.results, other)
    capsys.readouterr()
    assert cli.main(["compare", str(world.results), str(other)]) == 0
    assert "2 of 2 cells have identical item scores." in capsys.readouterr().out
    spider = next(other.glob("cells/*spider*"))
    scores = json.loads((spider / "scores.json").read_text())
    scores["averages"]["iconqa"]["H"] = {"value": 90.0, "low": 89.0, "high": 91.0}
    (spider / "scores.json").write_text(json.dumps(scores))
    (spider / "items" / "gqa.jsonl.gz").unlink()
    items = scores_of.read_items(spider / "items" / "iconqa.jsonl.gz")
    scores_of.write_items(spider / "items" / "iconqa.jsonl.gz", [replace(items[0], score=0.125), *items[1:]])
    shutil.rmtree(next(other.glob("cells/*full_ft*")))
    assert cli.main(["compare", str(world.results), str(other)]) == 0
    out = capsys.readouterr().out
    assert "iconqa H" in out and " off\n" in out and f"not in {other}" in out
    assert "0 of 1 cell has identical item scores; largest difference -" in out
    assert cli.main(["compare", str(world.results), str(tmp_path / "nowhere")]) == 2


@pytest.mark.slow
def test_compare_without_the_published_reference_says_which_folders_to_name(world, capsys, monkeypatch, tmp_path):
    """An installed package has no results/pocket."""
    monkeypatch.setattr("benchmark.spec.at_root", lambda path: tmp_path / path)
    assert cli.main(["compare", str(world.results)]) == 2
    error = capsys.readouterr().err
    assert f"Name both folders: compare {world.results} CLONE/results/pocket." in error and "\n" not in error.strip()


def test_publish_copies_results_without_weights_and_a_run_is_compared_with_them(world, reference, capsys, monkeypatch):
    arguments = world.overrides("methods=full_ft,spider", f"eval.limit={fakes.ITEMS}")  # fewer than the protocol has
    assert publish(*arguments) == 2
    assert "2 of 2 cells are not finished" in capsys.readouterr().err and not reference.exists()
    cli.main(["run", *arguments])
    reference.mkdir()
    (reference / "protocol.md").write_text("written by people")
    (reference / "stale.csv").write_text("")
    assert publish(*arguments) == 0
    names = {path.name for path in reference.rglob("*") if path.is_file()}
    assert names == {
        "protocol.md", "cells.parquet", "items.parquet", "logs.parquet", "table6.md", "table6.csv", "table6.tex",
        "SHA256SUMS",
    }
    published = results.load(reference)
    assert os.uname().nodename not in published.cells.to_csv() + published.logs.to_csv()
    run = results.load(world.results)
    assert published.items.equals(run.items) and published.cells.scores.equals(run.cells.scores)
    assert published.cells.key.str.len().eq(64).all() and published.cells.provenance.equals(run.cells.provenance)
    capsys.readouterr()
    assert cli.main(["verify", str(reference)]) == 0
    out = capsys.readouterr().out
    assert "2 cells, " in out and f"{10 * fakes.ITEMS} answers scored again, 1 table recomputed: no faults" in out
    assert "older code" not in out and "no digest" not in out
    monkeypatch.setattr("benchmark.spec.at_root", lambda path: reference if path == "results/pocket" else Path(path))
    assert cli.main(["run", *arguments]) == 0
    assert "2 of 2 cells have identical item scores." in capsys.readouterr().out
    monkeypatch.setattr("benchmark.publishing.publish.LIMIT_MEGABYTES", 0.0001)
    before = (reference / "tables" / "table6.md").read_bytes()
    assert publish(*arguments) == 2
    assert (reference / "tables" / "table6.md").read_bytes() == before


@pytest.mark.slow
def test_publish_keeps_what_was_published_before_from_the_same_inputs(world, reference, capsys, tmp_path):
    arguments = world.overrides("methods=zero_shot,full_ft,dare,spider")
    cli.main(["run", *arguments])
    drawn = {"figures/fig9.png", "studies/survey_model.md"}
    for name in drawn:
        (world.results / name).parent.mkdir(exist_ok=True)
        (world.results / name).write_bytes(b"drawn here")
    assert publish(*arguments) == 0

    first = contents(reference)
    # Another machine: nothing of the run is there, then one cell of it.
    shutil.rmtree(world.results)
    capsys.readouterr()
    assert publish(*arguments) == 0
    assert "4 cells, 4 of them before" in capsys.readouterr().out
    assert contents(reference) == first
    cli.main(["run", *world.overrides("methods=spider")])
    assert publish(*arguments) == 0
    assert "4 cells, 3 of them before" in capsys.readouterr().out
    again = contents(reference)
    timed = {"cells.parquet", "logs.parquet", "SHA256SUMS"}  # the seconds, and what the method measured
    assert {name for name in first if again[name] != first[name]} <= timed and again.keys() == first.keys()
    # A seed that is under way waits until it is whole.
    cli.main(["run", *world.overrides("methods=full_ft", "seeds=1")])
    capsys.readouterr()
    assert publish("--partial", *arguments, "seeds=0,1") == 0
    assert "4 cells, 3 of them before" in capsys.readouterr().out and contents(reference) == again
    # A cell of other code, data or base model is not taken over. Made again with the same answers, figures stay true.
    def change(method: str, **columns: object) -> None:
        def changed(tables: Tables) -> None:
            for name, value in columns.items():
                tables.cells.loc[tables.cells.method == method, name] = value
        change_tables(reference, changed)

    change("spider", key="another")
    assert publish(*arguments) == 0
    assert contents(reference) == again
    shutil.copytree(reference, tmp_path / "kept")
    text = results.load(reference).cells.query("method == 'spider'").scores.iloc[0]
    scores = json.loads(text)
    near, far = (json.loads(text) for _ in range(2))
    near["datasets"]["gqa"]["value"] = math.nextafter(scores["datasets"]["gqa"]["value"], 99)
    far["datasets"]["gqa"]["value"] = 0.5
    for columns, stays in (({"scores": json.dumps(near)}, True), ({"scores": json.dumps(far)}, False)):
        change("spider", key="another", **columns)
        assert publish(*arguments) == 0
        assert {*again} - {*contents(reference)} == (set() if stays else drawn)
        shutil.rmtree(reference)
        shutil.copytree(tmp_path / "kept", reference)
    spider = next(folder.name for folder in Store(reference).all_cells() if "spider" in folder.name)
    change_tables(reference, lambda tables: tables.rows(spider, "gqa", lambda rows: rows.assign(answer="another")))
    change("spider", key="another")
    assert publish(*arguments) == 0
    assert {*again} - {*contents(reference)} == drawn
    shutil.rmtree(reference)
    shutil.copytree(tmp_path / "kept", reference)
    change("dare", key="another")
    assert publish(*arguments) == 2
    assert "1 of 4 cells are not finished (first: llava_pocket-iconqa-dare" in capsys.readouterr().err
    assert publish("--partial", *arguments) == 0  # asked for and out of date: it goes
    assert not any("dare" in folder.name for folder in Store(reference).all_cells())
    assert not any((reference / name).exists() for name in drawn)
    assert "DARE" in (reference / "tables" / "table6.md").read_text()  # an empty row, named in the notes


@pytest.mark.slow
def test_publish_refuses_to_lose_what_was_not_asked_for(world, reference, capsys):
    arguments = world.overrides("methods=full_ft,spider")
    cli.main(["run", *arguments])
    assert publish(*arguments) == 0
    capsys.readouterr()
    (world.data / "gqa").rename(world.data / "away")
    assert publish("--partial", *arguments) == 2
    assert f"is published, but its data are missing in {world.data}" in capsys.readouterr().err
    (world.data / "away").rename(world.data / "gqa")
    fewer = world.overrides("methods=full_ft")
    assert publish(*fewer) == 2
    said = capsys.readouterr().err
    assert "would lose 1 published cell (first: llava_pocket-iconqa-spider" in said and "--drop" in said
    assert len(Store(reference).all_cells()) == 2
    assert publish("--drop", *fewer) == 0
    assert len(Store(reference).all_cells()) == 1
    alone = [item for item in fewer if not item.startswith("table=")]
    assert publish("table=table3", *alone) == 2
    assert "the table table6" in capsys.readouterr().err


@pytest.mark.slow
def test_publish_keeps_an_untuned_model_with_the_sets_it_was_published_with(world, reference, capsys):
    (world.data / "scienceqa").mkdir(exist_ok=True)
    (world.data / "scienceqa" / "data.txt").write_text("data")
    one, both = (world.overrides("methods=zero_shot", f"targets={names}") for names in ("iconqa", "iconqa,scienceqa"))
    cli.main(["run", *both])
    assert publish(*both) == 0
    # Another machine has evaluated it on one target only: the published cell has more and stays.
    shutil.rmtree(world.results)
    cli.main(["run", *one])
    assert publish(*both) == 0
    assert "1 cell, 1 of them before" in capsys.readouterr().out
    lines = list(csv.DictReader((reference / "tables" / "table6.csv").read_text().splitlines()))
    assert {line["target"] for line in lines} == {"iconqa", "scienceqa"} and all(line["value"] for line in lines)
    # Published on one target only, it is not whole for two.
    assert publish(*one) == 0
    shutil.rmtree(world.results)
    assert publish(*both) == 2
    assert "1 of 1 cells are not finished" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["copy", "swap"])
def test_an_interrupted_publish_loses_nothing(moment, world, reference, monkeypatch):
    arguments = world.overrides("methods=full_ft")
    cli.main(["run", *arguments])
    assert publish(*arguments) == 0
    before = contents(reference)
    rename, calls = Path.rename, []

    def cut(self, target):
        calls.append(self.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "copy":
            patch.setattr("benchmark.publishing.publish.write_sums", fail)
        else:  # the old folder is aside, the new one not yet in its place
            patch.setattr(Path, "rename", cut)
        assert publish(*arguments) == 130
    assert publish(*arguments) == 0
    assert contents(reference) == before and sorted(path.name for path in reference.parent.glob(".reference*")) == []


# -- doctor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "good"),
    [
        ("2.13.0+cpu", ">=2.11", True), ("2.9.1", ">=2.11", False), ("2.11", ">=2.11.0", True),
        ("6.4.0", "==6.4.0", True), ("6.4", "==6.4.0", True), ("6.5.0", "==6.4.0", False),
        ("10.0", ">=9.1", True), ("5.17.0rc1", ">=5.17", True), ("1.0", "", True),
        ("0.21.2", ">=0.21,<0.22", True), ("0.22", ">=0.21,<0.22", False), ("0.20", ">=0.21,<0.22", False),
    ],
)
def test_version_ranges(version, wanted, good):
    assert doctor.satisfies(version, wanted) == good


def test_doctor_names_what_is_missing(monkeypatch, capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "package   torch" in out and "memory" in out and "disk" in out
    monkeypatch.setattr(doctor, "ranges", lambda: {"torch": ">=99", "no-such-package": ">=1"})
    assert cli.main(["doctor", "--packages"]) == 2
    err = capsys.readouterr().err
    assert "torch>=99 is needed" in err and "no-such-package is missing" in err


def test_constraints_pin_every_dependency_within_its_range():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    lower = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for name, wanted in doctor.ranges().items():
        assert doctor.satisfies(lower[name], wanted), name
    assert not any(sign in "".join(pins.values()) for sign in "+@/")


# -- make ---------------------------------------------------------------------------------------------------------

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTHON", "MFLAGS"))}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], capture_output=True, text=True, cwd=ROOT, env=clean,
        stdin=subprocess.DEVNULL,
    )


@needs_make
def test_make_help_lists_the_targets():
    out = make().stdout
    targets = [
        "table5", "table6", "zeroshot", "smoke", "plan", "list", "test", "lint", "pretrain", "rates", "publish",
        "doctor",
    ]
    assert all(f"make {target} " in out for target in targets)


@needs_make
def test_make_passes_on_only_what_is_set():
    plain = make("-n", "table5", f"PYTHON={sys.executable}").stdout.splitlines()[-1].split()
    assert plain == [sys.executable, "-m", "benchmark", "run", "table=table5"]
    asked = make(
        "-n", "table6", f"PYTHON={sys.executable}", "METHODS=full_ft,spider", "MODELS=vila_pocket", "SEEDS=0,1",
        "JOBS=2", "TARGETS=iconqa", "PROFILE=paper", "GPUS=0", "RESULTS=/tmp/a b", "ARGS=train.epochs=3",
    ).stdout.splitlines()[-1]
    assert asked.split("table=table6 ")[1].split(" ", 7) == [
        "profile=paper", "models=vila_pocket", "methods=full_ft,spider", "targets=iconqa", "seeds=0,1", "jobs=2",
        "gpus=0", "'results=/tmp/a b' train.epochs=3",
    ]
    # A range has brackets, which a shell would read.
    keys = "AXIS=train.last_layers seed", "VALUES=range(2,6) 0,1"
    swept = make("-n", "sweep", f"PYTHON={sys.executable}", *keys).stdout
    assert swept.splitlines()[-1].split()[4:] == ["'train.last_layers=range(2,6)'", "'seed=0,1'"]


@needs_make
def test_make_refuses_an_environment_that_lacks_packages(tmp_path):
    empty = tmp_path / "python"
    empty.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I -c "import sys; sys.exit(2)"\n')
    empty.chmod(0o755)
    done = make("list", f"PYTHON={empty}")
    assert done.returncode != 0 and "Traceback" not in done.stderr
