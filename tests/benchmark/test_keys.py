"""Stage keys: which change redoes which stage, and that no module that makes numbers is forgotten."""

from __future__ import annotations

import ast
import itertools
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from benchmark.compose import request
from benchmark.keys import STAGE_MODULES, Digests, code_digest, keys_of
from benchmark.spec import ROOT, CellSpec, DatasetSpec, TrainSpec


class Contents(Digests):
    """Digests that a test sets."""

    def __init__(self, base: str = "base", changed: str | None = None) -> None:
        self.base, self.changed = base, changed

    def model(self, model):
        return self.base

    def records(self, dataset, data_root, split, limit):
        return f"{dataset.id} {split} {limit}" + (" new" if f"{dataset.id} {split}" == self.changed else "")


@pytest.fixture
def cell() -> CellSpec:
    return request(["method=spider", "model=vila_pocket", "dataset=iconqa"]).cells[0]


def changed(before, after) -> set[str]:
    return {stage for stage, key in before.stages.items() if after.stages.get(stage) != key}


def everything(cell: CellSpec) -> set[str]:
    return set(keys_of(cell, Contents()).stages)


def chain(*names: str) -> set[str]:
    return {f"{stage}/{name}" for stage in ("generate", "score") for name in names} | {"summary"}


def test_stages_come_in_order(cell):
    stages = list(keys_of(cell, Contents()).stages)
    assert stages[0] == "train" and stages[-1] == "summary"
    assert [stage.partition("/")[0] for stage in stages[1:-1]] == ["generate"] * 5 + ["score"] * 5


@pytest.mark.parametrize(
    ("contents", "redone"),
    [
        (Contents(base="other"), None),
        (Contents(changed="iconqa train"), None),
        (Contents(changed="gqa test"), chain("gqa")),
        (Contents(changed="gqa train"), set()),
        (Contents(changed="coco test"), set()),
    ],
)
def test_content_redoes_what_depends_on_it(cell, contents, redone):
    found = changed(keys_of(cell, Contents()), keys_of(cell, contents))
    assert found == (everything(cell) if redone is None else redone)


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda c: replace(c, seed=1), None),
        (lambda c: replace(c, method=replace(c.method, params={"momentum": 0.5})), None),
        (lambda c: replace(c, method=replace(c.method, id="full_ft")), None),
        (lambda c: replace(c, train=replace(c.train, epochs=6)), None),
        (lambda c: replace(c, dtype="bfloat16"), None),
        (lambda c: replace(c, model=replace(c.model, preprocess="pad")), None),
        (lambda c: replace(c, model=replace(c.model, checkpoint="elsewhere", name="Other")), set()),
        (lambda c: replace(c, data_root="elsewhere", threads=8, device="cuda"), set()),
        (lambda c: replace(c, eval=replace(c.eval, batch_size=1)),
         chain("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa")),
        (lambda c: replace(c, eval=replace(c.eval, limit=5)), chain("okvqa", "textvqa", "ocrvqa", "gqa", "iconqa")),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], metric="vqa_official"), *c.datasets[1:])),
         {"score/okvqa", "summary"}),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], max_new_tokens=3), *c.datasets[1:])), chain("okvqa")),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], stop=("\n",)), *c.datasets[1:])), chain("okvqa")),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], name="Other"), *c.datasets[1:])), set()),
        (lambda c: replace(c, datasets=(replace(c.datasets[0], role="extra"), *c.datasets[1:])), {"summary"}),
    ],
)  # fmt: skip
def test_settings_redo_what_depends_on_them(cell, change, redone):
    found = changed(keys_of(cell, Contents()), keys_of(change(cell), Contents()))
    assert found == (everything(cell) if redone is None else redone)


def test_a_posthoc_cell_depends_on_its_full_ft_cell():
    full, dare = request(["methods=full_ft,dare", "model=vila_pocket", "dataset=iconqa"]).cells
    source = keys_of(full, Contents())
    before = keys_of(dare, Contents(), source)
    longer = keys_of(replace(full, train=replace(full.train, epochs=6)), Contents())
    assert changed(before, keys_of(dare, Contents(), longer)) == set(before.stages)
    assert before.train != source.train


