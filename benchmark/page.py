"""The report's page: from plain values to one HTML file without network, everything escaped."""

from __future__ import annotations

import base64
import html
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark import render
from benchmark.claims import CONTRADICTED, HOLDS, NOT_RUN, NOT_SHOWN, Verdict
from benchmark.tables import MEASURES, Table

PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Content:
    """What the page shows; plain values, escaped only when the page is made."""

    title: str
    lead: Sequence[str]
    verdicts: Sequence[Verdict]
    tables: Sequence[Table]
    figures: Sequence[tuple[str, bytes]]
    predictions: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]
    provenance: Sequence[tuple[str, int]]


def page(content: Content) -> str:
    """Return the page. Every text is escaped; answers of models reach the page only as text nodes.

    Args:
        content: what it shows.
    """
    parts = {
        "TITLE": html.escape(content.title),
        "LEAD": "".join(f"<p>{_prose(text)}</p>" for text in content.lead),
        "NUMBER": str(len(content.verdicts)),
        "VERDICTS": _counts(content.verdicts),
        "CLAIMS": _claims(content.verdicts),
        "TABLES": "".join(_table(table, index) for index, table in enumerate(content.tables)) or "<p>None.</p>",
        "FIGURES": "".join(_figure(name, data) for name, data in content.figures) or "<p>None are drawn yet.</p>",
        "CELLS": _cells(content.cells),
        "PROVENANCE": "".join(
            f"<li>{count} cell{'s' * (count != 1)}: {html.escape(text)}</li>" for text, count in content.provenance
        ) or "<li>None.</li>",
        "DATA": script_json(content.predictions),
    }
    text = PAGE.read_text(encoding="utf-8")
    head, *rest = text.split("{{")
    # One pass: a value that holds a placeholder's name is not filled in again.
    filled = [head]
    for piece in rest:
        name, _, tail = piece.partition("}}")
        filled += [parts[name], tail]
    return "".join(filled)


