"""Finished cells of a results folder outside the paper's tables, grouped by kind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.config import own_checkpoints
from benchmark.config.compose import options_of, usual
from benchmark.config.grid import changed
from benchmark.core.errors import UserError
from benchmark.reporting.tables import SEES_SOURCES
from benchmark.spec import CellSpec, plain, sees_sources
from benchmark.store import provenance
from benchmark.store.cells import Store, read_cell
from benchmark.store.scores import read_scores
from methods.registry import METHODS

LIMITS = ("train.limit", "eval.limit")
REFERENCES = ("zero_shot", "full_ft")
STALE = "Cells of older code, data or settings"
OWN_CHECKPOINTS, OWN_TARGETS, OWN_METHODS, OWN_MODELS = "Own checkpoints", "Own targets", "Own methods", "Own models"
LIMITED, OTHER_SEEDS, DEFAULTS, OTHER = "Smoke and limited runs", "Other seeds", "Default settings", "Other cells"
SWEEP, SETTINGS = "Sweep over ", "Other settings: "
ORDER = (OWN_TARGETS, OWN_METHODS, OWN_CHECKPOINTS, OWN_MODELS, SWEEP, SETTINGS, LIMITED, OTHER_SEEDS, DEFAULTS,
         OTHER, "Profile", STALE)
NOTES = {
    STALE: "Today's code, data or base models would give these cells other keys, or files of theirs are missing. Run "
    "them again to have them in the tables.",
    OWN_CHECKPOINTS: "Checkpoints that were trained elsewhere, evaluated as they are.",
    LIMITED: "NOT THE WHOLE PROTOCOL: trained or evaluated on part of the items.",
    OTHER_SEEDS: "A table takes the seeds of which it has the most cells; these cells have another seed.",
    OTHER: "Cells that belong to no table of this page; their settings stand beside them.",
}


@dataclass(frozen=True)
class ScoredCell:
    """A finished cell on one target.

    Attributes:
        folder: the cell's.
        cell: its spec.
        target: the set of A^T; None for an untuned model without targets.
        settings: key -> value of what differs from the profile's defaults.
        scores: dataset id, A_S, A_T, H, O -> {"value", "low", "high"} in points.
        older: whether older code made any of its stages.
    """

    folder: Path
    cell: CellSpec
    target: str | None
    settings: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]
    older: bool

    @property
    def name(self) -> str:
        """The cell's name, as its folder has it."""
        return self.folder.name

    @property
    def place(self) -> tuple[str, str | None]:
        """What a table holds of a cell: its folder and the target."""
        return self.name, self.target

    @property
    def limits(self) -> dict[str, str]:
        """Those of the settings that limit the items."""
        return {key: value for key, value in self.settings.items() if key in LIMITS}

    @property
    def varied(self) -> dict[str, str]:
        """The other settings."""
        return {key: value for key, value in self.settings.items() if key not in LIMITS}

    def value_of(self, key: str) -> str:
        """Return a setting, also where it is the default; "-" where the cell has no such setting."""
        if key in self.settings:
            return self.settings[key]
        head, _, rest = key.partition(".")
        value: Any = plain(self.cell)
        for word in (["method", "params", rest] if head == "method" else key.split(".")):
            value = value.get(word) if isinstance(value, Mapping) else None
        return "-" if value is None else str(value)


@dataclass(frozen=True)
class Group:
    """Cells of one kind.

    Attributes:
        title: what they are.
        note: what a reader must know first; may be empty.
        entries: in print order.
        keys: the settings that are columns.
        beside: places of entries that are shown only for comparison.
    """

    title: str
    note: str
    entries: tuple[ScoredCell, ...]
    keys: tuple[str, ...] = ()
    beside: frozenset[tuple[str, str | None]] = frozenset()

    @property
    def own(self) -> list[ScoredCell]:
        """The entries without those shown only for comparison."""
        return [entry for entry in self.entries if entry.place not in self.beside]


def entries(store: Store) -> tuple[list[ScoredCell], list[str]]:
    """Return every finished cell of a folder, once per target, and the names of those that cannot be read.

    Args:
        store: the results.
    """
    found: list[ScoredCell] = []
    damaged = []
    for folder in store.finished():
        try:
            found += _entries(folder)
        except UserError:
            damaged.append(folder.name)
    return found, damaged


def row_name(cell: CellSpec) -> str:
    """Return the printed name of a cell's method, with a mark if the cell saw the source sets."""
    return name_of(cell.method.id) + f" {SEES_SOURCES}" * sees_sources(cell)


def name_of(method: str) -> str:
    """Return a method's printed name. For a user's own it is the class: a report never imports a user's module."""
    if method in METHODS:
        return METHODS[method].name
    return method.removeprefix(own_checkpoints.PREFIX).rpartition(":")[2]


def _entries(folder: Path) -> list[ScoredCell]:
    cell, scores = read_cell(folder), read_scores(folder)
    settings = dict(text.partition("=")[::2] for text in _changed(cell))
    older = bool(provenance.older_code(cell, folder))
    return [
        ScoredCell(folder, cell, target, settings, {**scores["datasets"], **averages}, older)
        for target, averages in (scores["averages"] or {None: {}}).items()
    ]


def _changed(cell: CellSpec) -> tuple[str, ...]:
    """Return what differs from the defaults, also of a cell of an older version, which did not record it."""
    if cell.changed:
        return cell.changed
    try:
        return changed(cell, usual(cell.profile))
    except (KeyError, UserError):  # a profile, model, dataset or method that conf/ does not have
        return ()


