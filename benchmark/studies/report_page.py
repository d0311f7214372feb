"""The report's page: from plain values to one HTML file without network. The template escapes everything."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from benchmark.core.errors import counted
from benchmark.reporting import view
from benchmark.reporting.claims import CONTRADICTED, HOLDS, NOT_RUN, NOT_SHOWN, Verdict
from benchmark.reporting.tables import AVERAGES, OLDER, Table
from benchmark.studies.report_groups import Group, ScoredCell, row_name

PAGE = "report.html"


@dataclass(frozen=True)
class Content:
    """What the page shows; plain values, escaped only when the page is made.

    Attributes:
        title: heading.
        facts: name and value of what was run and where.
        lead: sentences that a reader must know before the numbers.
        verdicts: on the claims.
        tables: of the paper's layout; the first `main` of them are what the claims are about.
        main: see above.
        groups: sweeps and all other cells.
        upstream: id -> printed name of the sets of A^S.
        figures: name and PNG.
        predictions: see `benchmark.studies.report.predictions`.
        cells: a line of diagnostics per cell.
        provenance: what made the cells, and how many each describes.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    lead: Sequence[str]
    verdicts: Sequence[Verdict]
    tables: Sequence[Table]
    main: int
    groups: Sequence[Group]
    upstream: Mapping[str, str]
    figures: Sequence[tuple[str, bytes]]
    predictions: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]
    provenance: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Cell:
    """A printed cell: its text, the number that sorts it, and the small print below."""

    text: str
    value: float | None = None
    css: str = "n"
    below: str = ""

    @property
    def sort(self) -> str | None:
        """The number as JavaScript reads it; None where there is none."""
        return None if self.value is None or pd.isna(self.value) else repr(float(self.value))


@dataclass(frozen=True)
class Grid:
    """A sortable table. Columns of numbers are those whose cells are."""

    id: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    css: str = ""

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Heading and class of each column."""
        first = self.rows[0] if self.rows else [Cell("", css="")] * len(self.heads)
        return [(head, "n" if cell.css.startswith("n") else "") for head, cell in zip(self.heads, first, strict=True)]


@dataclass(frozen=True)
class Section:
    """A folded part of the page: tables of one kind, and notes."""

    id: str
    title: str
    grids: Sequence[Grid]
    above: str = ""
    notes: Sequence[str] = ()
    count: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture with its caption; `half` if it is not much wider than high."""

    name: str
    text: str
    uri: str
    half: bool


def page(content: Content) -> str:
    """Return the page. Every text is escaped; answers of models reach the page only as text nodes.

    Args:
        content: what it shows.
    """
    sections = [
        *(_table(table, number) for number, table in enumerate(content.tables)),
        *(_group(group, number, content.upstream) for number, group in enumerate(content.groups)),
    ]
    counts = Counter(item.verdict for item in content.verdicts)
    return _environment().get_template(PAGE).render(
        content=content, sections=sections, main=_main(content), upstream=", ".join(content.upstream.values()),
        counts=[(name, counts[name]) for name in (HOLDS, CONTRADICTED, NOT_SHOWN, NOT_RUN) if counts[name]],
        figures=[_figure(name, data) for name, data in content.figures], diagnostics=_diagnostics(content.cells),
        unread=Markup(script_json(content.predictions)),
    )


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    made.filters["prose"] = _prose
    return made


def script_json(value: Any) -> str:
    """Return JSON that no HTML parser takes for markup inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _prose(text: str) -> Markup:
    """Return escaped text with A^S and A^T as the paper prints them."""
    return Markup(re.sub(r"\bA\^([ST])\b", r"A<sup>\1</sup>", str(escape(text))))


# ---------------------------------------------------------------------------------------------------------------
# Tables


def _main(content: Content) -> Grid | None:
    """Return the overview: H of every method on each model and target of the main tables."""
    tables = content.tables[: content.main]
    heads, columns = ["Method"], []
    names: dict[str, str] = {}
    for table in tables:
        for model, target, block in table.blocks():
            lines = {line["method"]: line for _, line in block[block["metric"] == "H"].iterrows()}
            names |= {method: view.name_of(line) for method, line in lines.items() if method not in names}
            heads.append(f"{model}, {target}")
            columns.append((table, lines))
    if not columns:
        return None
    rows = [
        [Cell(name, css=""), *(
            _score(view.number(table, lines[method]), view.difference(table, lines[method]))
            if method in lines else Cell(view.MISSING) for table, lines in columns
        )]
        for method, name in names.items()
    ]
    return Grid("main", heads, rows)


def _score(number: view.Number, below: str) -> Cell:
    """Return a score, with something small below unless there is nothing."""
    css = "n best" if number.best else "n"
    return Cell(number.text, number.line["value"], css, below if below != view.MISSING else "")


def _table(table: Table, index: int) -> Section:
    """Return a table of results: a sortable block per model and target, then the notes."""
    papers, grids = view.given_papers(table), []
    for place, block in enumerate(view.blocks(table)):
        rows = []
        for row in block.rows:
            cells = [Cell(row.name, css="")]
            for metric in table.columns():
                number = row.numbers[metric]
                cells.append(_score(number, "{:.1f} to {:.1f}".format(*number.interval) if number.interval else ""))
                if number.difference is not None:
                    cells.append(Cell(number.difference, number.line["delta"]))
            cells += [Cell(row.numbers[metric].paper, row.numbers[metric].line["paper"]) for metric in papers]
            rows.append(cells)
        grids.append(Grid(f"table{index}-{place}", view.heads(table, papers), rows, block.heading))
    return Section(f"table{index}", table.title, grids, "Below each score: its 95 % interval.", table.texts())


def _interval(line: Mapping[str, Any]) -> str:
    """Return a score's 95 % interval with one decimal, or nothing."""
    return "" if pd.isna(line["low"]) else f"{line['low']:.1f} to {line['high']:.1f}"


