"""Stage versions, which keys hold in place of the code, and the digests that detect a change of the code.

`stage_versions.json` gives every stage, model family and method a version. Keys hold the version, so code can be moved
and renamed without making published numbers stale. The digest beside it is a tripwire: when the code of a stage
changes, a test fails until somebody shows that no number changed (`make accept`) or raises the version (`BUMP=1`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import write_atomic
from benchmark.spec import ROOT, at_root

FILE = Path(__file__).with_name("stage_versions.json")

# The code that makes the numbers of each stage, relative to the repository. Model families and methods have their own
# versions. Data readers need none: keys hold a digest of the records. Spec, plan, store and runner compute no numbers.
MODEL = (
    "benchmark/models/__init__.py", "benchmark/models/batch.py", "benchmark/models/checkpoint_files.py",
    "benchmark/models/folder.py", "benchmark/models/prompt.py", "benchmark/models/scope.py",
    "benchmark/models/tokenizer_model.py", "benchmark/models/vision.py",
)
TRAIN = (
    "benchmark/training/train.py", "benchmark/training/trainer.py", "benchmark/training/order.py",
    "benchmark/training/objective.py",
)
STAGE_MODULES: dict[str, tuple[str, ...]] = {
    "train": (
        *TRAIN, "benchmark/training/checkpoint.py", "benchmark/training/engine.py", "benchmark/training/fragments.py",
        "benchmark/training/fsdp.py", "benchmark/training/attach.py", "methods/shards.py", *MODEL,
        "benchmark/training/losses.py", "benchmark/training/base_weights.py", "benchmark/training/replay.py",
        "benchmark/training/importance.py", "benchmark/training/sensitivity.py", "methods/importance.py",
        "benchmark/training/adapters.py", "benchmark/training/calibration.py", "methods/adapter.py", "methods/peft.py",
        "methods/blocks.py", "methods/base.py", "methods/ops.py", "methods/state.py",
    ),
    "posthoc": (
        "benchmark/training/posthoc.py", "benchmark/training/calibration.py", "benchmark/training/contrast.py",
        "methods/posthoc.py", "methods/blocks.py", "methods/masks.py",
    ),
    "generate": ("benchmark/training/generate.py", *MODEL),
    "few_shot": ("benchmark/data/few_shot.py",),
    "score": (
        "eval/score.py", "eval/caption.py", "eval/exact.py", "eval/format.py", "eval/normalise.py", "eval/scienceqa.py",
        "eval/textvqa.py", "eval/vqa.py",
    ),
    "summary": ("eval/stats.py", "eval/averages.py", "benchmark/store/scores.py"),
    "footprint": (
        "benchmark/running/method_cost.py", "benchmark/training/attach.py", "methods/shards.py", *TRAIN,
        "methods/base.py", "methods/state.py",
    ),
    "pid": ("benchmark/studies/discrepancy.py", *TRAIN, "benchmark/models/batch.py"),
    "drift": ("benchmark/training/drift.py", *TRAIN, "benchmark/models/batch.py"),
}


def version(stage: str) -> str:
    """Return what a key holds for the code of a stage: its version, or a digest of a user's own code.

    Args:
        stage: a name from `stages()`, or the user's own method/<module:Class> or family/<name>.

    Returns:
        For example "train 1", or "method/mine:Mine 0a1b2c3d4e5f6071".

    Raises:
        UserError: the user's module cannot be found.
    """
    known = _read().get(stage)
    return f"{stage} {known['version']}" if known else f"{stage} {code_digest(modules_of(stage))[:16]}"


def stages() -> list[str]:
    """Return every stage, model family and method that has a version."""
    from benchmark.models import FAMILIES
    from methods.registry import METHODS

    methods = (f"method/{name}" for name, entry in METHODS.items() if entry.cls)
    return [*STAGE_MODULES, *(f"family/{name}" for name in FAMILIES), *methods]


def modules_of(stage: str) -> tuple[str, ...]:
    """Return the files behind a stage, a model family (family/<name>) or a method (method/<id>).

    Raises:
        UserError: the module of a user's own method or family cannot be found.
    """
    kind, _, name = stage.partition("/")
    if kind == "method":
        return method_modules(name)
    return _family_modules(name) if kind == "family" else STAGE_MODULES[stage]


def changed() -> list[str]:
    """Return the stages whose code has changed since their version was recorded."""
    known = _read()
    return [stage for stage in stages() if known.get(stage, {}).get("digest") != code_digest(modules_of(stage))]


def record(names: Iterable[str], bump: bool = False) -> None:
    """Record the current code of stages under their version.

    Args:
        names: names from `stages()`.
        bump: raise the version first, because their numbers have changed.

    Raises:
        UserError: an unknown stage, or the file cannot be written.
    """
    known, valid = _read(), stages()
    for name in names:
        if name not in valid:
            raise UserError(f"Unknown stage {name!r}.{did_you_mean(name, valid)}")
        number = known.get(name, {"version": 0 if bump else 1})["version"] + bump
        known[name] = {"version": number, "digest": code_digest(modules_of(name))}
    rows = [f"  {json.dumps(name)}: {json.dumps(known[name])}" for name in valid if name in known]
    write_atomic(FILE, "{\n" + ",\n".join(rows) + "\n}\n")
    _read.cache_clear()


@functools.cache
def _read() -> dict[str, dict[str, Any]]:
    try:
        return json.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {FILE}: {error}. Restore it with git checkout.") from error


# ---------------------------------------------------------------------------------------------------------------
# Digests


@functools.cache
def code_digest(modules: tuple[str, ...]) -> str:
    """Return a digest of the code of modules, without file names, comments, docstrings, imports and annotations.

    Each top-level statement counts by itself, so moving a function to another of these modules changes nothing.

    Args:
        modules: files, relative to the repository or absolute.

    Returns:
        Hex digest of their syntax trees.
    """
    trees = [ast.parse(at_root(name).read_text(encoding="utf-8")) for name in set(modules)]
    statements = filter(None, (_essence(statement) for tree in trees for statement in _without_docstring(tree)))
    digests = sorted(hashlib.sha256(text.encode()).hexdigest() for text in statements)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


# Fields of a syntax tree that hold types or the origin of names, or that only some versions of Python write.
_BESIDE = {"annotation", "returns", "type_comment", "type_ignores", "type_params", "kind", "ctx", "simple"}


def _essence(node: Any) -> str:
    """Return a syntax tree as text that is the same in every Python version, without parts that change no number."""
    if isinstance(node, list):
        return "[" + ",".join(filter(None, map(_essence, node))) + "]"
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.Import | ast.ImportFrom):
        return ""
    if not isinstance(node, ast.AST):
        return repr(node)
    # `x: int = 1` computes what `x = 1` does.
    name = "Assign" if isinstance(node, ast.AnnAssign) else type(node).__name__
    fields = {key: value for key, value in ast.iter_fields(node) if key not in _BESIDE and value not in (None, [])}
    if "target" in fields and name == "Assign":
        fields = {"targets": [fields.pop("target")], **fields}
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = _without_docstring(node)
    return name + "(" + ",".join(f"{key}={_essence(value)}" for key, value in fields.items()) + ")"


def _without_docstring(node: Any) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node) else node.body


# ---------------------------------------------------------------------------------------------------------------
# Files


def method_modules(method: str) -> tuple[str, ...]:
    """Return the file of a method's class and the files of methods/ that it imports, directly or through others.

    Raises:
        UserError: its module cannot be found.
    """
    from methods.registry import METHODS

    path = METHODS[method].cls if method in METHODS else method
    found, todo = {}, [module_file(path.partition(":")[0])]
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = True
            todo += _imported_methods(name)
    return tuple(found)


@functools.cache
def _imported_methods(name: str) -> tuple[str, ...]:
    """Return the files of methods/ that a module imports anywhere, except for annotations."""
    modules = []
    for node in _run(ast.parse(at_root(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # In a file of methods/ one dot means methods. Other relative imports lead to no file of ours.
            source = ".".join(filter(None, ["methods" if node.level else "", node.module]))
            modules += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    files = [ROOT / (module.replace(".", "/") + ".py") for module in modules if module.startswith("methods.")]
    return tuple(sorted({str(file.relative_to(ROOT)) for file in files if file.is_file()}))


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node that runs: all except those below `if TYPE_CHECKING`."""
    if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _run(child)


