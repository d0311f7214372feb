"""The reference checks must notice every named fault, so that passing them means something."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path

import pytest

import methods
from methods.shards import Shards
from tests.methods.checks import CHECKS
from tests.methods.mutations import MUTATIONS

SOURCE = Path(methods.__file__).parent
NUMBER = itertools.count()


@pytest.fixture
def mutant(tmp_path, monkeypatch):
    """Return a function that writes a copy of `methods` with one change and returns its loader."""

    def make(file: str, text: str, replacement: str):
        package = f"mutant_{next(NUMBER)}"
        folder = tmp_path / package
        folder.mkdir()
        for path in SOURCE.glob("*.py"):
            source = path.read_text()
            if path.stem == file:
                assert source.count(text) == 1, (
                    f"{text!r} is in {path.name} {source.count(text)} times, not once"
                )
                source = source.replace(text, replacement)
            source = source.replace("from methods", f"from {package}")
            (folder / path.name).write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return lambda name: importlib.import_module(f"{package}.{name}")

    yield make
    for name in [name for name in sys.modules if name.startswith("mutant_")]:
        del sys.modules[name]


@pytest.fixture
def cut(monkeypatch):
    """Return a function after which tensors are treated as if other processes held parts of them."""
    return lambda: monkeypatch.setattr(Shards, "whole", False)


@pytest.mark.slow
@pytest.mark.parametrize("method", CHECKS)
def test_an_unchanged_copy_passes(method, mutant, cut):
    load = mutant("", "", "")
    CHECKS[method](load)
    cut()
    CHECKS[method](load)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_noticed(name, mutant, cut):
    method, file, text, replacement = MUTATIONS[name]
    load = mutant(file, text, replacement)
    with pytest.raises(AssertionError):
        CHECKS[method](load)
        cut()  # the fault may be in what only tensors that are cut need
        CHECKS[method](load)
