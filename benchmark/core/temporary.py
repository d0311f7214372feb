"""TMPDIR: choose a folder that every library can use before a cell runs, not in the middle of a training."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmark.core.errors import UserError

SOCKET = 107  # longest path of a Unix socket, in bytes; processes that read images use such sockets
NAME = len("/pymp-01234567/listener-01234567")  # the path that multiprocessing adds to the folder
LONGEST = SOCKET - NAME
OTHERS = ("/tmp", "/var/tmp")


def settle() -> None:
    """Set TMPDIR to a usable folder if the user's is missing, not writable or too long, and print a note.

    Python falls back to another folder by itself. C++ libraries and child processes do not.

    Raises:
        UserError: no folder is usable.
    """
    given = os.environ.get("TMPDIR")
    folders = [*filter(None, [given]), *OTHERS]
    faults = {folder: _fault(folder) for folder in folders}
    usable = next((folder for folder, fault in faults.items() if fault is None), None)
    if usable is None:
        raise UserError(
            f"No folder can hold temporary files: {', '.join(f'{name} {fault}' for name, fault in faults.items())}. "
            f"TMPDIR is {given or 'not set'}. Set it to a writable folder of at most {LONGEST} bytes, e.g. "
            "TMPDIR=/scratch/me."
        )
    if usable != given and (given or usable != OTHERS[0]):
        if given:
            print(f"note: TMPDIR={given} {faults[given]}. Using {usable} instead.", file=sys.stderr)
        os.environ["TMPDIR"] = usable
        tempfile.tempdir = None  # Python remembers its choice


def _fault(folder: str) -> str | None:
    """Return why a folder cannot hold temporary files; None if it can."""
    length = len(os.fsencode(Path(folder).absolute()))
    if length > LONGEST:
        return f"has {length} bytes, but sockets in it allow at most {LONGEST}"
    if not Path(folder).is_dir():
        return "is not a folder" if Path(folder).exists() else "does not exist"
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None
