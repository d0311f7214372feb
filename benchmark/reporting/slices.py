"""File names and headings for a part of a named table or figure, which differ from those of the whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping

from benchmark.config.request import Request
from benchmark.planning.plan import NAMELESS
from benchmark.spec import CellSpec, cell_id, digest_of

LONGEST = 100  # longest second part of a file name, in characters

_GRID: dict[str, Callable[[CellSpec], list[str]]] = {
    "models": lambda cell: [cell.model.id],
    "targets": lambda cell: [cell.target] if cell.target else [dataset.id for dataset in cell.targets],
    "methods": lambda cell: [cell.method.id],
    "seeds": lambda cell: [str(cell.seed)] if cell.train is not None else [],
}


def differences(asked: Request, whole: Request, ignore: Container[str] = ()) -> dict[str, str]:
    """Return how a request differs from the whole table or figure.

    Args:
        asked: the request.
        whole: the table or figure as its file in conf defines it.
        ignore: those of models, targets, methods and seeds to ignore.

    Returns:
        What differs -> its values in the request; additional methods, models and targets are under "with". Empty
        if the request has the cells of the whole, perhaps with more seeds. Paths, devices and threads are ignored.
    """
    whole = whole.filtered(lambda cell: cell.method.id not in asked.left_out)
    seeds = {cell.seed for cell in whole.cells if cell.train is not None}
    if _ids(asked.filtered(lambda cell: cell.train is None or cell.seed in seeds)) == _ids(whole):
        return {}
    found: dict[str, str] = {}
    same = True
    for name, values_of in _GRID.items():
        ours, theirs = (
            dict.fromkeys(value for cell in one.cells for value in values_of(cell)) for one in (asked, whole)
        )
        same = same and ours.keys() == theirs.keys()
        any_seeds = name == "seeds" and (not ours or ours.keys() > theirs.keys())  # untuned models alone have none
        if name in ignore or ours.keys() == theirs.keys() or any_seeds:
            continue
        if ours.keys() > theirs.keys():
            found["with"] = ", ".join(filter(None, [found.get("with"), *(one for one in ours if one not in theirs)]))
        else:
            found[name] = ", ".join(ours)
    given = [key for key in (asked.grid[0].settings if asked.grid else {}) if key not in NAMELESS]
    swept, before = (
        {key: dict.fromkeys(str(entry.settings.get(key)) for entry in one.grid) for key in given}
        for one in (asked, whole)
    )
    found |= {key: ", ".join(values) for key, values in swept.items() if values != before[key]}
    if asked.only or (same and not found):  # no product of these axes; another training file, say
        found["cells" if asked.only else "settings"] = digest_of(sorted(_ids(asked)))[:8]
    return found


def _ids(asked: Request) -> set[str]:
    return {cell_id(cell) for cell in asked.cells}


def suffix(found: Mapping[str, str]) -> str:
    """Return the suffix of the name of a table or figure, safe in a file name; empty for the whole.

    Args:
        found: from `differences`.
    """
    if not found:
        return ""
    def part(key: str, value: str) -> str:
        if len(value) > LONGEST:
            return _counted(key, value).replace(" ", "_")
        return value if key in ("models", "targets", "methods") else f"{key.rpartition('.')[2]}_{value}"

    plain = "-".join(part(key, value) for key, value in found.items()).replace(", ", "+")
    text = re.sub(r"[^\w+-]", "_", plain)
    # Counted, cut or rewritten: others may look like it.
    if max(map(len, (text, *found.values()))) > LONGEST or re.search(r"[^\w+.:-]", plain):
        text = f"{text[:LONGEST]}-{digest_of(dict(found))[:8]}"
    return f"-{text}"


def heading(found: Mapping[str, str]) -> str:
    """Return the differences in words: "; here: models MODEL; seeds 0, 1"; nothing for the whole.

    Args:
        found: from `differences`. Of many values only the number is told.
    """
    parts = [f"{key} {value}" if len(value) <= LONGEST else _counted(key, value) for key, value in found.items()]
    return f"; here: {'; '.join(parts)}" if parts else ""


def _counted(key: str, value: str) -> str:
    return f"{value.count(',') + 1} {key}"
