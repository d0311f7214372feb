"""The report: one HTML file with verdicts, tables, figures, answers and provenance, that opens from disk."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark import claims, drawing, measures, outputs, provenance, sweep
from benchmark import plan as planning
from benchmark.answers import read_answers
from benchmark.claims import Evidence
from benchmark.compose import Request, check_used, request, without
from benchmark.cost import clock
from benchmark.data import Record, load, open_image
from benchmark.errors import UserError, counted
from benchmark.files import write_atomic
from benchmark.page import Content, page
from benchmark.plan import Planned
from benchmark.scores import read_items, read_scores
from benchmark.spec import at_root
from benchmark.store import Store
from benchmark.tables import OLDER

MAIN = ("table5", "table6")  # whose models and targets the claims are about
TABLES = (*MAIN, "table2", "table3", "table4", "variants")
SWEEPS = ("fig5", "fig6", "fig7")
ITEMS = 40         # per dataset in the browser
IMAGE_SIDE = 224   # longest side there, pixels
RIGHT = 0.5        # an answer with at least this score counts as right; 1 is 100 points


def run(overrides: Sequence[str]) -> int:
    """Write report.html from what is finished; nothing is run.

    Args:
        overrides: profile=, models=, seeds=, results= (also a published folder).

    Returns:
        0.

    Raises:
        UserError: wrong overrides, no finished cell, another schema, or the folder cannot be written.
    """
    base = requests_of(overrides, [])["table5"]
    store = Store(base.results)
    store.check_schema()
    if not any(store.cells.glob("*/scores.json")):
        raise UserError(f"{store.root} has no finished cells. Run make table5 first, or name one with RESULTS=dir.")
    path = store.root / "report.html"
    text = page(collect(overrides, store))
    write_atomic(path, text)
    print(f"Report: {path} ({len(text.encode()) / 1e6:.1f} MB)")
    return 0


# ---------------------------------------------------------------------------------------------------------------
# From the store to content


def _merged(known: Planned | None, item: Planned) -> Planned:
    """Return a cell that several tables have: an untuned model with the datasets of all of them."""
    if known is None or item.cell.train is not None or not (known.done and item.done):
        return item if known is None or item.done else known
    return replace(item, cell=planning.with_datasets(known.cell, item.cell.datasets))


def collect(overrides: Sequence[str], store: Store) -> Content:
    """Return everything that the page shows.

    Args:
        overrides: as in `run`.
        store: the results.

    Raises:
        UserError: see `run`.
    """
    found_tables, evidence, planned, usual = [], {}, {}, set()
    groups: dict[tuple[str, str], None] = {}
    names: dict[str, str] = {}
    more = _more_seeds(overrides, store)
    requests = requests_of(overrides, more)
    base = requests["table5"]
    for name in TABLES:
        asked, plan = _planned(requests[name], store, bool(more))
        rows = outputs.build_rows(asked, plan, store)
        for row in rows:
            evidence.setdefault((row.model, row.target, row.method, None), row)
            names |= {row.model: row.model_name, row.target: row.target_name}
            names.setdefault(row.method, outputs.name_of(row.method))
            if name in MAIN:
                groups[row.model, row.target] = None
        usual |= {item.id for item in plan} if name in MAIN else set()
        planned |= {item.id: _merged(planned.get(item.id), item) for item in plan}
        if any(item.done for item in plan):
            found_tables.append(outputs.build_table(asked, plan, store))
    points, sweep_groups, swept = _sweeps(requests, bool(more), store, evidence, planned)
    verdicts = claims.verdicts(Evidence(
        rows=evidence, upstream=[dataset.id for dataset in base.cells[0].upstream], groups=list(groups), points=points,
        swept=swept, sweep_groups=sweep_groups, pid=_pid(store), names=names,
    ))
    done = [item for item in planned.values() if item.done]
    seeds = sorted({item.cell.seed for item in done if item.cell.train is not None})
    lead = [
        f"{base.profile.name}; {counted(len(done), 'finished cell')}; "
        f"training seeds: {', '.join(map(str, seeds)) or 'none'}"
        f"{' (the notes of each table name its own)' if len(seeds) > 1 else ''}.",
        "Verdicts follow rules that were written down before the results (docs/claims.md); they are about this scale.",
    ]
    if len(seeds) == 1:
        lead.append("With one training seed, intervals cover the choice of test items and not another training run.")
    others = len(list(store.cells.glob("*/scores.json"))) - len({item.id for item in done})
    if others > 0:
        lead.append(
            f"Not on this page: {others} finished cell{'s' * (others != 1)} of this folder, of other settings, seeds "
            "that are not complete, or of older code, data or base models (run those again)."
        )
    older = [item for item in done if item.keys is None and provenance.older_code(item.cell, store.folder(item.cell))]
    if older:
        lead.append(f"{len(older)} of the cells are of older code than this; their rows carry {OLDER}.")
    return Content(
        title=f"SpiderBench report, {base.profile.name}", lead=lead, verdicts=verdicts, tables=found_tables,
        figures=[(path.stem, path.read_bytes()) for path in _pictures(store.root)],
        predictions=predictions([item for item in done if item.id in usual], store),
        cells=[_diagnostics(item, store) for item in done],
        provenance=_provenance(done, store),
    )


def _more_seeds(overrides: Sequence[str], store: Store) -> list[str]:
    """Return an override for every seed that some finished cell has, unless seeds are named."""
    if any(item.startswith(("seeds=", "seed=")) for item in overrides):
        return []
    names = (path.parent.name for path in store.cells.glob("*/scores.json"))
    found = {int(match[1]) for name in names if (match := re.search(r"-s(\d+)-[0-9a-f]+$", name))}
    return [f"seeds={','.join(map(str, sorted(found)))}"] if found else []


def _planned(asked: Request, store: Store, whole: bool) -> tuple[Request, list[Planned]]:
    """Return a request of this store and its plan, if `whole` without the seeds that are under way."""
    asked = replace(asked, results=store.root)
    plan = planning.recorded(asked, store)
    if whole:
        asked = planning.whole_seeds(asked, {item.id for item in plan if item.done})
        seeds = {cell.seed for cell in asked.cells if cell.train is not None}
        plan = [item for item in plan if item.cell.train is None or item.cell.seed in seeds]
    return asked, plan


def requests_of(overrides: Sequence[str], more: Sequence[str]) -> dict[str, Request]:
    """Return the cells that the page is about, by table and figure; a method's parameters go where it is.

    Args:
        overrides: as in `run`.
        more: further ones, such as seeds.

    Raises:
        UserError: wrong overrides, or a parameter that no method has.
    """
    asked = {name: request([f"table={name}", *overrides, *more], optional=True) for name in TABLES}
    kept = without(overrides, ("table",))
    for name in SWEEPS:
        figure = drawing.read(name)
        # The figure's own axis stays, whatever the value that the tables have.
        asked[name] = sweep.ask([*drawing.defaults(figure), *without(kept, figure["axes"]), *more], optional=True)
    curve = drawing.read("plane")["curve"]
    targets = f"targets={','.join(drawing.read('plane')['targets'])}"
    asked["plane"] = drawing.curve_of(curve, drawing.with_models([targets, *kept, *more]), asked["table5"])
    check_used(list(asked.values()))
    return asked


def _sweeps(
    requests: Mapping[str, Request], whole: bool, store: Store, evidence: dict, planned: dict[str, Planned]
) -> tuple[dict[str, list[float]], dict[str, list[tuple[str, str]]], list[str]]:
    """Add the rows of the sweeps and of WiSE-FT's curve; return points, groups and methods of the sweeps."""
    points: dict[str, list[float]] = {}
    groups: dict[str, list[tuple[str, str]]] = {}
    swept: dict[str, None] = {}
    for name in SWEEPS:
        asked, plan = _planned(requests[name], store, whole)
        _add_points(asked, plan, sweep.axes(asked)[0], store, evidence, planned, points, groups)
        swept |= dict.fromkeys(cell.method.id for cell in asked.cells)
    asked, plan = _planned(requests["plane"], store, whole)
    _add_points(asked, plan, drawing.read("plane")["curve"]["key"], store, evidence, planned, points, {})
    return points, groups, list(swept)


