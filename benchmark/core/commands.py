"""Run small programs such as git and nvidia-smi, which hang if a driver or a network disk hangs."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

PATIENCE = 60.0  # seconds; each of these programs needs about one


def output_of(
    command: Sequence[str], seconds: float = PATIENCE, environment: Mapping[str, str] | None = None
) -> str:
    """Return what a program writes to its standard output.

    Args:
        command: the program and its arguments.
        seconds: longest wait.
        environment: the program's environment; None for ours.

    Raises:
        OSError: the program cannot be started.
        subprocess.SubprocessError: its exit code is not 0, or it does not end in time.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        errors="replace", env=environment, start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()  # without the wait of subprocess.run: a process that hangs in the kernel does not end even then
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    return output
