"""The wheel works outside the repository: built, installed into an empty environment, started in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from benchmark.cli import main
from benchmark.spec import ROOT
from tests import real_layouts
from tests.benchmark.models import auto_tiny

SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "benchmark", "conf", "eval", "methods", "spiderbench")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed():
    listed = set(project()["tool"]["setuptools"]["packages"])
    folders = {path.parent for name in ("benchmark", "eval", "methods", "spiderbench")
               for path in (ROOT / name).rglob("__init__.py")}
    named = {".".join(path.relative_to(ROOT).parts) for path in folders}
    assert listed == named | {"benchmark.conf", "benchmark.published"}


def test_every_extra_is_installed_for_the_tests():
    extras = project()["project"]["optional-dependencies"]
    assert {*extras["trl"]} <= {*extras["dev"]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Return the wheel, built from a copy: setuptools leaves files where it builds."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "results" / "published", source / "results" / "published")
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(source / "dist"), str(source))
    (built,) = (source / "dist").glob("*.whl")
    return built


def pip(python: str | Path, verb: str, *arguments: str) -> None:
    command = [python, "-m", "pip", verb, "-q", "--no-index", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """Return a new environment that has the wheel; the packages that it needs are those of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip(folder / "bin" / "python", "install", "--no-deps", str(wheel))
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


@pytest.fixture
def run(environment, tmp_path):
    """Return a function that runs a program of the environment in an empty folder."""
    values = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [environment / "bin" / program, *arguments], cwd=tmp_path, env=values, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_the_wheel_holds_what_git_holds(wheel):
    listed = subprocess.run(["git", "ls-files", *SHIPPED[3:]], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"benchmark/{name}" if name.startswith("conf/") else name for name in listed.stdout.split()}
    assert expected - held == set()


@pytest.mark.slow
def test_the_command_works_in_an_empty_folder(run, environment, tmp_path, capsys):
    assert run("spiderbench", "--version").strip() == f"spiderbench {project()['project']['version']}"
    assert "spider  " in run("spiderbench", "list")
    words = ("plan", "table=smoke", "models=llava_pocket", "methods=full_ft")
    plan = run("spiderbench", *words)
    (cell,) = (line.split()[0] for line in plan.splitlines() if "-full_ft-" in line)
    assert main(words) == 0
    assert cell in capsys.readouterr().out, "the cell has another name than in the repository"
    assert f"{tmp_path}/results/runs/pocket-smoke" in plan
    doctor = run("spiderbench", "doctor")
    assert "package   transformers " in doctor and not any(f"package   {name} " in doctor for name in ("pytest", "trl"))
    assert run("python", "-m", "benchmark", "--version") == run("spiderbench", "--version")
    for verb in ("accept", "pretrain"):
        assert f"error: {verb} changes the repository" in run("spiderbench", verb, "train", code=2)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_library_works_in_an_empty_folder(run, environment, tmp_path):
    (tmp_path / "train.py").write_text((ROOT / "examples" / "own_trainer.py").read_text())
    assert "restored_fraction" in run("python", "train.py")
    where = run("python", "-c", "import spiderbench, benchmark.training.callback as c; print(c.__file__)")
    assert where.startswith(str(environment))


@pytest.mark.slow
def test_an_added_model_lies_in_the_folder_and_the_reference_is_not_there(run, environment, tmp_path):
    auto_tiny.write("qwen2_vl", tmp_path / "tiny")
    assert f"Wrote {tmp_path}/conf/model/mine.yaml" in run("spiderbench", "model", "add", "tiny", "mine")
    assert "mine-iconqa-full_ft-" in run("spiderbench", "plan", "model=mine", "method=full_ft", "dataset=iconqa")
    assert not [*environment.rglob("mine.yaml")]
    assert "Name both folders: compare mine CLONE/results/pocket" in run("spiderbench", "compare", "mine", code=2)


@pytest.mark.slow
def test_a_cell_of_the_shipped_model_runs_in_an_empty_folder(run, tmp_path):
    """Training, answers and scores, with data and results in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        real_layouts.draw_official(tmp_path / "data", patch)
    sets = ("okvqa", "textvqa", "gqa", "ocrvqa")
    counts = [f"dataset.{name}.counts.test={real_layouts.COUNTS['test']}" for name in sets]
    counts += [f"dataset.scienceqa.counts.{split}={count}" for split, count in real_layouts.COUNTS.items()]
    short = [f"dataset.{name}.max_new_tokens=2" for name in (*sets, "scienceqa")]
    run("spiderbench", "run", "method=spider", "model=llava_pocket", "dataset=scienceqa", "data_root=data",
        "results=mine", "train.limit=16", "train.epochs=1", *counts, *short)
    (scores,) = (tmp_path / "mine").rglob("scores.json")
    assert "scienceqa" in scores.read_text()
    program = "import spiderbench; print(spiderbench.load_results('mine').cells.method.item())"
    assert run("python", "-c", program).strip() == "spider"
