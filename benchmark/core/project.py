"""Where the code, its settings and the user's files lie: one checkout, or an installed package and a working folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

CODE = ("benchmark", "eval", "methods")
ROOT = Path(__file__).resolve().parents[2]  # the folder of the packages: a checkout's top, or site-packages
IS_CHECKOUT = (ROOT / "conf" / "config.yaml").is_file()
WORK = ROOT if IS_CHECKOUT else Path.cwd()  # where relative paths of the configuration begin: data, results


def shipped(name: str) -> Path:
    """Return a folder beside the packages in a checkout, which the wheel has inside `benchmark`.

    Args:
        name: "conf" or "results/published".
    """
    return ROOT / name if IS_CHECKOUT else ROOT / "benchmark" / Path(name).name


def foreign_package(names: Iterable[str] = CODE) -> str | None:
    """Return a message if importing one of our packages finds other code than ours; None if all are ours.

    The names are common: a folder or file of the user's may come first on Python's path.
    """
    for name in names:
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # a module without a specification, such as one that a test made
            found = None
        place = Path(found.origin).resolve() if found and found.origin else None
        if place != ROOT / name / "__init__.py":
            return (
                f"`import {name}` finds {place or 'nothing'}, not SpiderBench's {ROOT / name}. Rename that file or "
                "folder, or start Python where it is not first on the path."
            )
    return None
