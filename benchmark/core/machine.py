"""What this machine has left. Standard library only: doctor runs where nothing is installed."""

from __future__ import annotations

import re
from pathlib import Path


def available_gb() -> float | None:
    """Return the memory that is available, also inside a container with a limit."""
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
        pass  # no limit, or another kind of control group
    return free
