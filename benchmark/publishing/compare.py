"""Compare two results folders cell by cell: the largest difference, or why cells are not comparable."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmark.core.errors import UserError, counted
from benchmark.spec import CellSpec, differences, digits_of, identity, protocol
from benchmark.store.answers import read_items
from benchmark.store.cells import Store, published_key, read_cell, scored_datasets
from benchmark.store.scores import read_scores

OTHER_INPUTS = "other base model, data or code"


@dataclass(frozen=True)
class Gap:
    """The largest difference between two versions of a cell.

    Attributes:
        cell: id of the cell.
        verdict: "identical" (every item has the same score), "near" (all our values lie within their 95 %
            intervals), "off", or "not comparable".
        metric: where the largest difference is, such as "coco A_T"; empty if not comparable.
        ours: value in the first folder.
        theirs: value in the second.
        low: lower end of the 95 % interval of ours minus theirs, paired over items; NaN if items are missing.
        high: its upper end.
        why: why the cells are not comparable or, if their numbers differ, that their inputs differ.
        older: the stages of a published second version that older code made.
    """

    cell: str
    verdict: str
    metric: str = ""
    ours: float = float("nan")
    theirs: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    why: str = ""
    older: tuple[str, ...] = ()


def compare(ours: Path, theirs: Path, cells: Collection[str] | None = None) -> tuple[list[Gap], list[str]]:
    """Compare the cells that two results folders share.

    Cells of the same model, method, target and seed whose settings or protocols differ are reported as not
    comparable, with the first keys that differ.

    Args:
        ours: results folder.
        theirs: results folder.
        cells: ids of the cells of `ours` to compare, such as those of one run; all if None.

    Returns:
        A gap per shared cell, and the ids of our cells without a counterpart in the other folder.

    Raises:
        UserError: a folder has no finished cells or another schema, or a file is damaged.
    """
    mine, other = _finished(ours), _finished(theirs)
    by_digits = {digits_of(name): name for name in other}
    wanted = None if cells is None else set(map(digits_of, cells))
    specs: dict[str, CellSpec] = {}  # specs of their cells, read only if needed: most cells match by name
    gaps, alone = [], []
    for name in sorted(name for name in mine if wanted is None or digits_of(name) in wanted):
        same = by_digits.get(digits_of(name))
        if same is not None:
            gaps.append(replace(_gap(name, mine[name], other[same]), older=_older(other[same])))
            continue
        cell = read_cell(mine[name])
        if not specs:
            specs = {key: read_cell(folder) for key, folder in sorted(other.items())}
        near = next((key for key, spec in specs.items() if _place(spec) == _place(cell)), None)
        if near is None:
            alone.append(name)
        else:
            why = f"settings differ from {near}: {_differing(cell, specs[near])}"
            gaps.append(Gap(name, "not comparable", why=why))
    return gaps, alone


def _place(cell: CellSpec) -> tuple[str, str | None, str, int | None]:
    """Return a cell's position in a table, which does not depend on its settings."""
    return cell.model.id, cell.target, cell.method.id, cell.seed if cell.train is not None else None


def _older(folder: Path) -> tuple[str, ...]:
    """Return the stages of a published cell that older code made. Cells of a run have keys that show this."""
    from benchmark.store.provenance import older_code

    return () if (folder / "status.json").is_file() else older_code(read_cell(folder), folder)


def _finished(root: Path) -> dict[str, Path]:
    store = Store(root)
    store.check_schema()
    found = {path.parent.name: path.parent for path in store.cells.glob("*/scores.json")}
    if not found:
        raise UserError(f"{root} has no finished cells. Name a results folder of a run or a published one.")
    return found


def _differing(ours: CellSpec, theirs: CellSpec) -> str:
    """Return up to four keys in which two cells differ, with both values."""
    found = differences(identity(ours), identity(theirs))
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return "; ".join(f"{key} {own} | {other}" for key, own, other in found[:4]) + more


def _gap(name: str, ours: Path, theirs: Path) -> Gap:
    """Return the largest difference among the numbers that both versions of a cell share."""
    if why := _other_protocols(read_cell(ours), read_cell(theirs)):
        return Gap(name, "not comparable", why=why)
    mine = dict(_numbers(read_scores(ours)))
    pairs = [(metric, mine[metric][0], value) for metric, value in _numbers(read_scores(theirs)) if metric in mine]
    if not pairs:
        return Gap(name, "not comparable", why="they share no number")
    metric, own, (value, _, _) = max(pairs, key=lambda pair: abs(pair[1] - pair[2][0]))
    mine_too = set(scored_datasets(ours))
    items = {
        dataset: (read_items(ours, dataset), read_items(theirs, dataset))
        for dataset in scored_datasets(theirs) if dataset in mine_too
    }
    if items and all(one == other for one, other in items.values()):
        return Gap(name, "identical", metric, own, value, 0.0, 0.0)
    for dataset, pair in items.items():
        if len({frozenset((item.item_id, item.group) for item in side) for side in pair}) > 1:
            counts = " | ".join(str(len(side)) for side in pair)
            return Gap(name, "not comparable", why=f"other test items in {dataset} ({counts})")
    keys = _key(ours), _key(theirs)
    why = "" if None in keys or keys[0] == keys[1] else OTHER_INPUTS
    inside = all(low - 1e-9 <= own <= high + 1e-9 for _, own, (_, low, high) in pairs)
    return Gap(name, "near" if inside else "off", metric, own, value, *_interval(ours, theirs, metric), why=why)


