"""The drawn suite at its two sizes. A profile names one of them, and runs draw what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmark.pocket.world import source_sets, target_sets
from benchmark.pocket.world.folder import Counts, draw_dataset, is_drawn
from benchmark.pocket.world.splits import TARGETS, UPSTREAM

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Suite:
    """The eight datasets with a number of items per split (caption sets: images)."""

    counts: Mapping[str, Counts]

    def complete(self, root: Path) -> bool:
        """Return whether every dataset below a folder was drawn by this code: then nothing has to be written."""
        return all(is_drawn(Path(root) / name, counts) for name, counts in self.counts.items())

    def draw(self, root: Path, only: Iterable[str] = UPSTREAM + TARGETS, on_progress: Progress | None = None) -> None:
        """Write every dataset that is missing or was drawn by another version of this code.

        Args:
            root: folder that gets one sub-folder per dataset; a finished one carries drawn.json.
            only: dataset ids.
            on_progress: called with (datasets done, datasets in all, name).

        Raises:
            UserError: the folder cannot be written, or the icon font is missing.
        """
        names = tuple(only)
        report = on_progress or (lambda *_: None)
        for index, name in enumerate(names):
            report(index, len(names), name)
            write = target_sets.write if name in TARGETS else source_sets.WRITERS[name]
            draw_dataset(name, Path(root) / name, self.counts[name], write)
        report(len(names), len(names), "done")


def suite(rows: int) -> Suite:
    """Return the suite with a number of training rows per target.

    Pretraining draws more of the source sets' training contents than these (`benchmark.pocket.pretrain`).
    """
    evaluated = {"validation": 200, "test": 500}
    return Suite(
        dict.fromkeys(UPSTREAM, {"train": 1000, **evaluated}) | dict.fromkeys(TARGETS, {"train": rows, **evaluated})
    )


POCKET = suite(512)
POCKET_10K = suite(target_sets.ROWS)
