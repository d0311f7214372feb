"""What README and docs promise: examples run as written, commands exist and parse, links and anchors lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from benchmark.cli import VERBS, main

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SHIPPED = "benchmark/checkpoints/llava_pocket"
# What an example leaves open -> what stands for it here.
PLACES = {
    " ... ": " table=table5 ",
    "/path/to/checkpoint": SHIPPED,
    "mine:/path,other@vila_pocket:/path2": f"mine:{SHIPPED}",
    "hostfile=hosts ": "",
    "PYTHON=/path/to/python": "",
    "spider,soft_spider ": "spider,examples.soft_spider.soft_spider:SoftSpider ",
    "./my_target.py": "./examples/my_target.py",
    "./my_method.py:MyMethod": "./examples/my_method.py:TopKGradient",
}
# Verbs that compose a grid; the rest is looked up by name alone. What plan does not read is left out.
GRIDS = ("run", "plan", "zeroshot", "sweep", "figure", "all", "report", "rates", "publish")
NOT_PLANNED = ("figure", "gate", "name", "sbatch", "results")


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


# ---------------------------------------------------------------------------------------------------------------
# Links


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).strip().lower().replace(" ", "-")


def anchors(path: Path) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", text(path), flags=re.S | re.M)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_and_anchors_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    assert wrong == []


def test_every_page_is_reached_from_the_readme():
    seen, open_pages = set(), [README]
    while open_pages:
        page = open_pages.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", text(page))
        open_pages += [path for link in links if (path := (page.parent / link).resolve()) in PAGES and path not in seen]
    assert set(PAGES) == seen


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_paths_that_are_named_exist(page):
    folders = "benchmark|conf|docs|eval|examples|methods|tests"
    named = re.findall(rf"`((?:{folders})/[\w/.]+\.(?:py|md|json|yaml))`", text(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


# ---------------------------------------------------------------------------------------------------------------
# Python


EXAMPLES = [path.read_text() for path in sorted((ROOT / "examples").rglob("[a-z]*.py"))]
FENCED = [(page, block) for page in PAGES for block in re.findall(r"^```python\n(.*?)^```", text(page), re.S | re.M)]
INDENTED = [
    (page, textwrap.dedent(block))
    for page in PAGES
    for block in re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text(page), re.M)
    if re.match(r"\s*(from|import) ", block)
]
# What is no part of an example stands for itself and must run as it is.
RUN = [(page, block) for page, block in FENCED + INDENTED
       if not any(block in file or textwrap.indent(block, "    ") in file for file in EXAMPLES)]


def test_whole_examples_are_in_the_documents():
    pages = text(ROOT / "docs" / "usage.md") + text(ROOT / "docs" / "library.md")
    assert len(EXAMPLES) >= 7 and [file for file in EXAMPLES if f"```python\n{file}```" not in pages] == []
    assert max(len(file.splitlines()) for file in EXAMPLES) < 40


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), RUN, ids=names([page for page, _ in RUN]))
def test_other_python_runs(page, block):
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    comments = (line.partition("#")[2] for line in block.splitlines() if line.startswith("print"))
    said = [number for comment in comments for number in re.findall(r"\d+\.\d+", comment)]
    assert [number for number in said if number not in done.stdout] == []


# ---------------------------------------------------------------------------------------------------------------
# Commands


def commands(page: Path) -> list[str]:
    """Return the commands of a page: lines of code blocks, and code within the text."""
    lines = re.findall(r"^ {4}(?:.*&& )?((?:\S*python|make) .*)$", text(page), re.M)
    lines += [" ".join(code.split()) for code in re.findall(r"`((?:python -m benchmark|make) [^`]+)`", text(page))]
    return [re.split(r"\s+#\s|\s{2,}#|\s>\s", line)[0].strip() for line in lines]


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
MAKE = [command for command in COMMANDS if command.startswith("make ")]
DIRECT = [command for command in COMMANDS if re.match(r"\S*python -m benchmark ", command)]


def arguments(command: str) -> list[str]:
    for place, real in PLACES.items():
        command = command.replace(place, real)
    return shlex.split(command)


def check(verb: str, rest: list[str], tmp_path: Path) -> None:
    """Plan what a verb would run, or look the verb up."""
    assert verb in VERBS, verb
    if verb not in GRIDS or rest == ["..."]:
        return
    kept = [word for word in rest if "=" in word and word.partition("=")[0] not in NOT_PLANNED]
    if verb not in ("run", "plan"):
        kept = ["table=table5", *(word for word in kept if not word.startswith("table="))]
    assert main(["plan", *kept, f"results={tmp_path / 'runs'}"]) == 0


@pytest.mark.parametrize("command", MAKE)
def test_make_examples_parse(command, tmp_path, capsys):
    done = subprocess.run(
        ["make", "-n", f"PYTHON={sys.executable}", *arguments(command)[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    recipe = done.stdout.replace("\\\n", " ")
    for line in recipe.splitlines():
        if f"{sys.executable} -m benchmark " in line:
            verb, *rest = shlex.split(line.partition(" -m benchmark ")[2])
            check(verb, rest, tmp_path)


@pytest.mark.parametrize("command", DIRECT)
def test_python_examples_parse(command, tmp_path, capsys):
    verb, *rest = arguments(command)[3:] or ["--help"]
    if verb.startswith("-"):
        assert main([verb]) == 0
    else:
        check(verb, rest, tmp_path)


def test_every_variable_of_make_is_explained():
    makefile, usage = text(ROOT / "Makefile"), text(ROOT / "docs" / "usage.md")
    variables = re.search(r"^grid_names := (.*)$", makefile, re.M)[1].split()
    variables += re.search(r"^reads_help := \$\(grid_names\) (.*)$", makefile, re.M)[1].split()
    assert [name for name in variables if f"`{name}`" not in usage] == []


def test_examples_are_found():
    assert {"make table5", "make table6 TARGETS=examples.my_target"} <= set(MAKE)
    assert "python -m benchmark plan table=table5" in DIRECT
    assert len(FENCED) >= 5
    assert ROOT / "docs" / "results.md" in dict(RUN)


# ---------------------------------------------------------------------------------------------------------------
# README


def test_readme_is_short_and_finished():
    assert len(text(README).splitlines()) <= 150
    assert "git clone --depth 1" in text(README)
    assert "TODO" + "_" not in text(README)
    assert text(README).count("<!-- packages -->") == text(README).count("<!-- /packages -->") == 1


def test_table_in_the_readme_is_the_published_one():
    (block,) = re.findall(r"^```text\n(.*?)^```", text(README), re.S | re.M)
    title, head, *rows = [line for line in block.splitlines() if line.strip(" ─")]
    frame = pd.read_csv(ROOT / "results" / "pocket" / "tables" / "table5.csv")
    model, target = re.fullmatch(r"(.*), fine-tuned on (.*)", title).groups()
    frame = frame[(frame.model_name == model) & (frame.target_name == target)]
    heads = ["Method", "OKVQA", "TextVQA", "OCRVQA", "GQA", "A^S", "A^T", "H", "vs FT", "O", "vs FT", "Paper H"]
    assert re.split(r"\s{2,}", head.strip()) == heads
    expected = []
    for method in frame.method.drop_duplicates():
        lines = frame[frame.method == method].set_index("metric")
        cells = [lines.method_name.iloc[0]]
        for metric in ("okvqa", "textvqa", "ocrvqa", "gqa", "A_S", "A_T", "H", "O"):
            line = lines.loc[metric]
            cells.append(f"[{line.value:.2f}]" if line.best else f"{line.value:.2f}")
            if metric in ("H", "O"):
                arrow = "↑" if line.delta > 0 else "↓"
                star = "*" * bool(line.star)
                cells.append("-" if pd.isna(line.delta) else f"{arrow}{abs(line.delta):.2f}{star}")
        expected.append([*cells, "-"])
    assert [re.split(r"\s{2,}", row.strip()) for row in rows] == expected
