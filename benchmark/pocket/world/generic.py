"""Generic descriptions of pretraining's pictures: data that show no question of a source set.

The first pictures of the stream `describe`, drawn anew, with one request and description each. Pretraining learned from
the same stream: who replays them sees no kind of data that the base model has not seen, and no source set.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from benchmark.data import Record, json_rows
from benchmark.pocket.world.draw import Folder, code_version, distinct, draw_dataset, is_drawn
from benchmark.pocket.world.scene import Diagram, Scene
from benchmark.pocket.world.targets import describe_diagram, describe_scene

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


def complete(root: Path) -> bool:
    """Return whether the data below a folder were drawn by this code."""
    return is_drawn(Path(root) / "generic", _stamp())


def draw(root: Path, on_progress: Callable[[int, int, str], None] | None = None) -> None:
    """Write the data if they are missing or were drawn by another version of this code.

    Args:
        root: data folder.
        on_progress: called with (datasets done, datasets in all, name).

    Raises:
        UserError: the folder cannot be written, or the icon font is missing.
    """
    if on_progress:
        on_progress(0, 1, "generic")
    draw_dataset("generic", Path(root) / "generic", _stamp(), _write)
    if on_progress:
        on_progress(1, 1, "done")


def _stamp() -> dict[str, Any]:
    own = hashlib.sha256(Path(__file__).read_bytes() + repr(_requests()).encode()).hexdigest()[:16]
    return {"version": code_version() + own, "counts": {"train": ROWS}}


def _requests() -> tuple[str, ...]:
    from benchmark.pocket.pretrain.corpus import INSTRUCTIONS  # it imports transformers

    return INSTRUCTIONS


def _write(root: Path, name: str) -> None:
    out, lines, requests = Folder(root), [], _requests()
    for number, (picture, _, _, key) in enumerate(islice(distinct("describe", "train"), ROWS)):
        assert isinstance(picture, Scene | Diagram)
        image = f"images/{number}.png"
        out.picture(image, picture, random.Random(f"generic/{number}/picture"))  # that of the stream chooses contents
        out.keys["train"][str(number)] = key
        own = random.Random(f"generic/{number}")
        describe: Callable[..., str] = describe_diagram if isinstance(picture, Diagram) else describe_scene
        lines.append({"image": image, "prompt": own.choice(requests), "answer": describe(own, picture)})
    (root / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    out.close()
