"""Stage versions: what changes a digest, what a version changes, and the tripwire itself."""

from __future__ import annotations

import ast
import itertools
import json
import shutil
from pathlib import Path

import pytest

from benchmark.config.request import request
from benchmark.core.errors import UserError
from benchmark.publishing import accept
from benchmark.spec import ROOT
from benchmark.store import code_version
from benchmark.store.cells import Store
from benchmark.store.code_version import STAGE_MODULES, code_digest, method_modules
from benchmark.store.keys import keys_of
from methods.registry import METHODS
from tests.benchmark.store.test_keys import Contents, changed

COUNTER = itertools.count()
CODE = '''"""Module."""
import math

class A:
    """Class."""
    size: int = 3
    def f(self, x):
        """Function."""
        return x + 1
'''


def test_the_code_of_every_stage_is_what_its_version_stands_for():
    """The tripwire. If no number changed: make accept STAGE=all; if one did: make accept BUMP=1 STAGE=..."""
    assert code_version.changed() == [], "make accept STAGE=all, or BUMP=1 for a stage whose numbers are to change"


def digest_of_text(tmp_path: Path, text: str, name: str = "same_name.py") -> str:
    path = tmp_path / f"module{next(COUNTER)}" / name
    path.parent.mkdir()
    path.write_text(text)
    return code_digest((str(path),))


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Module", "Other words", True), ("Class.", "Other words.", True), ("Function", "Other words", True),
        ("x + 1", "x + 1  # why", True), ("import math\n", "import math\n\n\n", True),
        ('        """Function."""\n', "", True), ("import math", "from elsewhere import math", True),
        ("f(self, x)", "f(self, x: int) -> int", True), ("size: int", "size", True), ("int = 3", "float = 3", True),
        ("= 3", "= 4", False), ("size", "length", False),
        ("x + 1", "x + 2", False), ("x + 1", "x - 1", False), ("def f", "def g", False), ("x + 1", "'x'", False),
        ("return x", "yield x", False), ("x + 1", "x + True", False), ("x + 1", "x + 1.0", False),
    ],
)
def test_only_what_can_change_a_number_changes_the_digest(tmp_path, old, new, same):
    assert old in CODE
    assert (digest_of_text(tmp_path, CODE) == digest_of_text(tmp_path, CODE.replace(old, new))) == same


def test_the_name_of_a_file_does_not_change_the_digest(tmp_path):
    assert digest_of_text(tmp_path, CODE) == digest_of_text(tmp_path, CODE, "another_name.py")


def test_moving_a_function_between_the_files_of_a_stage_does_not_change_the_digest(tmp_path):
    one, other, rest = tmp_path / "one.py", tmp_path / "other.py", tmp_path / "rest.py"
    one.write_text("import a\n\ndef f(x):\n    return a.g(x)\n\nLIMIT = 3\n")
    rest.write_text('"""What is left."""\n\nfrom other import f\n\nLIMIT = 3\n')
    other.write_text("import a\n\ndef f(x):\n    return a.g(x)\n")
    assert code_digest((str(one),)) == code_digest((str(rest), str(other)))


