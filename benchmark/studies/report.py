"""The report: one HTML file with verdicts, tables, figures, answers and provenance, that opens from disk."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.config.compose import AXES
from benchmark.config.overrides import without
from benchmark.config.request import Request, check_used, request
from benchmark.core.errors import UserError, counted
from benchmark.core.files import write_atomic
from benchmark.core.progress import clock
from benchmark.data import Record, load, open_image
from benchmark.planning import plan as planning
from benchmark.planning.plan import Planned
from benchmark.reporting import claims, outputs
from benchmark.reporting.claims import Evidence, Point
from benchmark.reporting.tables import OLDER, SEEN, RowResult
from benchmark.spec import CellSpec, at_root, cell_id, sees_sources
from benchmark.store import cell_measures
from benchmark.store.answers import read_answers, read_items
from benchmark.store.cells import Store
from benchmark.store.scores import read_scores
from benchmark.studies import named_figures, report_groups, sweep
from benchmark.studies.report_groups import Group, ScoredCell
from benchmark.studies.report_page import Content, name_parts, page
from methods.registry import METHODS

MAIN = ("table5", "table6")  # the claims concern their models and targets
TABLES = (*MAIN, "table2", "table3", "table4", "variants")
SWEEPS = ("fig5", "fig6", "fig7")
ITEMS = 40         # per dataset in the browser
IMAGE_SIDE = 224   # longest side there, pixels
RIGHT = 0.5        # an answer with at least this score counts as correct; 1 is 100 points
UNJUDGED = ("cider",)  # metrics whose item scores are neither right nor wrong


@dataclass(frozen=True)
class Part:
    """A table, sweep or curve of the page.

    Attributes:
        name: of the table or figure.
        asked: its cells.
        plan: what is finished of them.
        rows: with the point of the swept key that each is of.
        key: the swept key; None for a table.
        places: folder and target of what is finished; an untuned model counts for the requested targets.
    """

    name: str
    asked: Request
    plan: Sequence[Planned]
    rows: Sequence[tuple[Point, RowResult]]
    key: str | None
    places: Collection[tuple[str, str | None]]


def run(overrides: Sequence[str]) -> int:
    """Write report.html from finished cells; no cell is run.

    Args:
        overrides: profile=, models=, seeds=, results= (also a published folder).

    Returns:
        0.

    Raises:
        UserError: wrong overrides, no finished cell, another schema, or the folder cannot be written.
    """
    store = Store(request(["table=table5", *overrides], optional=True).results)
    if not store.finished():
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
    every, damaged = report_groups.entries(store)
    more = _more_seeds(overrides, every)
    requests = requests_of(overrides, more)
    base = requests["table5"]
    parts = [_part(name, asked, store, bool(more)) for name, asked in requests.items()]
    # The keys of a run show that today's code made a cell, even if its provenance names other versions.
    verified = {store.folder(item.cell).name for part in parts for item in part.plan if item.done and item.keys}
    every = [replace(entry, older=entry.older and entry.name not in verified) for entry in every]
    tables = _shown([part for part in parts if part.key is None])
    curves = [part for part in parts if part.key is not None and part.places]
    shown = set().union(*(part.places for part in [*tables, *curves]))
    ours, outside = _asked_for(overrides, requests, [entry for entry in every if entry.place not in shown])
    planned = {store.folder(item.cell).name for part in parts for item in part.plan}
    seeds = {cell.seed for part in tables for cell in part.asked.cells if cell.train is not None}
    changed = any(cell.changed for cell in base.cells)
    found = [(report_groups.kind(entry, every, base.profile.id, planned, seeds, changed), entry) for entry in ours]
    groups = [*(_curve(part, every) for part in curves), *report_groups.group(found, every)]

    usual: dict[str, Planned] = {}
    for part in (part for part in tables if part.name in MAIN):
        for item in (item for item in part.plan if item.done):
            usual[item.id] = _merged(usual.get(item.id), item)
    done = {entry.name: entry for entry in every if entry.place in shown or entry in ours}
    browsed = {"Tables 5 and 6": [(item.cell, store.folder(item.cell), "") for item in usual.values()]} if usual else {}
    browsed |= {
        group.title: [(entry.cell, entry.folder, _label(entry, group)) for entry in group.entries]
        for group in groups[len(curves) :]
    }
    return Content(
        title=f"SpiderBench report, {base.profile.name}",
        facts=_facts(base, list(done.values())), lead=_lead(done, outside, damaged),
        verdicts=claims.verdicts(_evidence(parts, base, store)),
        tables=[outputs.build_table(part.asked, part.plan, store) for part in tables],
        main=len([part for part in tables if part.name in MAIN]), groups=groups,
        upstream={dataset.id: dataset.name for dataset in base.cells[0].upstream},
        figures=[(path.stem, path.read_bytes()) for path in _pictures(store.root)],
        predictions=predictions(browsed),
        cells=[_diagnostics(entry.cell, entry.folder) for entry in done.values()],
        provenance=_provenance([entry.folder for entry in done.values()]),
    )


def _label(entry: ScoredCell, group: Group) -> str:
    """Return the settings that distinguish a cell from others of its group, besides model, target and method."""
    return ", ".join(f"{key.rpartition('.')[2]} {entry.value_of(key)}" for key in group.keys)


def _shown(parts: Sequence[Part]) -> list[Part]:
    """Return the tables that are complete or have a cell that no earlier table has."""
    known: set[tuple[str, str | None]] = set()
    shown = []
    for part in parts:
        places = set(part.places)
        if places - known or (places and all(item.done for item in part.plan)):
            shown.append(part)
        known |= places
    return shown


def _asked_for(
    overrides: Sequence[str], requests: Mapping[str, Request], entries: Sequence[ScoredCell]
) -> tuple[list[ScoredCell], list[ScoredCell]]:
    """Split cells into those that models=, methods=, targets= and seeds= select, and the others."""
    given = {AXES.get(item.partition("=")[0]) for item in overrides}
    cells = [cell for asked in requests.values() for cell in asked.cells]
    allowed: dict[str, set[Any]] = {
        "models": {cell.model.id for cell in cells}, "methods": {cell.method.id for cell in requests["table5"].cells},
        "targets": {None, *(dataset.id for cell in requests["table5"].cells for dataset in cell.targets)},
        "seeds": {cell.seed for cell in cells if cell.train is not None},
    }

    def fits(entry: ScoredCell) -> bool:
        cell = entry.cell
        values: dict[str, str | int | None] = {
            "models": cell.model.id, "methods": cell.method.id, "targets": entry.target, "seeds": cell.seed,
        }
        if cell.train is None:
            del values["seeds"]
        return all(value in allowed[axis] for axis, value in values.items() if axis in given)

    return [entry for entry in entries if fits(entry)], [entry for entry in entries if not fits(entry)]


def _facts(base: Request, done: Sequence[ScoredCell]) -> list[tuple[str, str]]:
    """Return facts about the runs and their machine as (name, value)."""
    cells = [entry.cell for entry in done]
    sets = {dataset.id: dataset.name for cell in cells for dataset in cell.datasets}
    sets |= {name: dataset.name for name, dataset in base.datasets.items()}
    targets = dict.fromkeys(cell.target for cell in cells if cell.target)
    trained = sorted({cell.seed for cell in cells if cell.train is not None})
    machines = dict.fromkeys((cell.device, cell.dtype) for cell in cells)
    return [
        ("Scale", base.profile.name),
        ("Finished cells", str(len(done))),
        ("Models", ", ".join(dict.fromkeys(cell.model.name for cell in cells))),
        ("Methods", _methods(base, dict.fromkeys(cell.method.id for cell in cells))),
        ("Fine-tuned on", ", ".join(sets[target] for target in targets) or "nothing"),
        ("Training seeds", ", ".join(map(str, trained)) or "none"),
        ("Computed on", "; ".join(f"{device}, {dtype}" for device, dtype in machines)),
    ]


def _methods(base: Request, done: Collection[str]) -> str:
    """Return the methods of Table 5 and the user's own by name, and how many variants there are."""
    usual = [method for method in dict.fromkeys(cell.method.id for cell in base.cells) if method in done]
    own = sorted(method for method in done if method not in METHODS)
    variants = len(set(done) - {*usual, *own})
    names = [report_groups.name_of(method) for method in [*usual, *own]]
    return ", ".join(names + [counted(variants, "variant")] * bool(variants))