def _add_points(
    asked: Request, plan: Sequence[Planned], key: str, store: Store, evidence: dict, planned: dict[str, Planned],
    points: dict, groups: dict,
) -> None:
    planned |= {item.id: _merged(planned.get(item.id), item) for item in plan}
    for value in dict.fromkeys(entry.settings[key] for entry in asked.grid):
        at_value = replace(asked, grid=tuple(entry for entry in asked.grid if entry.settings[key] == value))
        rows = outputs.build_rows(at_value, plan, store)
        points.setdefault(key, []).append(value)
        for row in rows:
            evidence[row.model, row.target, row.method, (key, value)] = row
            own = groups.setdefault(key, [])
            if (row.model, row.target) not in own:
                own.append((row.model, row.target))


def _pid(store: Store) -> dict[str, pd.DataFrame]:
    frames = {}
    for path in sorted((store.root / "pid").glob("*.json")):
        try:
            frames[path.stem] = pd.DataFrame(json.loads(path.read_text())["lines"])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}). Delete it and draw fig1 again.") from error
    return frames


def _pictures(root: Path) -> list[Path]:
    """Return the figures in the order of the paper, then the others."""
    order = ["fig1", "fig3", "fig4", "plane", "forgetting", "fig5", "fig6", "fig7"]
    found = [*root.glob("figures/*.png"), *root.glob("rates/*.png")]

    def rank(path: Path) -> tuple[int, str]:
        place = next((i for i, name in enumerate(order) if path.stem == name or path.stem.startswith(f"{name}_")), 99)
        return place, path.stem

    return sorted(found, key=rank)


