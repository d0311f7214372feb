"""`make lint` as tests: while one core checks the types, the others test."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmark.spec import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("command", [("mypy",), ("ruff", "check", ".")], ids=lambda command: command[0])
def test_it_is_clean(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