def _lead(done: Mapping[str, ScoredCell], outside: Sequence[ScoredCell], damaged: Sequence[str]) -> list[str]:
    """Return the sentences that a reader needs before the numbers."""
    lead = []
    seeds = {entry.cell.seed for entry in done.values() if entry.cell.train is not None}
    if len(seeds) == 1:
        lead.append("With one training seed, intervals cover the choice of test items and not another training run.")
    if outside:
        number = len({entry.name for entry in outside} - set(done))
        if number:
            lead.append(f"Not on this page: {counted(number, 'finished cell')} that the command leaves out.")
    if damaged:
        lead.append(f"Not on this page: {counted(len(damaged), 'cell')} that cannot be read ({', '.join(damaged)}). "
                    "Run them again.")
    older = sum(entry.older for entry in done.values())
    if older:
        lead.append(f"{older} of the cells are of older code than this; their rows carry {OLDER}.")
    if any(sees_sources(entry.cell) for entry in [*done.values(), *outside]):
        lead.append(SEEN)
    return lead


def _curve(part: Part, every: Sequence[ScoredCell]) -> Group:
    """Return the cells of a sweep of the paper, or of the plane's curve."""
    assert part.key is not None
    title = named_figures.read(part.name)["title"]
    if part.name == "plane":
        title = f"{title}: the curve of {outputs.name_of(named_figures.read('plane')['curve']['method'])}"
    return report_groups.make(title, "", [one for one in every if one.place in part.places], [part.key])