def _other_protocols(ours: CellSpec, theirs: CellSpec) -> str:
    """Return the test sets whose protocols differ between two cells of one name; only an untuned model's can differ."""
    one, other = ({dataset.id: protocol(dataset) for dataset in cell.datasets} for cell in (ours, theirs))
    shared = one.keys() & other.keys()
    found = differences(*({name: own for name, own in all_.items() if name in shared} for all_ in (one, other)))
    shown = "; ".join(f"{key} {own!r} | {their!r}" for key, own, their in found[:4])
    return f"other protocols: {shown}" if found else ""


def _key(folder: Path) -> str | None:
    """Return the digest of all inputs of a trained cell's scores, or None if it is not known."""
    if read_cell(folder).train is None:  # depends on the sets it was evaluated on
        return None
    stages = Store(folder.parents[1]).status(folder)["stages"]
    return published_key(folder) or stages.get("summary", {}).get("key")


def _interval(ours: Path, theirs: Path, metric: str) -> tuple[float, float]:
    """Return the 95 % interval of a difference, with the same resamples on both sides."""
    from eval import stats

    target, _, average = metric.rpartition(" ")
    cell = read_cell(ours)
    upstream = [dataset.id for dataset in cell.upstream]
    target = target or (cell.target or (cell.targets[0].id if cell.targets else ""))
    names = [*upstream, target] if average in stats.AVERAGES else list(dict.fromkeys([*upstream, metric]))
    goal = target if average in stats.AVERAGES else metric
    if not all({*names} <= {*scored_datasets(folder)} for folder in (ours, theirs)):
        return float("nan"), float("nan")
    one, other = (
        stats.resample({name: {cell.seed: read_items(folder, name)} for name in names}, goal, upstream)
        for folder in (ours, theirs)
    )
    found = stats.paired_difference(one, other, average if average in stats.AVERAGES else metric)
    return found.low, found.high


def _numbers(scores: dict) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Yield (metric, (value, low, high)) of scores.json."""
    for name, entry in scores["datasets"].items():
        yield name, (entry["value"], entry["low"], entry["high"])
    for target, averages in scores["averages"].items():
        for name, entry in averages.items():
            yield f"{target} {name}", (entry["value"], entry["low"], entry["high"])


def describe(gap: Gap) -> str:
    """Return a cell's comparison in one line."""
    if gap.verdict == "not comparable":
        return f"{gap.cell}  not comparable: {gap.why}"
    interval = "" if gap.low != gap.low else f", 95 % interval {gap.low:+.2f} to {gap.high:+.2f}"
    return (
        f"{gap.cell}  {gap.metric}: {gap.ours:.2f} | {gap.theirs:.2f} ({gap.ours - gap.theirs:+.2f}{interval}) "
        f"{gap.verdict}{' (theirs: older code)' if gap.older else f' ({gap.why})' if gap.why else ''}"
    )


def line(gaps: list[Gap], theirs: Path, alone: Collection[str] = ()) -> str:
    """Return the comparison in one line.

    Args:
        gaps: from `compare`.
        theirs: the folder to name.
        alone: from `compare`, the cells that the other folder does not have.
    """
    usable = [gap for gap in gaps if gap.verdict != "not comparable"]
    rest = []
    if len(usable) < len(gaps):
        rest.append(f"{counted(len(gaps) - len(usable), 'cell')} cannot be compared: settings or test items differ")
    if alone:
        rest.append(f"{counted(len(alone), 'cell')} not in the reference (first: {min(alone)})")
    if not usable:
        return "; ".join([f"Nothing to compare with {theirs}", *rest]) + "."
    same = sum(gap.verdict == "identical" for gap in usable)
    inside = sum(gap.verdict in ("identical", "near") for gap in usable)
    verb = "has" if len(usable) == 1 else "have"
    parts = [f"Compared with {theirs}: {same} of {counted(len(usable), 'cell')} {verb} identical item scores"]
    if same < len(usable):
        worst = max(usable, key=lambda gap: abs(gap.ours - gap.theirs))
        parts += [
            f"largest difference {worst.ours - worst.theirs:+.2f} ({worst.cell}, {worst.metric})",
            f"{inside} of {len(usable)} lie within the reference's 95 % intervals",
        ]
    if older := sum(bool(gap.older) for gap in usable):
        rest.append(f"{older} of theirs {'is' if older == 1 else 'are'} of older code")
    return "; ".join(parts + rest) + "."
