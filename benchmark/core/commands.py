"""Asking small programs such as git and nvidia-smi, which may hang with the driver or the network disk below them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

PATIENCE = 60.0  # seconds; each of them needs one


def output_of(
    command: Sequence[str], seconds: float = PATIENCE, environment: Mapping[str, str] | None = None
) -> str:
    """Return what a program writes to its standard output.

    Args:
        command: the program and its arguments.
        seconds: the most to wait.
        environment: of the program; None: ours.

    Raises:
        OSError: it cannot be started.
        subprocess.SubprocessError: it ends with another code than 0, or not in time.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        errors="replace", env=environment, start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()  # and not waited for, as subprocess.run does: what hangs in the kernel does not end by it
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return output
