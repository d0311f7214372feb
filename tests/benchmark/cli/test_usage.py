"""What each command reads: every key is used or refused in one message, and `VERB --help` says which, with examples."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.cli import usage
from benchmark.config.compose import AXES, GROUPS, RUN_KEYS
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.spec import ROOT
from benchmark.studies import named_figures
from tests.benchmark import fakes

VALUES = {
    "profile": "paper", "table": "table6", "models": "vila_pocket", "methods": "spider", "targets": "iconqa",
    "seeds": "3", "train": "paper", "engine": "zero2", "jobs": "7", "gpus": "0", "hostfile": "{tmp}/hosts",
    "results": "{tmp}/new", "checkpoints": "mine:{tmp}", "gate": "warn", "radar": "full_ft", "gpu": "4090x8",
    "figure": "fig5", "name": "mine", "sbatch": "--partition=x", "reference": "{tmp}", "part": "train",
    "out": "{tmp}/out", "size": "small", "compiled": "cpu", "metrics": "cider", "train.epochs": "3",
    "method.momentum": "0.5", "eval.limit": "4", "data_root": "{tmp}", "device": "cpu", "threads": "2",
    "train.epoch": "3", "job": "2",
}
WORDS = {
    "inspect": ["CELL"], "export": ["CELL", "DIR"], "merge": ["dare", "A", "B", "C"], "figure": ["fig5"],
    "accept": ["train"],
}
COMMANDS = [name for name in usage.USAGES if name != "data"]


def given(command: str, key: str, tmp_path: Path) -> list[str]:
    """Return a command line with one key."""
    return [*command.split(), *WORDS.get(command, []), f"{key}={VALUES[key].format(tmp=tmp_path)}"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_that_a_command_does_not_read_is_refused_in_one_message(command, tmp_path, monkeypatch, capsys):
    """Nothing behind the command line is reached: every verb is a trap."""
    monkeypatch.chdir(tmp_path)
    reached = []
    monkeypatch.setattr(cli, "VERBS", dict.fromkeys(cli.VERBS, lambda arguments: reached.append(arguments) or 0))
    reads = usage.USAGES["audit" if command == "data audit" else command]
    refused = 0
    for key in VALUES:
        if key in reads.explained:  # their tests have the reasons
            continue
        reached.clear()
        code, error = cli.main(given(command, key, tmp_path)), capsys.readouterr().err
        if reads.takes(key):
            assert (code, error) == (0, "") and reached, (key, error)
            continue
        refused += 1
        assert code == 2 and not reached and error.count("error:") == 1, (key, error)
        assert f"{command} does not read {key}=: it reads " in error and "Leave it out." in error
        readers = [name for name, other in usage.USAGES.items() if key in other.reads]
        assert all(name in error.partition("Leave it out.")[2] for name in readers)
    assert refused


# Which keys of a run arrive where: attribute of the request that the runner gets, and its value.
ARRIVES = {
    "jobs": ("jobs", 7), "gate": ("gate", "warn"), "radar": ("radar", "full_ft"),
    "results": ("results", "{tmp}/new"), "gpu": ("gpu", "4090x8"), "table": ("table", "table6"),
}
RUNS = ("run", "zeroshot", "sweep", "figure", "all", "rates")


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_a_key_that_a_command_reads_arrives_at_the_runner(command, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("benchmark.running.runner.run", lambda request, *_: asked.append(request) or 75)
    base = {
        "run": ["run", "method=spider", "model=llava_pocket", "dataset=coco"], "figure": ["figure", "fig5"],
        "sweep": ["sweep", "train.epochs=2,3"],
    }.get(command, [command])
    wanted = [key for key in ARRIVES if usage.USAGES[command].takes(key)]
    assert "jobs" in wanted and "gate" in wanted
    for key in [*wanted, "models", "train.learning_rate"]:
        asked.clear()
        value = "0.5" if key == "train.learning_rate" else VALUES[key].format(tmp=tmp_path)
        kept = [item for item in base if not (key == "models" and item.startswith("model="))]
        if key == "train.learning_rate" and command in ("zeroshot", "rates"):  # untuned; the rate is what is chosen
            continue
        assert cli.main([*kept, f"{key}={value}"]) == 75, capsys.readouterr().err
        request = asked[0]
        if key == "models":
            assert {cell.model.id for cell in request.cells} == {"vila_pocket"}
        elif key == "train.learning_rate":
            assert {cell.train.learning_rate for cell in request.cells if cell.train} == {0.5}
        else:
            name, expected = ARRIVES[key]
            expected = expected.format(tmp=tmp_path) if isinstance(expected, str) else expected
            assert str(getattr(request, name)) == str(expected), key


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "jobs=2"], "jobs= is for run, zeroshot, plan, rates, calibration, sweep, figure and all."),
        (["report", "--jobs", "2"], "report does not read jobs=: it reads profile=,"),
        (["score", "jobs=2"], "score does not read jobs=:"),
        (["run", "figure=fig5"], "figure= is for publish."),
        (["compare", "resuls=x"], "Did you mean 'results'?"),
        (["verify", "A", "results=B"], "verify A does not read results=B: the folder is given. Leave it out."),
        (["verify", "A", "profile=paper"], "verify A does not read profile=paper"),
        (["compare", "A", "results=B"], "compare A does not read results=B"),
        (["compare", "A", "B", "profile=paper"], "compare A B does not read profile=paper"),
        (["compare", "A", "B", "C"], "compare takes at most two results folders, got A, B, C."),
        (["list", "results=A"], "list does not read results=A: only list cells does."),
        (["compare", "--result", "x"], "Unknown option '--result'. Did you mean 'results'? Valid: results."),
        (["audit", "published", "models=vila_pocket"], "audit published does not read models=: it reads no keys."),
        (["figure", "fig1", "gate=warn"], "figure fig1 does not read gate=:"),
        (["doctor", "profil"], "doctor profil: it takes keys only"),
        (["data", "draw", "jobs=2"], "data draw does not read jobs=:"),
        (["bench", "jobs=2"], "bench does not read jobs=: it reads size=,"),
    ],
)
def test_the_message_says_where_a_key_belongs(arguments, said, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("error:") == 1 and "Traceback" not in error


def test_values_of_options_are_no_keys():
    given = ["prepare", "gqa", "--from", "gqa=/data/gqa", "--ids", "ocrvqa=ids.txt", "profile=paper"]
    usage.refuse_unread("data", given)
    with pytest.raises(UserError, match="data prepare does not read jobs="):
        usage.refuse_unread("data", ["prepare", "gqa", "jobs=2"])


def test_every_command_has_an_entry_with_keys_that_are_described():
    assert {name.partition(" ")[0] for name in usage.USAGES} == {*cli.VERBS}
    for name, entry in usage.USAGES.items():
        assert {*entry.reads} <= {*usage.KEYS}, name
        assert len(entry.examples) == 2 or name == "audit published", name
        assert all(f"{text} ".startswith(f"{name} ") for text in entry.examples), name
    assert {*GROUPS, *RUN_KEYS, *AXES.values()} <= {*usage.KEYS}


@pytest.mark.parametrize("command", [*usage.USAGES])
def test_help_of_a_command_shows_its_keys_options_and_examples(command, capsys):
    entry = usage.USAGES[command]
    assert cli.main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"python -m benchmark {command}")
    assert all(f"  {key}= " in out for key in entry.reads) and "{" not in out
    assert all(f"  {option} " in out for option in entry.options or ())
    assert all(f"\n  python -m benchmark {text}\n" in out for text in usage.examples_of(entry))
    assert cli.main(["help", *command.split()]) == 0 and capsys.readouterr().out == out
    assert max(map(len, out.splitlines())) <= 130


@pytest.mark.slow
@pytest.mark.parametrize("text", [text for entry in usage.USAGES.values() for text in entry.examples])
def test_every_example_is_accepted(text, tmp_path, monkeypatch, capsys):
    """Those of a grid are planned, those that print something are run, the others are read."""
    (example,) = usage.examples_of(usage.Usage((text,)))
    verb, *rest = shlex.split(example.partition(" >")[0])
    usage.refuse_unread(verb, rest)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if verb in RUNS and not {"fig1", "predict"} & set(rest):
        asked = []
        monkeypatch.setattr("benchmark.running.runner.run", lambda request, *_: asked.append(request) or 75)
        assert cli.main([verb, *rest]) == 75, capsys.readouterr().err
        assert asked[0].cells
    elif verb in ("plan", "list", "inspect", "completion"):
        assert cli.main([verb, *rest]) == 0, capsys.readouterr().err
    elif verb in ("bench", "gpu-check", "accept", "merge"):  # they read no configuration
        assert all(usage.usage_of(verb, rest)[1].takes(item.partition("=")[0]) for item in overrides)
    elif verb == "publish":
        kept = [item for item in overrides if not item.startswith(("table=", "figure="))]
        tables = next(item for item in overrides if item.startswith("table=")).partition("=")[2].split(",")
        assert all(request([f"table={table}", *kept]).cells for table in tables)
    elif rest[:1] == ["predict"]:  # it reads what is finished, here nothing
        assert cli.main([verb, *rest, f"results={tmp_path}"]) == 2
        assert "No model and target has 4 finished cells" in capsys.readouterr().err
    elif rest[:1] == ["fig1"]:
        assert named_figures.requests("fig1", overrides)[0].models
    else:
        named = ["methods=zero_shot"] if any(item.startswith("models=") for item in overrides) else []
        assert request([*named, *overrides], grid=verb == "score")


@pytest.mark.slow
def test_help_of_a_command_imports_nothing_heavy():
    program = (
        "import sys; from benchmark.cli import main; codes = [main(['run', '--help']), main(['bench', '--help'])];"
        "heavy = {'torch', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules);"
        "assert codes == [0, 0] and not heavy, (codes, heavy)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.slow
def test_fakes_run_with_what_a_command_reads(tmp_path, monkeypatch):
    """A key that is given as an option is the same key."""
    monkeypatch.setattr("benchmark.reporting.radar.radars", lambda *_: [])
    world = fakes.world_in(tmp_path, monkeypatch)
    assert cli.main(["run", *world.overrides("methods=full_ft"), "--jobs", "1", "--results", str(tmp_path / "r")]) == 0
    assert (tmp_path / "r" / "tables").is_dir()
