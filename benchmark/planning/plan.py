"""From a grid to the cells that have to run: each once, after the cell that it depends on, and only if unfinished."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark.config.grid import sources_of
from benchmark.config.request import Request
from benchmark.core.errors import UserError, counted
from benchmark.core.progress import StageTold, clock
from benchmark.models import places
from benchmark.planning.cost import Costs
from benchmark.spec import (
    CellSpec,
    DatasetSpec,
    MethodSpec,
    ProfileSpec,
    at_root,
    cell_id,
    flat,
    plain,
)
from benchmark.store.cells import Store, output_of, read_cell, scored_datasets, stages_of
from benchmark.store.keys import Digests, Keys, Unverified, keys_of

# Settings that a cell is computed with, but that are not part of its name.
NAMELESS = (
    "model.checkpoint", "model.vision_tower", "data_root", "device", "threads", "engine", "eval.batch_size",
    "eval.share_images", "train.gradient_checkpointing",
)


@dataclass(frozen=True)
class Planned:
    """A cell with its place in the plan.

    Attributes:
        cell: its spec.
        id: the name of its folder.
        needs: ids of cells that have to be finished first: the Full FT cells that a post-hoc cell is made from, or a
            cell that has the same training and answers in another way.
        keys: its stage keys; None if the data do not exist yet, or if a checkpoint or data have not been read.
        missing: the stages that have to run, in order; without a training whose weights another cell has.
        verified: whether `missing` follows from the keys; if not, it follows from what status.json records.
    """

    cell: CellSpec
    id: str
    needs: tuple[str, ...]
    keys: Keys | None
    missing: tuple[str, ...]
    verified: bool = True

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.missing


def expand(cells: Iterable[CellSpec], full_ft: MethodSpec) -> list[tuple[CellSpec, tuple[str, ...]]]:
    """Return every cell once, after the cells that it needs, with their ids.

    Args:
        cells: the requested cells.
        full_ft: the method that post-hoc methods start from.

    Returns:
        Cells in order. An untuned model that is requested twice gives one cell with all datasets.

    Raises:
        UserError: two cells have one name but differ in a setting such as a path; one folder cannot hold both.
    """
    order: dict[str, tuple[CellSpec, tuple[str, ...]]] = {}
    for cell in cells:
        sources = sources_of(cell, full_ft) if cell.method.posthoc else ()
        needs = tuple(map(cell_id, sources))
        for source_name, source in zip(needs, sources, strict=True):
            order.setdefault(source_name, (source, ()))
        name = cell_id(cell)
        if name in order:
            _check_same(name, order[name][0], cell)
            cell = with_datasets(order[name][0], cell.datasets)
        order[name] = (cell, needs)
    return list(order.values())


def _check_same(name: str, one: CellSpec, other: CellSpec) -> None:
    """Refuse two cells that have one name but different settings in NAMELESS."""
    ours, theirs = (dict(flat(plain(cell))) for cell in (one, other))
    for key in NAMELESS:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{key}={ours.get(key)},{theirs.get(key)}: both cells have the name {name}, so one results folder "
                "cannot hold both. Give one value, or use another results=dir for each."
            )


def with_datasets(cell: CellSpec, more: Sequence[DatasetSpec]) -> CellSpec:
    """Return a cell with more datasets to evaluate; datasets that it has already are not repeated."""
    known = {dataset.id for dataset in cell.datasets}
    return replace(cell, datasets=(*cell.datasets, *(dataset for dataset in more if dataset.id not in known)))


def make(
    request: Request, store: Store, compute: bool = True, told: StageTold | None = None
) -> list[Planned]:
    """Return the plan of a request.

    Args:
        request: the cells.
        store: the finished cells.
        compute: read checkpoints and data whose digests are not cached. If false, the plan is ready at once, and cells
            that depend on them are not verified.
        told: callback (stage, images checked, total images), called while data are read for the first time.

    Returns:
        Cells in the order in which they should run.

    Raises:
        UserError: a checkpoint is missing, data are damaged, or the results have another schema version.
    """
    store.check_schema()
    digests = Digests(store.root / "digests.json", compute, told)
    keys: dict[str, Keys | None] = {}
    trained: dict[str, str] = {}  # key of a training -> the first cell with its weights
    plan = []
    for cell, needs in expand(request.cells, request.full_ft):
        cell = _keep_datasets(cell, store.folder(cell), request)
        name = cell_id(cell)
        own, verified, sources = None, True, [keys[source] for source in needs]
        if data_missing(cell):
            missing = stages_of(cell)
        else:
            known = [source for source in sources if source is not None]
            if len(known) == len(needs):
                with contextlib.suppress(Unverified):
                    own = keys_of(cell, digests, known)
            verified = own is not None
            missing = store.missing(cell, own) if own is not None else _not_recorded(cell, store)
        if own is not None and own.train:
            if "train" in missing and own.train in trained and not cell.method.posthoc:
                needs, missing = (*needs, trained[own.train]), missing[1:]
            elif "train" in missing and store.trained(cell, own.train):
                missing = missing[1:]
            elif "train" in missing or not store.lacks_weights(cell):
                trained.setdefault(own.train, name)
        keys[name] = own
        plan.append(Planned(cell, name, needs, own, tuple(missing), verified))
    return plan


def recorded(asked: Request, store: Store) -> list[Planned]:
    """Return the plan of a request from what is on disk: from keys for runs, from scores.json for published cells.

    Published cells have no record of stages. They need neither data nor checkpoints.
    """
    if any(store.cells.glob("*/status.json")):
        return [_trimmed(item, store) for item in make(asked, store)]
    plan = []
    for cell, needs in expand(asked.cells, asked.full_ft):
        kept = scored_datasets(store.folder(cell))
        missing = tuple(f"score/{dataset.id}" for dataset in cell.datasets if dataset.id not in kept)
        whole = (store.folder(cell) / "scores.json").is_file()
        plan.append(_trimmed(Planned(cell, cell_id(cell), needs, None, missing if whole else ("summary",)), store))
    return plan


def whole_seeds(asked: Request, finished: Container[str]) -> Request:
    """Leave out seeds that have fewer finished cells than another seed: they are still running.

    Args:
        asked: a request.
        finished: ids of finished cells.

    Returns:
        The request with the remaining seeds; with the first seed if no cell is finished.
    """
    trained = [cell for cell in asked.cells if cell.train is not None]
    done = Counter(cell.seed for cell in trained if cell_id(cell) in finished)
    seeds = {seed for seed, count in done.items() if count == max(done.values())} or {cell.seed for cell in trained[:1]}
    return asked.filtered(lambda cell: cell.train is None or cell.seed in seeds)


def has_source_weights(item: Planned, plan: Sequence[Planned], store: Store) -> bool:
    """Whether the weights that a merge starts from are here; restored cells have none. True for every other cell."""
    sources = [other.cell for other in plan if other.id in item.needs] if item.cell.method.posthoc else []
    return all(output_of(store.folder(cell), "train").is_file() for cell in sources)


def _trimmed(item: Planned, store: Store) -> Planned:
    """Return an untuned model that was evaluated on some of the targets as finished on those."""
    lacking = {stage.partition("/")[2] for stage in item.missing} - {""}
    kept = tuple(dataset for dataset in item.cell.datasets if dataset.id not in lacking)
    upstream = {dataset.id for dataset in item.cell.upstream}
    scored = (store.folder(item.cell) / "scores.json").is_file()
    if item.done or item.cell.train is not None or not lacking or lacking & upstream or not scored:
        return item
    return replace(item, cell=replace(item.cell, datasets=kept), missing=())


def _not_recorded(cell: CellSpec, store: Store) -> list[str]:
    """Return the stages that no run has recorded as done, under any key."""
    stages = store.status(store.folder(cell))["stages"]
    return [stage for stage in stages_of(cell) if stages.get(stage, {}).get("state") != "done"]


def check_inputs(cells: Iterable[CellSpec]) -> None:
    """Refuse to start if a checkpoint or data folder does not exist.

    Raises:
        UserError: lists every missing folder.
    """
    cells = list(cells)
    checkpoints = {places.checkpoint(cell.model).path: f"checkpoint of {cell.model.id}" for cell in cells}
    folders = {folder: f"dataset {folder.name}" for cell in cells for folder in _data_folders(cell)}
    missing = [f"  {folder} ({what})" for folder, what in {**checkpoints, **folders}.items() if not folder.is_dir()]
    if missing:
        head = f"{len(missing)} folder{'s do' if len(missing) > 1 else ' does'} not exist:"
        fix = (
            "Put them there, or set model.checkpoint= and data_root=. `data prepare profile=paper` gets the official "
            "datasets; `data draw` makes the drawn ones."
        )
        raise UserError("\n".join([head, *missing, fix]))


def data_missing(cell: CellSpec) -> bool:
    """Return whether the folder of one of a cell's datasets does not exist."""
    return not all(folder.is_dir() for folder in _data_folders(cell))


