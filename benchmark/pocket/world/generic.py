"""Generic descriptions of pretraining's pictures: data that show no question of a source set.

The first pictures of the stream `describe`, drawn anew, with one request and description each. Pretraining learned from
the same stream: who replays them sees no kind of data that the base model has not seen, and no source set.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmark.data import Record, json_rows
from benchmark.pocket.world.content import distinct
from benchmark.pocket.world.folder import Counts, Folder, draw_dataset, is_drawn
from benchmark.pocket.world.scene import Diagram, Scene
from benchmark.pocket.world.targets import describe_diagram, describe_scene
from benchmark.pocket.world.words import INSTRUCTIONS

ROWS = 2048
DATASET = {
    "id": "generic",
    "name": "Generic descriptions",
    "metric": "exact_lower",
    "prompt": "{question}",
    "max_new_tokens": 48,
    "counts": {"train": ROWS},
}


def load(root: Path, split: str, spec: Any) -> list[Record]:
    """Read <root>/generic/train.jsonl: image, prompt and answer per line; there is no other split."""
    records = []
    for number, row in enumerate(json_rows(Path(root) / spec.id / f"{split}.jsonl")):
        image, answer = row.image("image"), row.text("answer")
        prompt = spec.prompt.format(question=row.text("prompt"))
        records.append(Record(str(number), spec.id, split, image, prompt, answer, (answer,), None, str(number)))
    return records


@dataclass(frozen=True)
class Generic:
    """The data, drawn like a `benchmark.pocket.world.suite.Suite`.

    Args:
        rows: number of training rows.
    """

    rows: int = ROWS

    def complete(self, root: Path) -> bool:
        """Return whether the data below a folder were drawn by this code."""
        return is_drawn(Path(root) / "generic", {"train": self.rows})

    def draw(self, root: Path, on_progress: Callable[[int, int, str], None] | None = None) -> None:
        """Write the data if they are missing or were drawn by another version of this code.

        Args:
            root: data folder.
            on_progress: called with (datasets done, datasets in all, name).

        Raises:
            UserError: the folder cannot be written, or the icon font is missing.
        """
        report = on_progress or (lambda *_: None)
        report(0, 1, "generic")
        draw_dataset("generic", Path(root) / "generic", {"train": self.rows}, _write)
        report(1, 1, "done")


GENERIC = Generic()


def _write(root: Path, name: str, counts: Counts) -> None:
    out, lines = Folder(root), []
    for number, (picture, _, _, key) in enumerate(islice(distinct("describe", "train"), counts["train"])):
        assert isinstance(picture, Scene | Diagram)
        image = f"images/{number}.png"
        out.picture(image, picture, random.Random(f"generic/{number}/picture"))  # that of the stream chooses contents
        out.keys["train"][str(number)] = key
        own = random.Random(f"generic/{number}")
        describe: Callable[..., str] = describe_diagram if isinstance(picture, Diagram) else describe_scene
        lines.append({"image": image, "prompt": own.choice(INSTRUCTIONS), "answer": describe(own, picture)})
    (root / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    out.close()
