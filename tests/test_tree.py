"""The repository stays small: a machine with a GPU gets it whole."""

from __future__ import annotations

import subprocess

import pytest

from benchmark.spec import ROOT

LIMIT = 40 * 2**20


def test_tracked_files_are_at_most_40_mib():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(paths) > 100
    assert sum(path.lstat().st_size for path in paths if path.is_file()) <= LIMIT
