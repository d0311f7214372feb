"""The Slurm array: its elements make exactly the missing cells."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.planning import plan as planning
from benchmark.pocket.world.splits import TARGETS, UPSTREAM
from benchmark.pocket.world.suite import Suite
from benchmark.running import slurm
from benchmark.spec import ROOT, cell_id
from benchmark.store.cells import Store


def script(capsys, *overrides: str) -> str:
    assert cli.main(["plan", "--sbatch", *overrides]) == 0
    return capsys.readouterr().out


def commands(text: str) -> list[list[str]]:
    body = text.split("commands=(\n")[1].split("\n)\n")[0]
    return [shlex.split(shlex.split(line)[0]) for line in body.splitlines()]


def test_an_element_has_every_training_that_a_merge_over_seeds_needs():
    """Elements do not depend on each other: what shares a training through a soup is one element."""
    methods = "methods=full_ft,wise_ft,soup,ties,spider"
    asked = request([methods, "models=vila_pocket", "targets=coco,iconqa", "seeds=0,1"])
    pairs = planning.expand(asked.cells, asked.full_ft)
    plan = [planning.Planned(cell, cell_id(cell), needs, None, ("train",)) for cell, needs in pairs]
    groups = slurm.elements(plan)
    place = {item.id: number for number, group in enumerate(groups) for item in group}
    assert len(place) == len(plan) == sum(map(len, groups))
    assert all(place[item.id] == place[name] for item in plan for name in item.needs)
    sizes = sorted(sum(item.cell.method.id == "full_ft" for item in group) for group in groups)
    assert sizes == [0] * 4 + [3] * 4  # four cells of SPIDER; of each target, seeds 0 to 2 and 3 to 5
    (finished, *rest) = plan
    left = [dataclasses.replace(finished, missing=()), *rest]
    assert sorted(map(len, slurm.elements(left))) == sorted([len(groups[0]) - 1, *map(len, groups[1:])])


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["table=table6", "seeds=0,1", "methods=zero_shot,full_ft,dare,spider"],
        ["models=vila_pocket", "methods=spider,tailor", "targets=coco", "train.epochs=5,6", "train.warmup_ratio=0.1"],
        ["table=table6", "methods=wise_ft", "method.alpha=0.25", "models=llava_pocket"],
        ["table=table6", "methods=full_ft,spider,dare", "method.momentum=0.9", "method.params.keep=0.2"],
        ["models=vila_pocket", "methods=wise_ft", "targets=coco,iconqa", "method.alpha=0.1,0.2,0.3"],
    ],
)
def test_the_elements_make_exactly_the_cells_of_the_plan(overrides, capsys, tmp_path: Path):
    folder = f"results={tmp_path}/a b"
    text = script(capsys, folder, *overrides)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    made: list[str] = []
    for arguments in commands(text):
        assert arguments[: len(overrides) + 1] == [folder, *overrides] and "jobs=1" in arguments
        cells = {cell_id(cell): cell for cell in request(arguments).cells}
        made += cells
        assert sum(not cell.method.posthoc for cell in cells.values()) <= 1  # one training each
    whole = request([folder, *overrides])
    wanted = {cell_id(cell) for cell in whole.cells}
    assert wanted <= set(made) and len(set(made)) == len(made)
    count = int(re.search(r"--array=0-(\d+)", text)[1]) + 1
    assert count == len(commands(text)) and "--requeue" in text


@pytest.mark.slow
def test_an_element_of_a_script_makes_its_cells_and_no_others(capsys, monkeypatch, tmp_path: Path):
    counts = {"train": 12, "validation": 4, "test": 4}
    Suite(dict.fromkeys(UPSTREAM + TARGETS, counts)).draw(tmp_path / "data")
    text = script(
        capsys, "profile=pocket", "models=llava_pocket", "methods=spider,wise_ft", "method.alpha=0.2,0.3", "seeds=0,1",
        "targets=iconqa", f"data_root={tmp_path}/data", "train.epochs=1", "train.limit=4", "train.batch_size=4",
        "train.micro_batch_size=4", "eval.limit=2", f"results={tmp_path}/r", "jobs=2", "gpu=4090x8",
        *(f"dataset.{name}.counts.{split}={number}" for name in (*UPSTREAM, "iconqa")
          for split, number in counts.items()),
    )
    merged = next(number for number, arguments in enumerate(commands(text)) if "full_ft-" in arguments[-1])
    (tmp_path / "job.sh").write_text(text)
    done = subprocess.run(
        ["bash", tmp_path / "job.sh"], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHON": sys.executable, "SLURM_ARRAY_TASK_ID": str(merged)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(tmp_path / "r")
    cells = [folder.name for folder in store.all_cells()]
    assert sorted(cells) == sorted(commands(text)[merged][-1].removeprefix("only=").split(","))
    assert [name.split("-")[2] for name in sorted(cells)] == ["full_ft", "wise_ft", "wise_ft"]
    assert all((store.cells / name / "scores.json").is_file() for name in cells)


def test_an_element_finds_the_users_own_generic_data(capsys, monkeypatch, tmp_path: Path):
    (tmp_path / "own_generic.py").write_text((ROOT / "examples" / "my_target.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    asked = ["models=vila_pocket", "methods=full_ft", "targets=coco", f"results={tmp_path}", "generic=./own_generic.py"]
    (arguments,) = commands(script(capsys, *asked, "train.replay=generic"))
    (given,) = [item for item in arguments if item.startswith("generic=")]
    monkeypatch.chdir("/")
    found = request([*(item for item in arguments if item != asked[-1]), given]).cells
    assert [cell.generic.id for cell in found] == ["my_target"]
    assert {cell_id(cell) for cell in found} == {item.removeprefix("only=") for item in arguments if "only=" in item}


def test_only_keeps_the_named_cells_and_refuses_other_names():
    asked = ["table=table6", "models=llava_pocket", "methods=zero_shot,dare,spider"]
    names = [cell_id(cell) for cell in request(asked).cells]
    assert names[0] == "llava_pocket-zero_shot-" + names[0].rpartition("-")[2]
    kept = request([*asked, f"only={names[-1]},{names[0]}"])
    assert [cell_id(cell) for cell in kept.cells] == [names[0], names[-1]]
    source = next(cell_id(cell) for cell in request([*asked, "methods=full_ft"]).cells)
    assert [cell_id(cell) for cell in request([*asked, f"only={source}"]).cells] == [source]
    with pytest.raises(UserError, match=f"only={names[0]}0: the other keys make no cell of this name.*{names[0]!r}"):
        request([*asked, f"only={names[0]}0"])
    with pytest.raises(UserError, match="make no cell of this name"):  # another seed than the request's
        request([*asked, "seeds=1", f"only={names[-1]}"])


@pytest.mark.slow
def test_the_script_says_memory_interpreter_and_the_users_flags(capsys, monkeypatch, tmp_path):
    asked = ["table=table6", "models=llava_pocket", "methods=full_ft", f"results={tmp_path}"]
    monkeypatch.setattr("sys.executable", "/opt/my env/bin/python")
    text = script(capsys, *asked, "sbatch=--partition=a100 --account=lab")
    assert "\n#SBATCH --mem=4G\n#SBATCH --partition=a100\n#SBATCH --account=lab\n" in text
    assert "\npython=${PYTHON:-'/opt/my env/bin/python'}\n" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    paper = ["profile=paper", "table=table5", "models=llava15_7b", "methods=full_ft", "gpus=8"]
    text = script(capsys, *paper, f"results={tmp_path}")
    assert int(re.search(r"--mem=(\d+)G", text)[1]) >= 105  # eight processes that each load 13.2 GiB of weights
    for wrong in ("-p x", "partition=x", "--a=1\n#SBATCH --b", "--a='"):
        assert cli.main(["plan", "--sbatch", *asked, f"sbatch={wrong}"]) == 2
        assert "Write it like sbatch='--partition=a --account=b'" in capsys.readouterr().err


def started(folder: Path, text: str, element: int, python: str) -> subprocess.Popen:
    """Start an element of a job script as Slurm does, with stand-ins for Python and for scontrol (notes `requeued`)."""
    (folder / "job.sh").write_text(text)
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, body in (("scontrol", f'#!/bin/sh\necho "$@" > {folder}/requeued\n'), ("python", python)):
        (tools / name).write_text(body)
        (tools / name).chmod(0o755)
    return subprocess.Popen(
        ["bash", str(folder / "job.sh")], stdin=subprocess.DEVNULL,
        env={"PATH": f"{tools}:/usr/bin:/bin", "PYTHON": str(tools / "python"), "SLURM_ARRAY_TASK_ID": str(element),
             "SLURM_ARRAY_JOB_ID": "77"},
    )


@pytest.mark.slow
def test_an_element_is_queued_again_only_after_preemption(tmp_path: Path, capsys):
    text = script(capsys, "table=table6", "methods=spider", f"results={tmp_path}/r")
    for code in (0, 1, 75):
        job = started(tmp_path, text, 1, f'#!/bin/sh\necho "$@" > {tmp_path}/ran\nexit {code}\n')
        assert job.wait() == code
        assert (tmp_path / "requeued").exists() == (code == 75)
    assert (tmp_path / "requeued").read_text() == "requeue 77_1\n"
    assert "--cells-only" in (tmp_path / "ran").read_text() and "methods=spider" in (tmp_path / "ran").read_text()


@pytest.mark.slow
def test_a_preempted_element_is_told_saves_and_is_queued_again(tmp_path: Path, capsys):
    text = script(capsys, "table=table6", "methods=spider", f"results={tmp_path}/r")
    # Stands for a training: told to stop, it saves for a while and ends as the program does.
    job = started(
        tmp_path, text, 0,
        f"#!/bin/bash\ntrap 'sleep 0.3; echo saved > {tmp_path}/saved; exit 75' TERM\ntouch {tmp_path}/began\n"
        "for _ in $(seq 600); do sleep 0.1; done\n",
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "began").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        job.terminate()  # as Slurm does: to the batch shell alone
        assert job.wait(timeout=60) == 75
    finally:
        job.kill()
    assert (tmp_path / "saved").exists() and (tmp_path / "requeued").read_text() == "requeue 77_0\n"


@pytest.mark.slow
def test_a_job_has_the_gpus_that_a_cell_trains_on(tmp_path: Path, capsys):
    asked = ("table=table5", "profile=paper", f"results={tmp_path}/r", "gpus=8")
    text = script(capsys, *asked, "gpu=4090x8")
    assert "#SBATCH --gpus-per-node=8\n" in text
    for arguments in commands(text):
        assert "gpus=8" in arguments and not any(item.startswith("gpu=") for item in arguments)
        assert request(arguments).cells[0].processes == 8
    # Slurm gives an element its own cards and numbers them from 0.
    named = commands(script(capsys, *asked[:-1], "gpus=4,5", "gpu=4090x2"))
    assert all("gpus=2" in arguments and "gpus=4,5" not in arguments for arguments in named)
    single = commands(script(capsys, *asked[:-1], "gpus=4,5", "engine=single", "gpu=4090x2"))
    assert not any(item.startswith("gpus=") for arguments in single for item in arguments)
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=8\n")
    assert cli.main(["plan", "--sbatch", *asked, f"hostfile={hosts}"]) == 2
    assert "one node" in capsys.readouterr().err
