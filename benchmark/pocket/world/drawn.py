"""Whether the drawn suite is complete; apart from `draw`, whose bytes are part of the stamp on every drawn dataset."""

from __future__ import annotations

import json
from pathlib import Path

from benchmark.pocket.world.draw import COUNTS, code_version, draw
from benchmark.pocket.world.splits import TARGETS, UPSTREAM

__all__ = ["complete", "draw"]


def complete(root: Path) -> bool:
    """Return whether every dataset below a folder was drawn by this code: then nothing has to be written."""
    version = code_version()
    for name in UPSTREAM + TARGETS:
        try:
            stamp = json.loads((Path(root) / name / "drawn.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if stamp != {"version": version, "counts": COUNTS[name]}:
            return False
    return True