def test_an_import_for_annotations_adds_nothing_to_a_method(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("if TYPE_CHECKING:\n    from methods.shards import Shards\nfrom methods.ops import sign\n")
    assert code_version._imported_methods(str(path)) == ("methods/ops.py",)


def test_renaming_a_helper_module_changes_no_key_and_no_digest(tmp_path, monkeypatch):
    """benchmark/training/fragments.py becomes benchmark/pieces.py in a copy; its users import the new name."""
    cell = request(["method=spider", "model=vila_pocket", "dataset=iconqa"]).cells[0]
    keys, digest = keys_of(cell, Contents()), code_digest(STAGE_MODULES["train"])
    modules = []
    for name in STAGE_MODULES["train"]:
        copy = tmp_path / name.replace("fragments", "pieces")
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text()
        copy.write_text(text.replace("benchmark.training.fragments import", "benchmark.pieces import"))
        modules.append(str(copy))
    monkeypatch.setitem(STAGE_MODULES, "train", tuple(modules))
    assert "fragments" not in "".join(modules)
    assert code_digest(STAGE_MODULES["train"]) == digest
    assert keys_of(cell, Contents()) == keys and "train" not in code_version.changed()


def test_a_changed_number_trips_the_wire_and_changes_no_key(tmp_path, monkeypatch):
    cell = request(["method=spider", "model=vila_pocket", "dataset=iconqa"]).cells[0]
    keys = keys_of(cell, Contents())
    shutil.copy(ROOT / "eval/vqa.py", tmp_path / "vqa.py")
    text = (tmp_path / "vqa.py").read_text()
    assert "> 1" in text
    (tmp_path / "vqa.py").write_text(text.replace("> 1", "> 2"))
    modules = [str(tmp_path / "vqa.py") if name == "eval/vqa.py" else name for name in STAGE_MODULES["score"]]
    monkeypatch.setitem(STAGE_MODULES, "score", tuple(modules))
    assert code_version.changed() == ["score"]
    assert keys_of(cell, Contents()) == keys


@pytest.fixture
def versions(tmp_path, monkeypatch):
    """Return a copy of the versions that a test may change."""
    copy = tmp_path / "stage_versions.json"
    shutil.copy(code_version.FILE, copy)
    monkeypatch.setattr(code_version, "FILE", copy)
    code_version._read.cache_clear()
    yield lambda: json.loads(copy.read_text())
    code_version._read.cache_clear()


TRAINED = {"train", "generate", "score", "summary"}


@pytest.mark.parametrize(
    ("stage", "redone"),
    [
        ("train", TRAINED), ("posthoc", TRAINED), ("generate", TRAINED - {"train"}), ("score", {"score", "summary"}),
        ("summary", {"summary"}), ("family/vila", TRAINED), ("family/llava", set()), ("method/dare", TRAINED),
        ("method/spider", set()), ("method/full_ft", TRAINED), ("pid", set()), ("footprint", set()),
    ],
)
def test_a_new_version_redoes_its_stages_and_no_earlier_ones(stage, redone, versions):
    full, dare = request(["methods=full_ft,dare", "model=vila_pocket", "dataset=iconqa"]).cells

    def keys():
        return keys_of(dare, Contents(), [keys_of(full, Contents())])

    before, known = keys(), versions()
    code_version.record([stage], bump=True)
    assert versions() == {**known, stage: {**known[stage], "version": known[stage]["version"] + 1}}
    stages = {name for name in before.stages if name.partition("/")[0] in redone}
    assert changed(before, keys()) == stages


def test_a_method_of_ones_own_is_known_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_mine.py").write_text("A = 1\n")
    first = code_version.version("method/of_mine:A")
    code_digest.cache_clear()
    (tmp_path / "of_mine.py").write_text("A = 2\n")
    assert first.startswith("method/of_mine:A ") and code_version.version("method/of_mine:A") != first
    with pytest.raises(UserError, match="Cannot find the module 'nowhere_at_all'"):
        code_version.version("method/nowhere_at_all:A")


def test_every_built_in_stage_has_a_version(versions):
    assert set(versions()) == set(code_version.stages())
    assert {f"method/{name}" for name, entry in METHODS.items() if entry.cls} < set(versions())


# -- accepting ----------------------------------------------------------------------------------------------------


@pytest.fixture
def altered(versions, monkeypatch):
    """Return the versions, after a change of DARE's code that nobody has accepted."""
    real = code_digest

    def digest(modules):
        return "new" if "methods/dare.py" in modules else real(modules)

    monkeypatch.setattr(code_version, "code_digest", digest)
    return versions


@pytest.mark.slow
def test_what_changes_no_number_is_accepted_under_its_version(altered, monkeypatch, capsys):
    monkeypatch.setattr(accept, "_tests_pass", lambda: True)
    monkeypatch.setattr(accept, "_samples_agree", lambda stages, reference: True)
    before = altered()
    names = ["method/dare", "method/dare_drop_only", "method/dare_magnitude"]
    assert code_version.changed() == names
    assert accept.main(["all"]) == 0
    assert code_version.changed() == [] and "Accepted: method/dare 1, " in capsys.readouterr().out
    assert altered() == {**before, **{name: {**before[name], "digest": "new"} for name in names}}


@pytest.mark.parametrize(("tests", "samples"), [(False, True), (True, False)])
def test_a_failed_test_or_another_number_accepts_nothing(tests, samples, altered, monkeypatch, capsys):
    monkeypatch.setattr(accept, "_tests_pass", lambda: tests)
    monkeypatch.setattr(accept, "_samples_agree", lambda stages, reference: samples)
    before = altered()
    assert accept.main(["method/dare"]) == 1
    assert altered() == before and "Nothing was accepted" in capsys.readouterr().out


def test_what_has_not_changed_is_not_accepted(altered, monkeypatch):
    monkeypatch.setattr(code_version, "changed", lambda: ["method/dare"])
    with pytest.raises(UserError, match="The code of score has not changed. Changed: method/dare"):
        accept.main(["score"])
    with pytest.raises(UserError, match="Unknown stage 'trian'. Did you mean 'train'"):
        accept.main(["trian"])


@pytest.mark.slow
def test_the_samples_are_published_cells_of_every_method_model_and_target():
    store = Store(ROOT / "results/pocket")
    published = {path.name for path in store.all_cells()}
    samples = accept.all_samples()
    made = {"zero_shot", *(name.split("-")[2] for name in published)} & set(METHODS)  # an untuned cell has no target
    assert {sample.method for sample in samples} == made
    assert len({(sample.model, sample.target) for sample in samples if sample.target}) == 8
    cells = [cell for sample in samples for cell in sample.request().cells]
    assert len(cells) == len(samples) and {store.folder(cell).name for cell in cells} <= published
    without = {"family/auto", *(f"method/{method}" for method in set(METHODS) - made)}
    for stage in code_version.stages():
        assert bool(accept.samples(stage)) == (stage not in without), stage


# -- what belongs to a stage --------------------------------------------------------------------------------------

# Modules that make no number: they move data, check, name or report. Data readers count through the data's digest.
NO_NUMBERS = {
    "benchmark/__init__.py", "benchmark/training/__init__.py", "benchmark/core/__init__.py",
    "benchmark/store/__init__.py", "benchmark/running/__init__.py", "benchmark/studies/__init__.py",
    "benchmark/config/__init__.py", "benchmark/planning/__init__.py",
    "benchmark/core/errors.py", "benchmark/core/files.py", "benchmark/spec.py",
    "benchmark/data/__init__.py", "benchmark/data/record.py", "benchmark/models/folder.py",
    "methods/__init__.py", "methods/registry.py", "eval/__init__.py", "eval/java.py",
    "benchmark/models/digest_cache.py",
    "benchmark/models/places.py", "benchmark/models/sizes.py", "benchmark/training/trainable.py",
    "benchmark/core/signals.py", "benchmark/training/trackers.py", "benchmark/core/progress.py",
    "benchmark/planning/cost.py", "benchmark/training/train_settings.py",
}


def imports(path: str) -> set[str]:
    """Return our own modules that a module imports, anywhere in it."""
    found, tree = set(), ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # walked next: what only type checkers import makes no number
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            for candidate in (f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__init__.py"):
                if name.split(".")[0] in ("benchmark", "eval", "methods") and (ROOT / candidate).is_file():
                    found.add(candidate)
    return found


@pytest.mark.parametrize(
    ("stage", "entry", "also"),
    [
        ("train", "benchmark/training/train.py", ()), ("train", "benchmark/models/llava.py", ("llava",)),
        ("train", "benchmark/models/vila.py", ("vila",)),
        ("posthoc", "benchmark/training/posthoc.py", ("train",)),
        ("generate", "benchmark/training/generate.py", ()), ("score", "eval/score.py", ()),
        ("summary", "benchmark/store/scores.py", ("score",)),
    ],
)
def test_every_module_behind_a_stage_is_watched(stage, entry, also):
    families = {name: code_version.modules_of(f"family/{name}") for name in ("llava", "vila")}
    hashed = set(STAGE_MODULES[stage]).union(*({**STAGE_MODULES, **families}[name] for name in also))
    assert entry in hashed
    todo, seen = [entry], set()
    while todo:
        path = todo.pop()
        if path not in seen | NO_NUMBERS:
            seen.add(path)
            todo.extend(imports(path))
    assert seen <= hashed, f"add to STAGE_MODULES[{stage!r}]: {sorted(seen - hashed)}"
    assert all((ROOT / path).is_file() for path in hashed)


def test_a_method_is_watched_with_what_it_imports_and_no_more():
    assert {"methods/mask_log.py", "methods/fused.py", "methods/blocks.py"} <= {*method_modules("spider")}
    assert "methods/penalty.py" not in method_modules("spider") and "methods/penalty.py" in method_modules("l2_reg")
