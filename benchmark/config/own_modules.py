"""The user's own module, given by name or by file, under one name that is the same on every machine."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from benchmark.core.errors import UserError
from benchmark.core.files import user_path
from benchmark.spec import ROOT


def is_module(name: str) -> bool:
    """Return whether a name is a file, a dotted name, or a module that can be imported."""
    if name.endswith(".py") or "/" in name or "." in name:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def canonical(name: str) -> str:
    """Return the name of a module for cell ids; make it importable here and in child processes.

    Args:
        name: a module (`my_target`, `mine.target`) or a file (`./my_target.py`).

    Returns:
        A module's name unchanged. A file in the repository gets its dotted name (`examples.my_target`), any other file
        its stem. The file's folder goes to the end of sys.path, where it hides no other module.

    Raises:
        UserError: the file does not exist, its name is not a module's, or another module has the name.
    """
    if not (name.endswith(".py") or "/" in name):
        return name
    path = user_path(name).resolve()
    if not path.is_file():
        raise UserError(f"{name}: {path} is not a file. Give a Python file, e.g. ./my_target.py.")
    inside = path.relative_to(ROOT).with_suffix("").parts if path.is_relative_to(ROOT) else ()
    folder, parts = (ROOT, inside) if inside and all(map(str.isidentifier, inside)) else (path.parent, (path.stem,))
    module = ".".join(parts)
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(f"{name}: Python cannot import a file with this name. Rename it, e.g. to my_module.py.")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) not in known:  # torchrun's processes read it
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*known, str(folder)]))
    importlib.invalidate_caches()
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or Path(found.origin).resolve() != path:
        other = "nothing" if found is None else found.origin or "a built-in module"
        raise UserError(f"{name}: `import {module}` finds {other}. Rename the file.")
    return module


def canonical_class(text: str) -> str:
    """Return FILE:Class as module:Class, for cell ids; see `canonical`. Text without a module is returned as it is.

    Raises:
        UserError: see `canonical`.
    """
    module, _, name = text.rpartition(":")
    return f"{canonical(module)}:{name}" if module else text


def portable(module: str) -> str:
    """Return how a command that runs elsewhere names a module: by its file, or by its name if it is in this repository.

    Args:
        module: from `canonical`.
    """
    if ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file():
        return module
    found = importlib.util.find_spec(module)
    return module if found is None or found.origin is None or "." in module else found.origin