def kind(
    entry: ScoredCell, every: Sequence[ScoredCell], profile: str, planned: Collection[str], seeds: Collection[int],
    changed: bool,
) -> str:
    """Return the heading under which a cell belongs.

    Args:
        entry: a cell that no table shows.
        every: all finished cells of the folder, to tell a sweep from a single setting.
        profile: of the page.
        planned: folders of the cells that the tables ask for, finished or not.
        seeds: of the tables.
        changed: whether the tables have other settings than the profile's.
    """
    cell = entry.cell
    if cell.profile != profile:
        return f"Profile {cell.profile}"
    if entry.name in planned and cell.train is not None:
        return STALE
    if cell.method.id.startswith(own_checkpoints.PREFIX):
        return OWN_CHECKPOINTS
    if entry.target is not None and entry.target not in options_of("dataset"):
        return OWN_TARGETS
    if cell.method.id not in METHODS:
        return OWN_METHODS
    if cell.model.id not in options_of("model"):
        return OWN_MODELS
    if swept := _swept(entry, every):
        return f"{SWEEP}{', '.join(swept)}"
    if entry.limits:
        return LIMITED
    if entry.varied:
        return f"{SETTINGS}{', '.join(sorted(entry.varied))}"
    if cell.train is not None and cell.seed not in seeds:
        return OTHER_SEEDS
    if entry.name in planned:
        return STALE
    return DEFAULTS if changed else OTHER


def group(found: Iterable[tuple[str, ScoredCell]], every: Sequence[ScoredCell]) -> list[Group]:
    """Group cells by their kind.

    Args:
        found: kind (from `kind`) and cell.
        every: all finished cells of the folder; those that a reader compares with stand beside.

    Returns:
        Groups in the order in which a user looks for them.
    """
    by_kind: dict[str, list[ScoredCell]] = {}
    for name, entry in found:
        by_kind.setdefault(name, []).append(entry)
    groups = []
    for name, own in by_kind.items():
        places = {entry.place for entry in own}
        others = [other for other in every if other.place not in places]
        beside: list[ScoredCell] = []
        if name.startswith(SWEEP):
            keys = name.removeprefix(SWEEP).split(", ")
            beside = [other for other in others if any(_same(other, one) and _rest(other, keys) == _rest(one, keys)
                      for one in own)]
        elif name in (OWN_METHODS, OWN_CHECKPOINTS, LIMITED):
            beside = [other for other in others if any(_is_reference(other, one) for one in own)]
        columns = dict.fromkeys(key for entry in own for key in sorted(entry.settings))
        groups.append(make(
            name, NOTES.get(name, ""), [*own, *beside], tuple(columns), frozenset(one.place for one in beside)
        ))
    return sorted(groups, key=lambda one: (_rank(one.title), one.title))


def make(
    title: str, note: str, found: Iterable[ScoredCell], keys: Sequence[str],
    beside: frozenset[tuple[str, str | None]] = frozenset(),
) -> Group:
    """Return a group in print order: model, target, method, then the settings, numbers as numbers.

    Args:
        title: its heading.
        note: below it.
        found: its cells.
        keys: settings that may be columns; those that have one value in all cells go into the note.
        beside: see `Group`.
    """
    methods = list(METHODS)

    def order(entry: ScoredCell) -> tuple:
        method = entry.cell.method.id
        rank = methods.index(method) if method in methods else len(methods)
        return (entry.cell.model.id, entry.target or "", rank, method,
                [_number(entry.value_of(key)) for key in keys], entry.cell.seed)

    ordered = tuple(sorted(found, key=order))
    # An untuned model has no training settings; its dash does not count as a second value.
    columns = [key for key in keys if len({entry.value_of(key) for entry in ordered} - {"-"}) > 1]
    fixed = [f"{key}={values[0]}" for key in keys if key not in columns
             and (values := [entry.value_of(key) for entry in ordered if entry.value_of(key) != "-"])]
    limited = any(entry.limits for entry in ordered) and title != LIMITED
    parts = [note, NOTES[LIMITED] if limited else "", f"All with {', '.join(fixed)}." if fixed else ""]
    return Group(title, " ".join(filter(None, parts)), ordered, tuple(columns), beside)


def _same(one: ScoredCell, other: ScoredCell) -> bool:
    """Return whether two trained cells differ only in settings other than their limits."""
    if None in (one.cell.train, other.cell.train):
        return False
    first, second = (
        (entry.cell.profile, entry.cell.model.id, entry.target, entry.cell.method.id, entry.cell.seed, entry.limits)
        for entry in (one, other)
    )
    return first == second


def _rest(entry: ScoredCell, keys: Collection[str]) -> dict[str, str]:
    return {key: value for key, value in entry.varied.items() if key not in keys}


def _swept(entry: ScoredCell, every: Sequence[ScoredCell]) -> list[str]:
    """Return those of a cell's settings that have another value in a cell which is otherwise the same."""
    return [
        key for key in sorted(entry.varied)
        if any(_same(entry, other) and entry.value_of(key) != other.value_of(key) for other in every)
    ]


def _is_reference(entry: ScoredCell, beside: ScoredCell) -> bool:
    """Return whether a cell is what another is compared with: the untuned model, or Full FT with the same settings."""
    first, second = (
        (one.cell.profile, one.cell.model.id, one.limits.get("eval.limit"), one.cell.eval.split)
        for one in (entry, beside)
    )
    same_target = beside.target is None or entry.target == beside.target
    method = entry.cell.method.id
    return first == second and same_target and (
        method == "zero_shot" or (method == "full_ft" and _rest_of_method(entry) == _rest_of_method(beside))
    )


def _rest_of_method(entry: ScoredCell) -> dict[str, str]:
    """Return the settings that are not a method's parameters."""
    return {key: value for key, value in entry.settings.items() if not key.startswith("method.")}


def _number(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _rank(title: str) -> int:
    return next((place for place, name in enumerate(ORDER) if title.startswith(name)), len(ORDER))