def _family_modules(family: str) -> tuple[str, ...]:
    """Return the files of a model family: its module, and modules whose names begin with its name."""
    from benchmark.models import FAMILIES

    module = module_file(FAMILIES[family])
    beside = sorted(at_root(module).parent.glob(f"{Path(module).stem}_*.py"))
    return (module, *(str(path.relative_to(ROOT)) for path in beside if path.is_relative_to(ROOT)))


def module_file(module: str) -> str:
    """Return the file of a module. Ours is not imported, because a method's module imports torch."""
    own = ROOT / (module.replace(".", "/") + ".py")
    if own.is_file():
        return str(own.relative_to(ROOT))
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin:
        raise UserError(f"Cannot find the module {module!r}. Write module:Class, with its folder on PYTHONPATH.")
    return found.origin


def of_cell(family: str, method: str | None, posthoc: bool = False) -> Mapping[str, str]:
    """Return the version of each kind of stage of a cell.

    Args:
        family: the model's.
        method: id, or module:Class; None for an untuned model.
        posthoc: whether the method starts from a finished Full FT cell.

    Returns:
        Kind of stage (train, posthoc, generate, score, summary) -> versions, as keys and provenance.json hold them.

    Raises:
        UserError: the method's module cannot be found.
    """
    model, found = version(f"family/{family}"), {}
    if method is not None:
        found["train"] = f"{version('train')}, {model}, {version(f'method/{method}')}"
        if posthoc:
            found["posthoc"] = version("posthoc")
    found["generate"] = f"{version('generate')}, {model}"
    return {**found, "score": version("score"), "summary": version("summary")}