def script_json(value: Any) -> str:
    """Return JSON that no HTML parser takes for markup inside a script element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _prose(text: str) -> str:
    """Return escaped text with A^S and A^T as the paper prints them."""
    return re.sub(r"\bA\^([ST])\b", r"A<sup>\1</sup>", html.escape(text))


def _counts(verdicts: Sequence[Verdict]) -> str:
    """Return how many claims have each verdict, in the order in which a reader asks."""
    found = Counter(item.verdict for item in verdicts)
    return ", ".join(f"{name}: {found[name]}" for name in (HOLDS, CONTRADICTED, NOT_SHOWN, NOT_RUN) if found[name])


def _claims(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for item in verdicts:
        css = item.verdict.replace(" ", "-")
        lines = "".join(
            f"<tr><td>{_prose(label)}</td><td class=n>{value:+.2f}</td>"
            f"<td class=n>{low:+.2f} to {high:+.2f}</td></tr>"
            for label, value, low, high in item.lines
        )
        details = (
            f"<details><summary>{len(item.lines)} difference{'s' * (len(item.lines) != 1)}</summary>"
            '<table><thead><tr><th>difference</th><th class="n">value</th><th class="n">corrected interval</th></tr>'
            f"</thead><tbody>{lines}</tbody></table></details>"
        ) if item.lines else ""
        rows.append(
            f"<tr><td>{_prose(item.claim)}<small>{_prose(item.where)}</small></td>"
            f'<td data-value="{html.escape(item.verdict)}"><span class="verdict {css}">'
            f"{html.escape(item.verdict)}</span></td><td>{_prose(item.text)}{details}</td></tr>"
        )
    return _sortable("claims", ["Claim", "Verdict", "Evidence"], rows, numbers=False)


def _sortable(name: str, heads: Sequence[str], rows: Sequence[str], numbers: bool = True) -> str:
    """Return a table whose headings are buttons that sort it; with numbers, all columns but the first are numbers."""
    cells = "".join(
        f'<th scope="col" aria-sort="none"{" class=n" * (numbers and place > 0)}>'
        f'<button type="button">{_prose(head)}</button></th>' for place, head in enumerate(heads)
    )
    body = "".join(rows)
    table = f'<table class="sortable" id="{name}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide" tabindex="0" role="region" aria-label="Table {name}">{table}</div>'


def _cell(text: str, value: float | None = None, css: str = "n", below: str = "") -> str:
    """Return a cell of numbers; what stands below is small, so that a table fits a screen."""
    sort = "" if value is None or pd.isna(value) else f' data-value="{float(value)!r}"'
    small = f"<small>{html.escape(below)}</small>" if below else ""
    return f'<td class="{css}"{sort}>{html.escape(text)}{small}</td>'


def _table(table: Table, index: int) -> str:
    """Return a table of results: a sortable block per model and target, then the notes."""
    out = [f"<h3>{_prose(table.title)}</h3>"]
    given = set(table.frame.loc[table.frame["paper"].notna(), "metric"])
    shown = [metric for metric in table.paper_metrics() if metric in given]  # a column of dashes says nothing
    for number, (model, target, block) in enumerate(table.blocks()):
        heads = ["Method"]
        for metric, name in table.columns().items():
            heads += [name, render.against(table)] if metric in table.compared() else [name]
        heads += [f"Paper {table.columns()[metric]}" for metric in shown]
        rows = []
        for _, lines in block.groupby("method", sort=False):
            by_metric = {line["metric"]: line for _, line in lines.iterrows()}
            cells = [f"<td>{html.escape(render.name_of(lines.iloc[0]))}</td>"]
            for metric in table.columns():
                line = by_metric[metric]
                interval = ""
                if not pd.isna(line["low"]) and metric not in MEASURES:
                    interval = f"{line['low']:.1f} to {line['high']:.1f}"
                cells.append(_cell(render.value(line), line["value"], "n best" if line["best"] else "n", interval))
                if metric in table.compared():
                    cells.append(_cell(render.difference(table, line), line["delta"]))
            papers = [by_metric[metric] for metric in shown]
            cells += [_cell(render.paper(line), line["paper"]) for line in papers]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        out.append(f"<h4>{html.escape(f'{model}, fine-tuned on {target}')}</h4>")
        out.append(_sortable(f"table{index}-{number}", heads, rows))
    notes = "".join(f"<li>{_prose(note)}</li>" for note in table.notes)
    below = f"<details class=notes><summary>Notes and protocol</summary><ul>{notes}</ul></details>"
    return f"<section>{''.join(out)}{below}</section>"


CAPTIONS = {
    "fig1": "Fig. 1. How far each set's gradients at w* disagree with the weights, seen sets beside unseen ones.",
    "fig3": "Fig. 3. Images with references and the answers of three methods.",
    "fig4": "Fig. 4. Every set's score by method, on one scale from 0; bands are 95 % intervals.",
    "fig5": "Fig. 5. More epochs.",
    "fig6": "Fig. 6. More tuned layers.",
    "fig7": "Fig. 7. A larger batch.",
    "plane": "What is kept against what is learned, with contours of H; the line is WiSE-FT, from the base to Full FT.",
    "forgetting": "The scores after every epoch of one training.",
    "lr": "The scores over the learning rate, on validation.",
    "selected": "The share of weights that a method lets move, by layer.",
}
"""What the figures of a name's first part show."""


def _figure(name: str, data: bytes) -> str:
    """Return a picture; one that is not much wider than high takes half a line."""
    uri = base64.b64encode(data).decode()
    stem = html.escape(name)
    kind, _, rest = name.partition("_")
    text = html.escape(f"{CAPTIONS[kind]} {rest}".strip() if kind in CAPTIONS else name)
    # Width and height stand at this place of every PNG file.
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    css = ' class="half"' if 0 < width < 1.8 * height else ""
    image = f'<img alt="Figure {stem}" src="data:image/png;base64,{uri}">'
    below = f"{text} <small>(beside this page as {stem}.pdf and .csv)</small>"
    return f"<figure{css}>{image}<figcaption>{below}</figcaption></figure>"


def _cells(cells: Sequence[Mapping[str, Any]]) -> str:
    if not cells:
        return "<p>None.</p>"
    heads = list(cells[0])
    rows = []
    for cell in cells:
        row = [f"<td>{html.escape(cell['cell'])}</td>"]
        for head in heads[1:]:
            value, digits = cell[head], ".1f" if head.endswith((" %", " s")) else ".3g"
            row.append(_cell("-" if value is None else f"{value:{digits}}", value))
        rows.append(f"<tr>{''.join(row)}</tr>")
    return _sortable("cells", heads, rows)
