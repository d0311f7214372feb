"""A user's own module, named as Python names it or by its file, under one name that says nothing about the machine."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from benchmark.core.errors import UserError
from benchmark.core.files import user_path
from benchmark.spec import ROOT


def is_module(name: str) -> bool:
    """Return whether a name is a file, a dotted module, or a module that can be imported here."""
    if name.endswith(".py") or "/" in name or "." in name:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def canonical(name: str) -> str:
    """Return the name under which a module enters cell ids, and make it importable here and in child processes.

    Args:
        name: a module (`my_target`, `mine.target`) or a file (`./my_target.py`).

    Returns:
        A module as it is. A file below the repository by its dotted name (`examples.my_target`), any other by its
        stem: the same on every machine. Its folder goes to the end of the path, where it hides no other module.

    Raises:
        UserError: there is no such file, or its name is no module's or another module's.
    """
    if not (name.endswith(".py") or "/" in name):
        return name
    path = user_path(name).resolve()
    if not path.is_file():
        raise UserError(f"{name}: there is no file {path}. Give a Python file, e.g. ./my_target.py.")
    inside = path.relative_to(ROOT).with_suffix("").parts if path.is_relative_to(ROOT) else ()
    folder, parts = (ROOT, inside) if inside and all(map(str.isidentifier, inside)) else (path.parent, (path.stem,))
    module = ".".join(parts)
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UserError(f"{name}: Python cannot import a file of this name. Call it e.g. {'my_module.py'!r}.")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) not in known:  # torchrun's processes read it
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*known, str(folder)]))
    importlib.invalidate_caches()
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None or Path(found.origin).resolve() != path:
        other = "nothing" if found is None else found.origin or "a built-in module"
        raise UserError(f"{name}: `import {module}` finds {other}. Give the file another name.")
    return module


def portable(module: str) -> str:
    """Return what names a module in a command that runs elsewhere: its file, or its name if it is of this repository.

    Args:
        module: from `canonical`.
    """
    if ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file():
        return module
    found = importlib.util.find_spec(module)
    return module if found is None or found.origin is None or "." in module else found.origin