def _diagnostics(item: Planned, store: Store) -> dict[str, Any]:
    """Return a line about a finished cell: weights, time, form of the answers."""
    cell, folder = item.cell, store.folder(item.cell)
    scores = read_scores(folder)
    known = measures.of_cell(cell, folder)
    if cell.train is not None and "rms_delta" not in known:
        known |= _kept_weights(folder)
    try:
        seconds = json.loads((folder / "provenance.json").read_text()).get("seconds", {})
    except (OSError, ValueError):
        seconds = {}
    upstream = [scores["datasets"][dataset.id] for dataset in cell.upstream if dataset.id in scores["datasets"]]
    target = scores["datasets"].get(cell.target or "", {})
    return {
        "cell": item.id, "rms delta": known.get("rms_delta"),
        "restored %": 100 * known["restored_fraction"] if "restored_fraction" in known else None,
        "flips %": 100 * known["mask_flips"] if "mask_flips" in known else None,
        "mask = 1 %": 100 * known["mask_ones"] if "mask_ones" in known else None,
        "last loss": known.get("loss"), "train s": seconds.get("train"),
        "answer s": sum(value for name, value in seconds.items() if name.startswith("generate/")) or None,
        "upstream over 3 words %": sum(e["words_over_3"] for e in upstream) / len(upstream) if upstream else None,
        "upstream contain gold %": sum(e["contains_gold"] for e in upstream) / len(upstream) if upstream else None,
        "target over 3 words %": target.get("words_over_3"),
    }  # fmt: skip


def _kept_weights(folder: Path) -> dict[str, float]:
    try:
        return json.loads((folder / measures.WEIGHTS).read_text())
    except (OSError, ValueError):
        return {}


def _provenance(done: Iterable[Planned], store: Store) -> list[tuple[str, int]]:
    """Return what made the cells, without their times, and how many cells each describes."""
    found: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for item in done:
        try:
            known = json.loads((store.folder(item.cell) / "provenance.json").read_text())
        except (OSError, ValueError):
            found["no provenance.json"] += 1
            continue
        for stage, value in known.get("seconds", {}).items():
            seconds[stage.partition("/")[0]] += value
        packages = ", ".join(f"{name} {version}" for name, version in known.get("packages", {}).items() if version)
        dirty = " with local changes" if known.get("dirty") else ""
        found[
            f"commit {known.get('commit')}{dirty}; Python {known.get('python')}; {known.get('device')} "
            f"({' '.join(known.get('cpu_flags', []))}), {known.get('threads')} thread(s), {known.get('dtype')}; "
            f"{packages}"
        ] += 1
    if seconds:
        times = ", ".join(f"{stage} {clock(value)}" for stage, value in seconds.items())
        found[f"wall time, summed over them: {times}"] = len(done) - found["no provenance.json"]
    return found.most_common()


