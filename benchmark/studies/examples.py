"""Fig. 3: example images with the answers of several methods, chosen by a rule, not by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.config.request import Request
from benchmark.core.errors import UserError
from benchmark.data import Record, open_image
from benchmark.planning.plan import Planned
from benchmark.reporting import outputs
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cells import Store

RULE = (
    "Chosen by rule: the test items with an image, sorted by SPIDER's score minus Full FT's (ties by item id); shown "
    "are the items at {quantiles} % of that order: where SPIDER loses most as well as where it wins. Behind each "
    "method: its answer's score in points; of several references the first two."
)
QUANTILES = (0, 25, 50, 75, 100)
METHODS = ("zero_shot", "full_ft", "spider")


def choose(scores: Mapping[str, Mapping[str, float]], with_image: Sequence[str]) -> list[str]:
    """Return the item ids that RULE chooses.

    Args:
        scores: method id -> item id -> score, of full_ft and spider.
        with_image: ids that may be shown.
    """
    order = sorted(with_image, key=lambda name: (scores["spider"][name] - scores["full_ft"][name], name))
    places = [round(quantile / 100 * (len(order) - 1)) for quantile in QUANTILES]
    return [order[place] for place in dict.fromkeys(places)] if order else []


def draw(
    asked: Request, plan: Sequence[Planned], store: Store, records: Mapping[str, Sequence[Record]], stem: Path,
    title: str,
) -> list[Path]:
    """Draw a sheet per model and target of a request of zero_shot, full_ft and spider.

    Args:
        asked: the request, one seed.
        plan: its cells.
        store: the results.
        records: test records by dataset.
        stem: output path; model and target are appended.
        title: heading.

    Returns:
        The files.

    Raises:
        UserError: no model and target has all three cells finished, or answers cannot be read.
    """
    from benchmark.reporting import plots

    done = {(item.cell.model.id, item.cell.method.id, item.cell.target): item.cell for item in plan if item.done}
    paths: list[Path] = []
    for model, target in dict.fromkeys((cell.model.id, cell.target) for cell in asked.cells if cell.target):
        keys = {name: (model, name, None if name == "zero_shot" else target) for name in METHODS}
        cells = {name: done[key] for name, key in keys.items() if key in done}
        if len(cells) < len(METHODS):
            continue
        folders = {name: store.folder(cell) for name, cell in cells.items()}
        items = {name: read_items(folder, target) for name, folder in folders.items()}
        scores = {name: {item.item_id: item.score for item in found} for name, found in items.items()}
        texts = {name: read_answers(folder, target) for name, folder in folders.items()}
        by_id = {record.item_id: record for record in records[target]}
        known = [name for name, record in by_id.items() if record.image is not None and name in scores["spider"]]
        examples: list[dict[str, Any]] = [
            {
                "item_id": name, "image": open_image(by_id[name]), "prompt": by_id[name].prompt,
                "references": by_id[name].references,
                "answers": {outputs.name_of(m): (texts[m].get(name, ""), scores[m][name]) for m in METHODS},
            }
            for name in choose(scores, known)
        ]
        full_ft = cells["full_ft"]
        heading = f"{title}: {full_ft.model.name}, {full_ft.dataset(target).name}"
        rule = RULE.format(quantiles=", ".join(map(str, QUANTILES)))
        paths += plots.gallery(heading, rule, examples, Path(f"{stem}_{model}_{target}"))
    if not paths:
        raise UserError("Fig. 3 needs finished cells of zero_shot, full_ft and spider. Run them first.")
    return paths