def _more_seeds(overrides: Sequence[str], every: Sequence[ScoredCell]) -> list[str]:
    """Return an override for every seed that some finished cell has, unless seeds are named."""
    if any(item.startswith(("seeds=", "seed=")) for item in overrides):
        return []
    found = {entry.cell.seed for entry in every if entry.cell.train is not None}
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
    """Return the cells of the page, by table and figure; a parameter applies only to methods that have it.

    Args:
        overrides: as in `run`.
        more: further ones, such as seeds.

    Raises:
        UserError: wrong overrides, or a parameter that no method has.
    """
    asked = {name: request([f"table={name}", *overrides, *more], optional=True) for name in TABLES}
    kept = without(overrides, ("table",))
    for name in SWEEPS:
        figure = named_figures.read(name)
        # The figure keeps its axis although the tables have a single value.
        asked[name] = sweep.ask([*named_figures.defaults(figure), *without(kept, figure["axes"]), *more], optional=True)
    curve = named_figures.read("plane")["curve"]
    targets = f"targets={','.join(named_figures.read('plane')['targets'])}"
    asked["plane"] = named_figures.curve_of(curve, named_figures.with_models([targets, *kept, *more]), asked["table5"])
    check_used(list(asked.values()))
    return asked


def _part(name: str, asked: Request, store: Store, whole: bool) -> Part:
    """Return a table or sweep with its finished cells."""
    asked, plan = _planned(asked, store, whole)
    if name in TABLES:
        whole_rows = [(None, row) for row in outputs.build_rows(asked, plan, store)]
        return Part(name, asked, plan, whole_rows, None, _places(asked, plan, store))
    key = named_figures.read("plane")["curve"]["key"] if name == "plane" else sweep.axes(asked)[0]
    rows: list[tuple[Point, RowResult]] = []
    for value in dict.fromkeys(entry.settings[key] for entry in asked.grid):
        point = replace(asked, grid=tuple(entry for entry in asked.grid if entry.settings[key] == value))
        rows += [((key, value), row) for row in outputs.build_rows(point, plan, store)]
    return Part(name, asked, plan, rows, key, _places(asked, plan, store))


