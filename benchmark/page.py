"""The report's page: from plain values to one HTML file without network, everything escaped."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark import render
from benchmark.claims import Verdict
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
        "LEAD": "".join(f"<p>{html.escape(text)}</p>" for text in content.lead),
        "CLAIMS": _claims(content.verdicts),
        "TABLES": "".join(_table(table, index) for index, table in enumerate(content.tables)) or "<p>None.</p>",
        "FIGURES": "".join(_figure(name, data) for name, data in content.figures) or "<p>None are drawn yet.</p>",
        "CELLS": _cells(content.cells),
        "PROVENANCE": "".join(f"<li>{count} cells: {html.escape(text)}</li>" for text, count in content.provenance),
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


def _claims(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for item in verdicts:
        css = item.verdict.replace(" ", "-")
        lines = "".join(
            f"<tr><td>{html.escape(label)}</td><td class=n>{value:+.2f}</td>"
            f"<td class=n>{low:+.2f} to {high:+.2f}</td></tr>"
            for label, value, low, high in item.lines
        )
        details = (
            f"<details><summary>{len(item.lines)} differences</summary><table><thead><tr><th>difference</th>"
            f"<th>value</th><th>corrected interval</th></tr></thead><tbody>{lines}</tbody></table></details>"
        ) if item.lines else ""
        rows.append(
            f"<tr><td>{html.escape(item.claim)}<br><small>{html.escape(item.where)}</small></td>"
            f'<td data-value="{html.escape(item.verdict)}"><span class="verdict {css}">'
            f"{html.escape(item.verdict)}</span></td><td>{html.escape(item.text)}{details}</td></tr>"
        )
    return _sortable("claims", ["Claim", "Verdict", "Evidence"], rows)


def _sortable(name: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    """Return a table whose headings are buttons that sort it."""
    cells = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{html.escape(head)}</button></th>' for head in heads
    )
    body = "".join(rows)
    return f'<table class="sortable" id="{name}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'


def _cell(text: str, value: float | None = None, css: str = "n", below: str = "") -> str:
    """Return a cell of numbers; what stands below is small, so that a table fits a screen."""
    sort = "" if value is None or pd.isna(value) else f' data-value="{float(value)!r}"'
    small = f"<small>{html.escape(below)}</small>" if below else ""
    return f'<td class="{css}"{sort}>{html.escape(text)}{small}</td>'


def _table(table: Table, index: int) -> str:
    """Return a table of results: a sortable block per model and target, then the notes."""
    out = [f"<h3>{html.escape(table.title)}</h3>"]
    for number, (model, target, block) in enumerate(table.blocks()):
        heads = ["Method"]
        for metric, name in table.columns().items():
            heads += [name, "difference"] if metric in table.compared() else [name]
        heads += [f"Paper {table.columns()[metric]}" for metric in table.paper_metrics()]
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
            papers = [by_metric[metric] for metric in table.paper_metrics()]
            cells += [_cell(render.paper(line), line["paper"]) for line in papers]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        out.append(f"<h4>{html.escape(f'{model}, fine-tuned on {target}')}</h4>")
        out.append(f'<div class="wide">{_sortable(f"table{index}-{number}", heads, rows)}</div>')
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return f"<section>{''.join(out)}<details><summary>Notes and protocol</summary><ul>{notes}</ul></details></section>"


def _figure(name: str, data: bytes) -> str:
    uri = base64.b64encode(data).decode()
    text = html.escape(name)
    image = f'<img alt="Figure {text}" src="data:image/png;base64,{uri}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _cells(cells: Sequence[Mapping[str, Any]]) -> str:
    if not cells:
        return "<p>None.</p>"
    heads = list(cells[0])
    rows = []
    for cell in cells:
        row = [f"<td>{html.escape(cell['cell'])}</td>"]
        for head in heads[1:]:
            value = cell[head]
            row.append(_cell("-" if value is None else f"{value:.4g}", value))
        rows.append(f"<tr>{''.join(row)}</tr>")
    return f'<div class="wide">{_sortable("cells", heads, rows)}</div>'
