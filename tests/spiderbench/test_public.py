"""The public package: its names, what it imports, and foreign packages that take our names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import spiderbench
from benchmark.spec import ROOT


def python(*arguments: str, folder: Path = ROOT, path: str = str(ROOT)) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.mark.slow
def test_every_name_is_there_and_documented():
    assert dir(spiderbench) == spiderbench.__all__
    for name in spiderbench.__all__:
        value = getattr(spiderbench, name)
        assert value.__doc__ and f"`{name}`" in spiderbench.__doc__, name


def test_an_unknown_name_tells_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'atach'; it has MethodCallback, UserError, attach"):
        spiderbench.atach  # noqa: B018


@pytest.mark.slow
def test_nothing_heavy_is_imported_at_the_top():
    program = (
        "import sys, spiderbench; assert not {'benchmark', 'methods', 'eval'} & {*sys.modules};"
        "spiderbench.list_methods(); assert not {'torch', 'transformers', 'pandas'} & {*sys.modules}"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_attach_needs_no_transformers_no_pandas_and_no_scorers(tmp_path):
    """Many projects have an eval.py beside the training script."""
    (tmp_path / "eval.py").write_text("raise RuntimeError('not ours')")
    program = "import sys; from spiderbench import attach; print({'transformers', 'pandas', 'eval'} & {*sys.modules})"
    done = python("-c", program, folder=tmp_path, path=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["benchmark", "methods", "eval"])
def test_a_foreign_package_is_named(name, tmp_path):
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('half used')")
    both = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = python("-c", "from spiderbench import load_results", folder=tmp_path, path=both)
    message = f"`import {name}` finds {tmp_path / name}.py, not SpiderBench's {ROOT / name}."
    assert done.returncode == 1 and f"ImportError: {message}" in done.stderr and "half used" not in done.stderr
    for module in ("spiderbench", "benchmark")[: 2 if name != "benchmark" else 1]:
        done = python("-m", module, "list", folder=tmp_path, path=os.pathsep.join([str(ROOT), str(tmp_path)]))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and f"error: {message}" in done.stderr


@pytest.mark.slow
def test_a_folder_without_code_of_ours_hides_nothing(tmp_path):
    (tmp_path / "methods").mkdir()  # no __init__.py: a regular package further down the path comes first
    done = python("-c", "from spiderbench import list_methods", folder=tmp_path)
    assert done.returncode == 0, done.stderr
