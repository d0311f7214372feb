"""What the README promises: its example method runs as written, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_example_target_is_the_tested_file():
    _, source = re.findall(r"```python\n(.*?)```", README, re.S)
    assert source == (ROOT / "examples" / "my_target.py").read_text()
    assert "TARGETS=examples.my_target" in README


def test_example_method_is_the_tested_file():
    source, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    assert source == (ROOT / "examples" / "my_method.py").read_text()
    assert len(source.splitlines()) <= 40
    assert "METHODS=full_ft,spider,examples.my_method:TopKGradient" in README


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"make ([a-z0-9-]+)", README)) - {"and"}
    assert {"table5", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_nothing_is_left_open():
    assert "TODO" + "_" not in README


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "plan table=table5",
        "run method=spider model=llava_pocket dataset=iconqa train.epochs=5,10 seed=1 --cfg job",
    ],
)
def test_commands_in_the_readme_run(command, tmp_path):
    verb, *rest = command.split()
    extra = [] if verb == "list" else [f"results={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", verb, *rest, *extra], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
