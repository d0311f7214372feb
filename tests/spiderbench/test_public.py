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


def test_every_name_is_there_and_documented():
    assert dir(spiderbench) == spiderbench.__all__
    for name in spiderbench.__all__:
        value = getattr(spiderbench, name)
        assert value.__doc__ and f"`{name}`" in spiderbench.__doc__, name


def test_an_unknown_name_tells_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'atach'; it has MethodCallback, UserError, attach"):
        spiderbench.atach  # noqa: B018


def test_nothing_heavy_is_imported_at_the_top():
    program = (
        "import sys, spiderbench; assert not {'benchmark', 'methods', 'eval'} & {*sys.modules};"
        "spiderbench.list_methods(); assert not {'torch', 'transformers', 'pandas'} & {*sys.modules}"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_attach_needs_no_transformers_and_no_pandas():
    program = "import sys; from spiderbench import attach; print({'transformers', 'pandas'} & {*sys.modules})"
    done = python("-c", program)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.slow
def test_a_type_checker_sees_the_types(tmp_path):
    (tmp_path / "use.py").write_text(
        "from spiderbench import attach, list_methods, load_results, merge, MethodCallback, UserError\n"
        "import torch\n"
        "model = torch.nn.Linear(2, 2)\n"
        "attach('spider', torch.optim.AdamW(model.parameters()), model).diagnostics()['x'].is_integer()\n"
        "load_results('x').cells\n"
        "merge('dare', 'a', ['b'], 'c').is_dir()\n"
        "attach(3, None, model)\n"
    )
    done = python("-m", "mypy", "--no-incremental", str(tmp_path / "use.py"), folder=tmp_path)
    assert done.stdout.count("error:") == 1 and 'incompatible type "int"; expected "str"' in done.stdout, done.stdout


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


def test_a_folder_without_code_of_ours_hides_nothing(tmp_path):
    (tmp_path / "methods").mkdir()  # no __init__.py: a regular package further down the path comes first
    done = python("-c", "from spiderbench import attach", folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_eval_next_to_a_training_script_does_not_hide_attach(tmp_path):
    """Many projects have an eval.py, and training needs none of ours."""
    (tmp_path / "eval.py").touch()
    both = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert python("-c", "from spiderbench import attach, MethodCallback", folder=tmp_path, path=both).returncode == 0