def _data_folders(cell: CellSpec) -> list[Path]:
    from benchmark.data import reader_of

    sets = (*cell.datasets, *([cell.generic] if cell.generic else []))
    return [at_root(cell.data_root) / reader_of(dataset) for dataset in sets]


def _keep_datasets(cell: CellSpec, folder: Path, request: Request) -> CellSpec:
    """Keep the datasets that an untuned model was evaluated on for another table, if their protocol is the same."""
    if cell.train is not None or not (folder / "cell.yaml").is_file():
        return cell
    try:
        earlier = read_cell(folder).datasets
    except UserError:
        return cell  # damaged, or of another version: the run writes it again
    return with_datasets(cell, [dataset for dataset in earlier if dataset == request.datasets.get(dataset.id)])


def describe(plan: Sequence[Planned], request: Request, costs: Costs) -> str:
    """Return the plan as text: one line per cell, then time and space."""
    width = max((len(item.id) for item in plan), default=0)
    lines = []
    for item in plan:
        if item.done:
            lines.append(f"{item.id:<{width}}  done{'' if item.verified else ' (unverified)'}")
            continue
        train = [{True: "from Full FT", False: "train"}[item.cell.method.posthoc]] if "train" in item.missing else []
        generated = [stage for stage in item.missing if stage.startswith("generate/")]
        steps = train + ([f"generate {len(generated)}"] if generated else []) + ["score"]
        lines.append(f"{item.id:<{width}}  {', '.join(steps)}, {clock(costs.seconds(item.cell, item.missing))}")
    lines.append(totals(plan, request, costs))
    if not all(item.verified for item in plan):
        lines.append("Unverified: checkpoints or data have not been read on this machine yet. `run` reads them once.")
    if any(item.keys is None and item.verified for item in plan):
        root, profile = request.cells[0].data_root, request.profile
        drawn = profile.prepare and root == f"data/{profile.id}"
        lines.append(f"The data do not exist yet ({root}). {'`run` makes them first' if drawn else advice(profile)}.")
    return "\n".join(lines)


def advice(profile: ProfileSpec) -> str:
    """Return the command that fills a data folder of the user's own, which `run` never writes to."""
    verb = "draw" if profile.prepare else "prepare"
    return f"`data {verb} profile={profile.id} data_root=DIR` fills a folder (docs/data.md)"


def totals(plan: Sequence[Planned], request: Request, costs: Costs) -> str:
    """Return one line: cells, finished cells, time and space of the rest. A second line names rows left out."""
    left = [item for item in plan if not item.done]
    seconds = sum(costs.seconds(item.cell, item.missing) for item in left) / min(request.jobs, max(1, len(left)))
    basis = "from measured cells" if costs.measured else "a guess until a cell is measured"
    rest = (
        f", {len(left)} to run: about {clock(seconds)} ({basis}), {costs.megabytes([i.missing for i in left]):.0f} MB"
        if left else ""
    )
    names = ", ".join(request.left_out)
    out = f"\nLeft out: {names}. This engine cannot train them; engine=single can." if names else ""
    return f"{counted(len(plan), 'cell')}, {len(plan) - len(left)} done{rest}. Results: {request.results}{out}"