# -- code ---------------------------------------------------------------------------------------------------------


def digest_of_text(tmp_path: Path, text: str) -> str:
    path = tmp_path / f"module{next(COUNTER)}" / "same_name.py"
    path.parent.mkdir()
    path.write_text(text)
    return code_digest((str(path),))


COUNTER = itertools.count()
CODE = '''"""Module."""
import math

class A:
    """Class."""
    def f(self, x):
        """Function."""
        return x + 1
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Module", "Other words", True), ("Class.", "Other words.", True), ("Function", "Other words", True),
        ("x + 1", "x + 1  # why", True), ("import math\n", "import math\n\n\n", True),
        ('        """Function."""\n', "", True),
        ("x + 1", "x + 2", False), ("x + 1", "x - 1", False), ("def f", "def g", False), ("x + 1", "'x'", False),
    ],
)  # fmt: skip
def test_comments_and_docstrings_do_not_change_the_code_digest(tmp_path, old, new, same):
    assert old in CODE
    assert (digest_of_text(tmp_path, CODE) == digest_of_text(tmp_path, CODE.replace(old, new))) == same


def test_the_code_of_a_method_changes_only_its_own_cells(cell, tmp_path, monkeypatch):
    """A method's file is part of the train key of its cells, and of no other method's."""
    other = replace(cell, method=replace(cell.method, id="l2_reg", params={"strength": 1e-3}))
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr("benchmark.keys.code_digest", lambda modules: seen.append(modules) or "code")
    keys_of(cell, Contents())
    keys_of(other, Contents())
    with_spider = [modules for modules in seen if "methods/spider.py" in modules]
    assert len(with_spider) == 1 and "methods/l2_reg.py" not in with_spider[0]
    assert {"methods/mask_log.py", "methods/fused.py", "methods/blocks.py"} <= {*with_spider[0]}, "what it imports"
    assert "methods/penalty.py" not in with_spider[0], "what another method imports"
    assert sum("methods/penalty.py" in modules for modules in seen) == 1
    assert sum("benchmark/models/vila.py" in modules for modules in seen) >= 2
    assert not any("benchmark/models/llava.py" in modules for modules in seen)


ALL = {"train", "generate", "score", "summary"}
# Which kinds of stages a module is part of; what is trained with it is also answered and scored anew.
MODULES = {
    name: ALL if "train" in kinds else {
        "posthoc": ALL, "generate": ALL - {"train"}, "score": {"score", "summary"}, "summary": {"summary"},
    }[kinds[0]]
    for name in {name for modules in STAGE_MODULES.values() for name in modules}
    for kinds in [[kind for kind, modules in STAGE_MODULES.items() if name in modules]]
} | {
    "methods/dare.py": ALL, "methods/ops.py": ALL, "benchmark/models/vila.py": ALL, "methods/spider.py": set(),
    "methods/mask_log.py": set(),
}  # fmt: skip


def test_a_change_of_any_module_redoes_its_stages_and_no_earlier_ones(monkeypatch):
    full, dare = request(["methods=full_ft,dare", "model=vila_pocket", "dataset=iconqa"]).cells
    altered = ""

    def digest(modules):
        return " ".join(f"{name}*" if name == altered else name for name in sorted(set(modules)))

    monkeypatch.setattr("benchmark.keys.code_digest", digest)

    def keys():
        return keys_of(dare, Contents(), keys_of(full, Contents()))

    before = keys()
    for altered, kinds in MODULES.items():
        redone = {stage.partition("/")[0] for stage in changed(before, keys())}
        assert redone == kinds, altered
        stages = [stage for stage in before.stages if stage.partition("/")[0] in kinds]
        assert changed(before, keys()) == set(stages), altered


def test_the_digest_of_a_module_follows_its_file(tmp_path, monkeypatch):
    """The real digest on a copy of a real module: what `test_a_change_of_any_module` takes for granted."""
    path = tmp_path / "vqa.py"
    text = (ROOT / "eval/vqa.py").read_text()
    path.write_text(text)
    before = code_digest.__wrapped__((str(path),))
    path.write_text(text + "\nMORE = 1\n")
    assert code_digest.__wrapped__((str(path),)) != before


OTHER = {
    "prompt": "Other? {question}", "metric": "exact_lower", "max_new_tokens": 7, "options": {"reader": "gqa", "x": 1},
    "splits": {"test": "other"}, "stop": ("\n",),
}  # fmt: skip


@pytest.mark.parametrize("name", [item.name for item in fields(DatasetSpec)])
def test_every_field_of_a_protocol_counts(cell, name):
    """Id and role have tests of their own; name and counts are words about the data, whose content counts."""
    gqa = cell.dataset("gqa")
    if name in ("id", "role", "name", "counts"):
        return
    other = replace(cell, datasets=tuple(replace(gqa, **{name: OTHER[name]}) if one is gqa else one
                                         for one in cell.datasets))
    expected = {"score/gqa", "summary"} if name == "metric" else chain("gqa")
    assert changed(keys_of(cell, Contents()), keys_of(other, Contents())) == expected


@pytest.mark.parametrize("name", [item.name for item in fields(TrainSpec)])
def test_every_training_setting_counts(cell, name):
    value = getattr(cell.train, name)
    words = {"scope": "all", "scheduler": "linear", "limit": 3}
    other = words[name] if name in words else not value if isinstance(value, bool) else value * 2 + 1
    found = changed(keys_of(cell, Contents()),
                    keys_of(replace(cell, train=replace(cell.train, **{name: other})), Contents()))
    assert found == (set() if name == "gradient_checkpointing" else everything(cell))


# Modules that make no number: they move data, check, name or report. Data readers count through the data's digest.
NO_NUMBERS = {
    "benchmark/__init__.py", "benchmark/errors.py", "benchmark/files.py", "benchmark/spec.py",
    "benchmark/data/__init__.py", "benchmark/data/record.py", "benchmark/models/folder.py",
    "methods/__init__.py", "methods/registry.py", "eval/__init__.py", "eval/java.py", "benchmark/sidecar.py",
    "benchmark/models/places.py", "benchmark/models/sizes.py", "benchmark/models/trainable.py",
    "benchmark/signals.py", "benchmark/watch.py",
}  # fmt: skip


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
        ("train", "benchmark/train.py", ()), ("train", "benchmark/models/llava.py", ("llava",)),
        ("train", "benchmark/models/vila.py", ("vila",)),
        ("posthoc", "benchmark/posthoc.py", ("train",)),
        ("generate", "eval/generate.py", ()), ("score", "eval/score.py", ()),
        ("summary", "benchmark/scores.py", ("score",)),
    ],
)  # fmt: skip
def test_every_module_behind_a_stage_is_hashed(stage, entry, also):
    families = {
        "llava": ("benchmark/models/llava.py", "benchmark/models/llava_original.py"),
        "vila": ("benchmark/models/vila.py",),
    }
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


# -- remembered digests -------------------------------------------------------------------------------------------


def test_a_digest_is_computed_again_only_when_a_file_changes(tmp_path, monkeypatch, cell):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "weights").write_text("one")
    model = replace(cell.model, checkpoint=str(checkpoint))
    count = itertools.count()
    monkeypatch.setattr("benchmark.models.digest", lambda path: f"{(path / 'weights').read_text()} {next(count)}")
    cache = tmp_path / "digests.json"
    assert Digests(cache).model(model) == Digests(cache).model(model) == "one 0"
    (checkpoint / "weights").write_text("other")
    assert Digests(cache).model(model) == "other 1"
    cache.write_text("damaged")
    assert Digests(cache).model(model) == "other 2"
    assert json.loads(cache.read_text())
    assert Digests(tmp_path / "no folder" / "digests.json").model(model) == "other 3"
    assert not (tmp_path / "no folder").exists()
