"""The free memory of this machine. Standard library only: doctor runs where nothing is installed."""

from __future__ import annotations

import re
from pathlib import Path


def available_gb() -> float | None:
    """Return the available memory in GB (10^9 bytes), also inside a container with a limit; None if unknown."""
    try:
        text = Path("/proc/meminfo").read_text()
        found = re.search(r"MemAvailable:\s+(\d+) kB", text)
        free = int(found[1]) * 1024 / 1e9 if found else None
    except OSError:
        return None
    try:
        group = Path("/sys/fs/cgroup")
        room = (int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())) / 1e9
        free = room if free is None else min(free, room)
    except (OSError, ValueError):
        pass  # no limit, or control groups of version 1
    return free
