"""Real and drawn data go through the same code: no Python file outside its own package knows the small scale."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORD = "pocket"
ALLOWED = (ROOT / "benchmark" / WORD,)


def offenders(root: Path, allowed: tuple[Path, ...]) -> list[str]:
    """Return file:line of every mention of the word in Python code below benchmark, methods and eval."""
    return [
        f"{path.relative_to(root)}:{number}"
        for folder in ("benchmark", "methods", "eval")
        for path in sorted((root / folder).rglob("*.py"))
        if not any(path.is_relative_to(place) for place in allowed)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if WORD in line.lower().replace(f"benchmark.{WORD}", "")  # the command line calls the package by its name
    ]


def test_only_conf_the_drawer_and_pretraining_know_the_small_scale():
    assert offenders(ROOT, ALLOWED) == []


@pytest.mark.parametrize(("file", "found"), [
    ("eval/score.py", ["eval/score.py:2"]),
    ("benchmark/pocket/pretrain/language.py", []),
])
def test_a_planted_mention_is_found(tmp_path, file, found):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"x = 1\nif profile == '{WORD.title()}': pass\n")
    assert offenders(tmp_path, (tmp_path / "benchmark" / WORD,)) == found