# ---------------------------------------------------------------------------------------------------------------
# Predictions


def predictions(done: Sequence[Planned], store: Store) -> dict[str, Any]:
    """Return what the browser over answers needs, JSON values only.

    Of every dataset the first 40 items of an order by hash are taken, the same whatever the cells are; of several
    seeds the first.

    Args:
        done: finished cells of one setting.
        store: has their answers.

    Returns:
        datasets: id -> name and items (id, image number or null, prompt, references); images: data URIs; runs: model,
        target, method (ids and names) and answers: dataset -> [text, score] by item. Without data or answers the lists
        are empty, and `why` says so.
    """
    runs: dict[tuple[str, str, str], dict[str, Any]] = {}
    chosen: dict[str, list[Record]] = {}
    datasets: dict[str, Any] = {}
    images: dict[str, int] = {}
    uris: list[str] = []
    why = ""
    for item in sorted(done, key=lambda item: item.cell.seed):
        cell, folder = item.cell, store.folder(item.cell)
        place = (cell.model.id, cell.target or "", cell.method.id)
        if place in runs:
            continue
        answers: dict[str, Any] = {}
        for dataset in cell.datasets:
            if dataset.role == "extra":
                continue
            try:
                if dataset.id not in chosen:
                    records = load(dataset, at_root(cell.data_root), cell.eval.split, cell.eval.limit)
                    chosen[dataset.id] = sample(records)
                    datasets[dataset.id] = {
                        "name": dataset.name, "role": dataset.role,
                        "items": [_item(record, images, uris) for record in chosen[dataset.id]],
                    }
                texts = read_answers(folder, dataset.id)
                scores = {one.item_id: one.score for one in read_items(folder / "items" / f"{dataset.id}.jsonl.gz")}
            except UserError:
                # The reason may name a path of this machine; the page is for other people.
                why = f"The answers of {item.id} to {dataset.name}, or that dataset, are not in this folder."
                continue
            answers[dataset.id] = [
                [texts[record.item_id], round(scores[record.item_id], 4)] if record.item_id in scores else None
                for record in chosen[dataset.id]
            ]
        if answers:
            runs[place] = {
                "model": cell.model.id, "model_name": cell.model.name, "target": cell.target,
                "target_name": cell.dataset(cell.target).name if cell.target else "",
                "method": cell.method.id, "method_name": outputs.name_of(cell.method.id), "answers": answers,
            }  # fmt: skip
    return {"datasets": datasets, "images": uris, "runs": list(runs.values()), "right": RIGHT, "why": why}


def sample(records: Sequence[Record], count: int = ITEMS) -> list[Record]:
    """Return the items that the browser shows: the first of an order by hash of the item's id."""
    return sorted(records, key=lambda record: hashlib.sha256(f"report\0{record.item_id}".encode()).digest())[:count]


def _item(record: Record, images: dict[str, int], uris: list[str]) -> dict[str, Any]:
    place = None
    if record.image is not None:
        key = str(record.image)
        if key not in images:
            images[key] = len(uris)
            uris.append(_uri(record))
        place = images[key]
    return {
        "id": record.item_id, "image": place, "prompt": record.prompt,
        "references": list(dict.fromkeys(record.references)),
    }  # fmt: skip


def _uri(record: Record) -> str:
    """Return an image as a data URI, no larger than the browser shows it."""
    image, buffer = open_image(record), io.BytesIO()
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    small = image.width * image.height <= 128 * 128  # drawn pictures stay exact, photographs become small
    image.save(buffer, format="PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
