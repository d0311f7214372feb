"""Rebuild the tables of a results folder from the item scores of the cells that they name."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.config.compose import options_of
from benchmark.config.request import request
from benchmark.paper import numbers
from benchmark.publishing.findings import Findings, Wrong
from benchmark.reporting import lettering, outputs, render, tables
from benchmark.spec import CellSpec, cell_hash, digits_of
from benchmark.store import cell_measures
from benchmark.store.answers import read_items
from benchmark.store.cells import Store


def check_table(store: Store, path: Path, cells: Mapping[str, CellSpec], found: Findings) -> None:
    """Rebuild a table from the item scores of its cells and compare every number in its CSV, Markdown and LaTeX."""
    stem = path.stem.partition("-")[0]  # the rest of the name describes a slice
    if stem not in options_of("table"):
        raise Wrong("is not a table of conf/table, so it cannot be rebuilt")
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    if not lines:
        raise Wrong("is empty")
    asked = request([f"table={stem}", f"profile={next(iter(cells.values())).profile}"]) if cells else None
    layout = asked.layout if asked else {}
    wanted = {cell_hash(cell) for cell in asked.cells} if asked else set()
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for line in lines:
        groups.setdefault((line["model"], line["target"], line["method"]), []).append(line)
    first = next(iter(groups.values()))
    upstream = [line["metric"] for line in first[: [line["metric"] for line in first].index("A_S")]]
    names = {dataset.id: dataset.name for cell in cells.values() for dataset in cell.datasets}
    shown = tuple(layout.get("columns") or ())
    rows = [_row(store, key, block, upstream, names, cells, wanted, layout) for key, block in groups.items()]
    table = tables.build("", rows, {name: names[name] for name in upstream}, shown=shown)
    again = list(csv.DictReader(render.to_csv(table).splitlines()))
    if len(again) != len(lines):
        raise Wrong(f"has {len(lines)} lines, from the cells it has {len(again)}")
    for old, new in zip(lines, again, strict=True):
        wrong = next((name for name in old if name in new and old[name] != new[name]), None)
        if wrong is not None:
            raise Wrong(
                f"{old['method']} on {old['target']} ({old['model']}), {old['metric']}: {wrong} is {old[wrong]!r}, "
                f"from the cells it is {new[wrong]!r}"
            )
    for suffix, text, picked in (
        ("md", render.to_markdown(table), r"\|.*"), ("tex", render.to_latex(table), r".* & .* \\\\"),
    ):
        other = path.with_suffix(f".{suffix}")
        with found.checking("-", f"tables/{other.name}"):
            printed = re.findall(rf"^{picked}$", other.read_text(encoding="utf-8"), re.MULTILINE)
            rendered = re.findall(rf"^{picked}$", text, re.MULTILINE)
            if _heads(printed) != _heads(rendered):  # different columns; the CSV has every number
                found.other_layout += 1
            else:
                _lines(printed, rendered)


def _heads(lines: Sequence[str]) -> list[str]:
    """Return the header lines."""
    return [line for line in lines if re.match(r"(\| )?Method [&|]", line)]


def _lines(stored: Sequence[str], again: Sequence[str]) -> None:
    if len(stored) != len(again):
        raise Wrong(f"has {len(stored)} lines of numbers, from the cells it has {len(again)}")
    for old, new in zip(stored, again, strict=True):
        if old != new:
            raise Wrong(f"a line is {old!r}, from the cells it is {new!r}")


def _row(
    store: Store, key: tuple[str, str, str], block: Sequence[Mapping[str, str]], upstream: Sequence[str],
    names: Mapping[str, str], cells: Mapping[str, CellSpec], wanted: set[str], layout: Mapping[str, Any],
) -> Any:
    """Return a row of a table, recomputed from the cells that the stored table names."""
    model, target, method = key
    seeds = sorted({int(seed) for line in block for seed in line["seeds"].split()})
    items: dict[str, dict[int, Any]] = {name: {} for name in (*upstream, target)}
    diagnostics = {}
    columns = layout.get("columns") or ()
    # A table names its cells; tables of earlier versions do not.
    own = {digits_of(name) for name in (block[0].get("cells") or "").split()}
    for seed in seeds:
        name, cell = _find(key, seed, cells, own or wanted)
        folder = store.cells / name
        for dataset in items:
            items[dataset][seed] = read_items(folder, dataset)
        diagnostics[seed] = cell_measures.recorded(cell, folder, columns)
    names_of = {key: lettering.as_written(text) for key, text in block[0].items() if key.endswith("_name")}
    return tables.RowResult(
        model=model, model_name=names_of["model_name"], method=method, method_name=names_of["method_name"],
        target=target, target_name=names_of["target_name"],
        items={name: found for name, found in items.items() if found},
        seeds=tuple(seeds), tuned=method != outputs.ZERO_SHOT, diagnostics=diagnostics,
        paper=numbers.of_row(model, target, method, outputs.name_of(method)),
        reference=(layout.get("references") or {}).get(method) or tables.REFERENCE,
        cells=tuple((block[0].get("cells") or "").split()),
    )


def _find(
    key: tuple[str, str, str], seed: int, cells: Mapping[str, CellSpec], wanted: set[str]
) -> tuple[str, CellSpec]:
    """Return the cell of a row and seed; among several settings, the one that today's table requests."""
    model, target, method = key
    fits = {
        name: cell for name, cell in cells.items()
        if (cell.model.id, cell.method.id) == (model, method)
        and (cell.target == target and cell.seed == seed or cell.train is None and target in _ids_of(cell))
    }
    if len(fits) > 1:
        fits = {name: cell for name, cell in fits.items() if cell_hash(cell) in wanted} or fits
    if len(fits) != 1:
        what = "no cell" if not fits else f"{len(fits)} cells ({', '.join(sorted(fits))})"
        raise Wrong(f"{what} of {method} on {target} ({model}), seed {seed}")
    return next(iter(fits.items()))


def _ids_of(cell: CellSpec) -> set[str]:
    """Return the ids of a cell's datasets."""
    return {dataset.id for dataset in cell.datasets}
