"""TMPDIR: a folder that every library can use, settled before a cell runs and not in the middle of a training."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmark.core.errors import UserError

SOCKET = 107  # bytes of a Unix socket's path, through which processes that read images pass their memory
NAME = len("/pymp-01234567/listener-01234567")  # what multiprocessing puts below the folder
LONGEST = SOCKET - NAME
OTHERS = ("/tmp", "/var/tmp")


def settle() -> None:
    """Put a usable folder into TMPDIR where the user's is missing, not writable or too long, and say so.

    Python falls back on another folder by itself, but C++ libraries and the processes that are started do not.

    Raises:
        UserError: there is no usable folder.
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
            print(f"note: TMPDIR={given} {faults[given]}: {usable} is used.", file=sys.stderr)
        os.environ["TMPDIR"] = usable
        tempfile.tempdir = None  # Python remembers its choice


def _fault(folder: str) -> str | None:
    """Return why a folder cannot hold temporary files; None if it can."""
    length = len(os.fsencode(Path(folder).absolute()))
    if length > LONGEST:
        return f"has {length} bytes and sockets below it allow {LONGEST}"
    if not Path(folder).is_dir():
        return "is not a folder" if Path(folder).exists() else "does not exist"
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None
