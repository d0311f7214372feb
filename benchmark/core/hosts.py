"""The number of processes and GPUs: on this machine, and on the machines of a hostfile."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from benchmark.core.commands import output_of
from benchmark.core.errors import UserError


def world_size(processes: int, hostfile: str | None) -> int:
    """Return how many processes train a cell, on all machines together.

    Args:
        processes: processes per machine; 0 for one per GPU, or for the slots of the hostfile.
        hostfile: DeepSpeed's; None for one machine.

    Returns:
        Their number; 0 if only the run itself finds it out.
    """
    if hostfile is None:
        return processes
    text = Path(hostfile).read_text(errors="replace")
    slots = [int(count) for count in re.findall(r"^[^\s#]+[ \t]+slots=(\d+)", text, re.MULTILINE)]
    return processes * len(slots) if processes else sum(slots)


def gpus_in_sight(visible: str | None) -> tuple[str, ...]:
    """Return the names of the GPUs that a process may use, in order.

    Args:
        visible: the user's CUDA_VISIBLE_DEVICES; None for every GPU of the machine.

    Raises:
        UserError: the machine has no GPU, or its driver hangs.
    """
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    try:
        listed = output_of(["nvidia-smi", "-L"])
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"nvidia-smi gave no answer in {error.timeout:.0f} s: the driver hangs. Restart the machine, or name the "
            "GPUs with CUDA_VISIBLE_DEVICES."
        ) from None
    except (OSError, subprocess.CalledProcessError):
        raise UserError("device=cuda, but nvidia-smi finds no GPU. Use a machine with GPUs, or set gpus=N.") from None
    return tuple(str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines())))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