def _places(asked: Request, plan: Sequence[Planned], store: Store) -> set[tuple[str, str | None]]:
    targets: dict[str, set[str | None]] = {}
    for cell in asked.cells:
        own = [cell.target] if cell.train is not None else [dataset.id for dataset in cell.targets]
        targets.setdefault(cell_id(cell), set()).update(own)
    return {
        (store.folder(item.cell).name, target)
        for item in plan if item.done and item.id in targets
        for target in targets[item.id]
        if item.cell.train is not None or target in {dataset.id for dataset in item.cell.targets}
    }


def _evidence(parts: Sequence[Part], base: Request, store: Store) -> Evidence:
    """Return the evidence for judging the claims."""
    rows: dict[claims.Place, RowResult] = {}
    names: dict[str, str] = {}
    points: dict[str, dict[float, None]] = {}
    swept: dict[str, dict[tuple[str, str], None]] = {}
    for part in parts:
        for point, row in part.rows:
            rows.setdefault((row.model, row.target, row.method, point), row)
            if point is None:
                names |= {row.model: row.model_name, row.target: row.target_name}
                names.setdefault(row.method, outputs.name_of(row.method))
                continue
            assert part.key is not None
            points.setdefault(part.key, {})[point[1]] = None
            if part.name in SWEEPS:
                swept.setdefault(part.key, {})[row.model, row.target] = None
    main = [row for part in parts if part.name in MAIN for _, row in part.rows]
    return Evidence(
        rows=rows, upstream=[dataset.id for dataset in base.cells[0].upstream],
        groups=list(dict.fromkeys((row.model, row.target) for row in main)),
        points={key: list(values) for key, values in points.items()},
        swept=list(dict.fromkeys(cell.method.id for part in parts if part.name in SWEEPS for cell in part.asked.cells)),
        sweep_groups={key: list(values) for key, values in swept.items()}, pid=_pid(store), names=names,
    )


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
    order = ["fig1", "fig3", "fig4", "plane", "forgetting", "regime", "predict", "fig5", "fig6", "fig7"]
    found = [*root.glob("figures/*.png"), *root.glob("rates/*.png")]

    def rank(path: Path) -> tuple[int, str]:
        kind, _ = name_parts(path.stem)
        return (order.index(kind) if kind in order else len(order)), path.stem

    return sorted(found, key=rank)


def _diagnostics(cell: CellSpec, folder: Path) -> dict[str, Any]:
    """Return a line about a finished cell: weights, time, form of the answers."""
    scores = read_scores(folder)
    known = cell_measures.of_cell(cell, folder)
    if cell.train is not None and "rms_delta" not in known:
        known |= cell_measures.kept(folder)
    try:
        seconds = json.loads((folder / "provenance.json").read_text()).get("seconds", {})
    except (OSError, ValueError):
        seconds = {}
    upstream = [scores["datasets"][dataset.id] for dataset in cell.upstream if dataset.id in scores["datasets"]]
    target = scores["datasets"].get(cell.target or "", {})
    return {
        "cell": folder.name, "rms delta": known.get("rms_delta"),
        "restored %": 100 * known["restored_fraction"] if "restored_fraction" in known else None,
        "flips %": 100 * known["mask_flips"] if "mask_flips" in known else None,
        "selected %": 100 * known["mask_selected"] if "mask_selected" in known else None,
        "mask = 1 %": 100 * known["mask_ones"] if "mask_ones" in known else None,
        "last loss": known.get("loss"), "train s": seconds.get("train"),
        "answer s": sum(value for name, value in seconds.items() if name.startswith("generate/")) or None,
        "upstream over 3 words %": sum(e["words_over_3"] for e in upstream) / len(upstream) if upstream else None,
        "upstream contain gold %": sum(e["contains_gold"] for e in upstream) / len(upstream) if upstream else None,
        "target over 3 words %": target.get("words_over_3"),
    }


