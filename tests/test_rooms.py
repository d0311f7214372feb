"""Imports go one way: a package imports only from packages below it, and no two modules import each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from benchmark.spec import ROOT

# High to low; the rooms of one row may not import each other.
ORDER = (
    ("spiderbench",), ("benchmark.__main__",), ("benchmark.cli",), ("benchmark.profiling", "benchmark.pocket"),
    ("benchmark.publishing",),
    ("benchmark.audit",), ("benchmark.studies",), ("benchmark.reporting",), ("benchmark.running",),
    ("benchmark.results",), ("benchmark.paper",), ("benchmark.planning",), ("benchmark.config",), ("benchmark.store",),
    ("benchmark.training", "benchmark.merging"), ("benchmark.models",), ("benchmark.data",), ("benchmark.spec",),
    ("methods", "eval"), ("benchmark.core",), ("benchmark",),
)  # fmt: skip
LEVEL = {room: len(ORDER) - row for row, rooms in enumerate(ORDER) for room in rooms}
LIGHT = ("benchmark.cli", "benchmark.config.request", "benchmark.planning.plan", "benchmark.planning.forecast",
         "benchmark.spec")


def modules(root: Path) -> dict[str, Path]:
    """Return module -> file of everything below spiderbench, benchmark, methods and eval."""
    packages = ("spiderbench", "benchmark", "methods", "eval")
    files = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    names = (".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files)
    return dict(zip(names, files, strict=True))


def imports(root: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (module, imported module, line) of every import that runs, also those inside functions."""
    known = modules(root)
    for name, path in known.items():
        for node in running(ast.parse(path.read_text(encoding="utf-8"))):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}:{node.lineno}: write the whole name"
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in known else str(node.module) for target in inner]
            yield from ((name, target, node.lineno) for target in dict.fromkeys(targets) if target in known)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those below `if TYPE_CHECKING`: an annotation binds no package to another."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from running(child)


def room(module: str) -> str:
    """Return the package of ORDER that a module lies in."""
    parts = module.split(".")
    found = ".".join(parts[:2]) if parts[0] == "benchmark" else parts[0]
    assert found in LEVEL, f"{module} lies in no package of ORDER: add {found} where it belongs"
    return found


def upward(root: Path) -> list[str]:
    """Return every import that leads to a package above its own or beside it."""
    return [
        f"{module}:{line} imports {target}" for module, target, line in imports(root)
        if room(module) != room(target) and LEVEL[room(target)] >= LEVEL[room(module)]
    ]


def circle(root: Path) -> list[str]:
    """Return the modules of a circle of imports, or nothing."""
    graph: dict[str, set[str]] = {}
    for module, target, _ in imports(root):
        if module != target:
            graph.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.slow
def test_imports_go_down_only():
    assert upward(ROOT) == []


@pytest.mark.slow
def test_no_modules_import_each_other():
    assert circle(ROOT) == []


@pytest.mark.parametrize(("text", "faults", "circular"), [
    ("import benchmark.running.b\n", ["benchmark.store.a:1 imports benchmark.running.b"], True),
    ("def f():\n    from benchmark.running import b\n", ["benchmark.store.a:2 imports benchmark.running.b"], True),
    ("if TYPE_CHECKING:\n    from benchmark.running import b\n", [], False),
    ("from benchmark.core import c\n", [], False),
])
def test_a_planted_import_is_found(tmp_path, text, faults, circular):
    for name, content in {
        "store/a": text, "running/b": "from benchmark.store import a\n", "core/c": "", "running/__init__": "",
    }.items():
        path = tmp_path / "benchmark" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert upward(tmp_path) == faults
    assert bool(circle(tmp_path)) == circular


def test_the_command_line_and_the_plan_need_no_torch():
    program = f"import sys, {', '.join(LIGHT)}; print(*{{'torch', 'transformers', 'pandas'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("path", ["README.md", "docs/architecture.md"])
def test_the_lists_of_packages_name_every_package(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    listed = text[text.index("<!-- packages -->") : text.index("<!-- /packages -->")]
    rooms = [room.split(".")[-1] for row in ORDER for room in row if room not in ("benchmark", "benchmark.__main__")]
    assert [name for name in rooms if not re.search(rf"\b{name}(/|\.py)?`", listed)] == []
