"""Whether the drawn suite is complete; apart from `draw`, whose bytes are part of the stamp on every drawn dataset."""

from __future__ import annotations

from pathlib import Path

from benchmark.pocket.world.draw import COUNTS, code_version, draw, is_drawn
from benchmark.pocket.world.splits import TARGETS, UPSTREAM

__all__ = ["complete", "draw"]


def complete(root: Path) -> bool:
    """Return whether every dataset below a folder was drawn by this code: then nothing has to be written."""
    version = code_version()
    return all(
        is_drawn(Path(root) / name, {"version": version, "counts": COUNTS[name]}) for name in UPSTREAM + TARGETS
    )