def _provenance(folders: Sequence[Path]) -> list[tuple[str, int]]:
    """Return each distinct provenance, without times, and the number of its cells."""
    found: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for folder in folders:
        try:
            known = json.loads((folder / "provenance.json").read_text())
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
        found[f"wall time, summed over them: {times}"] = len(folders) - found["no provenance.json"]
    return found.most_common()


# ---------------------------------------------------------------------------------------------------------------
# Predictions


def predictions(groups: Mapping[str, Sequence[tuple[CellSpec, Path, str]]]) -> dict[str, Any]:
    """Return what the browser over answers needs, JSON values only.

    Of every dataset the first 40 items of an order by hash are taken, the same whatever the cells are; of several
    seeds the first.

    Args:
        groups: title -> finished cells with their folders, and what tells each from others of its method.

    Returns:
        images: data URIs; right: from which score on an answer counts as right; groups: see `_browsed`. Groups without
        answers or data have empty lists, and `why` says so.
    """
    images: dict[str, int] = {}
    uris: list[str] = []
    found = [{"name": name, **_browsed(cells, images, uris)} for name, cells in groups.items()]
    return {"images": uris, "right": RIGHT, "groups": found}


def _browsed(
    cells: Sequence[tuple[CellSpec, Path, str]], images: dict[str, int], uris: list[str]
) -> dict[str, Any]:
    """Return the answers of a group.

    Returns:
        datasets: id -> name, judged (whether an answer is right or wrong) and items (id, image number or null, prompt,
        references); runs: model, target, method (ids and names) and answers: dataset -> [text, score] by item.
    """
    runs: dict[tuple[str, str, str], dict[str, Any]] = {}
    chosen: dict[tuple[Any, ...], list[Record]] = {}
    datasets: dict[str, Any] = {}
    why = ""
    for cell, folder, label in sorted(cells, key=lambda one: one[0].seed):
        method = f"{cell.method.id} {label}".strip()
        place = (cell.model.id, cell.target or "", method)
        if place in runs:
            continue
        answers: dict[str, Any] = {}
        for dataset in cell.datasets:
            if dataset.role == "extra":
                continue
            form = (dataset.id, cell.eval.split, cell.eval.limit)
            # Cells of one group may have other items of a dataset: each form is a dataset of the browser's own.
            name = dataset.id if form[1:] == ("test", None) else " ".join(map(str, form))
            try:
                if form not in chosen:
                    records = sample(load(dataset, at_root(cell.data_root), cell.eval.split, cell.eval.limit))
                    datasets[name] = {
                        "name": dataset.name, "role": dataset.role, "judged": dataset.metric not in UNJUDGED,
                        "items": [_item(record, images, uris) for record in records],
                    }
                    chosen[form] = records
                texts = read_answers(folder, dataset.id)
                scores = {one.item_id: one.score for one in read_items(folder, dataset.id)}
            except UserError:
                # The reason may name a local path, which does not belong on a page for others.
                why = f"The answers of {folder.name} to {dataset.name}, or that dataset, are not in this folder."
                continue
            answers[name] = [
                [texts[record.item_id], round(scores[record.item_id], 4)]
                if record.item_id in scores.keys() & texts.keys() else None
                for record in chosen[form]
            ]
        if answers:
            printed = report_groups.row_name(cell)
            runs[place] = {
                "model": cell.model.id, "model_name": cell.model.name, "target": cell.target,
                "target_name": cell.dataset(cell.target).name if cell.target else "",
                "method": method, "untuned": cell.method.id == outputs.ZERO_SHOT,
                "method_name": f"{printed} ({label})" if label else printed, "answers": answers,
            }
    return {"datasets": datasets, "runs": list(runs.values()), "why": why}


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
    }


def _uri(record: Record) -> str:
    """Return an image as a data URI, no larger than the browser shows it."""
    image, buffer = open_image(record), io.BytesIO()
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    small = image.width * image.height <= 128 * 128  # drawn pictures stay exact; photographs are compressed
    image.save(buffer, format="PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