def _group(group: Group, index: int, upstream: Mapping[str, str]) -> Section:
    """Return cells that no table shows: a block per model and target, a row per cell."""
    blocks: dict[tuple[str, str], list[ScoredCell]] = {}
    for entry in group.entries:
        target = entry.cell.dataset(entry.target).name if entry.target else ""
        blocks.setdefault((entry.cell.model.name, target), []).append(entry)
    grids = []
    for number, ((model, target), entries) in enumerate(blocks.items()):
        sets = dict.fromkeys(dataset.id for entry in entries for dataset in entry.cell.upstream)
        names = {name: upstream.get(name, name) for name in sets} | AVERAGES
        heads = ["Method", *group.keys, "seed", *names.values(), "cell"]
        rows = [_entry_row(entry, group, names) for entry in entries]
        title = f"{model}, fine-tuned on {target}" if target else f"{model}, no target"
        grids.append(Grid(f"group{index}-{number}", heads, rows, title))
    above = [group.note, "Below each score: its 95 % interval."]
    if group.beside:
        above.append("Grey rows stand here for comparison.")
    if any(entry.older for entry in group.entries):
        above.append(f"{OLDER}: of older code.")
    number = len({entry.name for entry in group.own})
    return Section(f"group{index}", group.title, grids, " ".join(filter(None, above)),
                   count=counted(number, "cell"))


def _entry_row(entry: ScoredCell, group: Group, names: Iterable[str]) -> list[Cell]:
    """Return the row of one cell."""
    muted = "beside" if entry.place in group.beside else ""
    cells = [Cell(row_name(entry.cell) + f" {OLDER}" * entry.older, css=muted)]
    for key in group.keys:
        text = entry.value_of(key)
        cells.append(Cell(text, _number(text)))
    cells.append(Cell(str(entry.cell.seed) if entry.cell.train is not None else "-"))
    for name in names:
        score = entry.scores.get(name)
        known = score and Cell(view.decimals(score["value"]), score["value"], below=_interval(score))
        cells.append(known or Cell(view.MISSING))
    return [*cells, Cell(entry.name, css="id")]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _diagnostics(cells: Sequence[Mapping[str, Any]]) -> Grid | None:
    """Return the diagnostics as a table, without columns that no cell has."""
    if not cells:
        return None
    heads = [head for head in cells[0] if head == "cell" or any(cell[head] is not None for cell in cells)]
    rows = []
    for cell in cells:
        row = [Cell(cell["cell"], css="")]
        for head in heads[1:]:
            value, digits = cell[head], ".1f" if head.endswith((" %", " s")) else ".3g"
            row.append(Cell(view.MISSING, css="n none") if value is None else Cell(f"{value:{digits}}", value))
        rows.append(row)
    return Grid("cells", heads, rows, css="stack")


# ---------------------------------------------------------------------------------------------------------------
# Figures

CAPTIONS = {
    "fig1": "Fig. 1. How far each set's gradients at w* disagree with the weights (PID), seen sets beside unseen ones.",
    "fig3": "Fig. 3. Images with references and the answers of three methods.",
    "fig4": "Fig. 4. Every set's score by method, on one scale from 0; bands are 95 % intervals.",
    "fig5": "Fig. 5. More epochs.",
    "fig6": "Fig. 6. More tuned layers.",
    "fig7": "Fig. 7. A larger batch.",
    "plane": "What is kept against what is learned, with contours of H; the line is WiSE-FT, from the base to Full FT.",
    "forgetting": "The scores after every epoch of one training.",
    "regime": "SPIDER against Full FT over the number of training rows and the learning rate.",
    "predict": "What a cell forgets against cheap measures of it, with rank correlations.",
    "lr": "The scores over the learning rate, on validation.",
    "selected": "The share of weights that a method lets move, by layer.",
    "smoke": "A smoke run: few items, the numbers mean nothing.",
}
"""What the figures of a name's first part show."""


def name_parts(name: str) -> tuple[str, str]:
    """Return what a figure's file name begins with, and the rest; a dash begins the name of a slice.

    Args:
        name: e.g. fig4_llava_coco, or fig4-full_ft+spider_llava_coco.
    """
    match = re.match(r"([^_-]*)[_-]?(.*)", name, re.DOTALL)
    assert match is not None
    return match[1], match[2]


def _figure(name: str, data: bytes) -> Figure:
    """Return a picture with what it shows; a slice is not called by the name of the whole."""
    kind, rest = name_parts(name)
    text = name
    if kind in CAPTIONS:
        sliced = name[len(kind) :].startswith("-")
        text = f"{'A slice of: ' * sliced}{CAPTIONS[kind]} {rest}".strip()
    # Every PNG file has its width and height at this offset.
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return Figure(name, text, uri, 0 < width < 1.8 * height)
