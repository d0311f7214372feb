"""Turn a table into terminal text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import rich.box
import rich.table
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from benchmark.core.files import write_atomic
from benchmark.reporting import lettering
from benchmark.reporting.tables import Table
from benchmark.reporting.view import MISSING, Block, Row, against, blocks, given_papers, heads

BELOW = "Below each score: its 95 % interval."
WIDTH = 110


# -- terminal --------------------------------------------------------------------------------------------


def _rich_block(table: Table, block: Block, plain: bool) -> rich.table.Table:
    """Return one block; without styles the best values stand in brackets instead of bold."""
    grid = rich.table.Table(
        title=block.heading, title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    papers = table.paper_metrics()
    for head in heads(table, papers):
        grid.add_column(head, justify="left" if head in ("Method", against(table)) else "right", no_wrap=True)
    for row in block.rows:
        cells = [Text(row.name)]
        for metric in table.columns():
            number = row.numbers[metric]
            text = f"[{number.text}]" if plain and number.best else number.text
            cell = Text(text, style="bold" if number.best and not plain else "")
            if number.interval:
                low, high = number.interval
                cell.append(f"\n±{(high - low) / 2:.1f}", style="not bold dim")
            cells.append(cell)
            if number.difference is not None:
                cells.append(Text(number.difference))
        grid.add_row(*cells, *(Text(row.numbers[metric].paper) for metric in papers))
    return grid


def show(table: Table, console: Console) -> None:
    """Print a table to a terminal: one block per model and target, then the notes.

    Args:
        table: the table.
        console: where to; without colour support the best values stand in brackets.
    """
    plain = not console.is_terminal or console.no_color
    console.print(Text(table.title, style="bold"))
    for block in blocks(table):
        console.print()
        # Laid out at full width: rich would cut numbers short where a narrow terminal simply wraps lines.
        laid_out = io.StringIO()
        wide = Console(file=laid_out, width=10 * WIDTH, force_terminal=True, color_system="standard")
        wide.print(_rich_block(table, block, plain))
        console.print(Text.from_ansi(laid_out.getvalue().rstrip()), soft_wrap=True)
    console.print()
    for note in ("±: half the width of the 95 % interval.", *table.texts("[Brackets]" if plain else "Bold")):
        console.print(Padding(Text(note), (0, 0, 0, 2)))


# -- Markdown --------------------------------------------------------------------------------------------


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_details(table: Table, block: Block) -> list[str]:
    """Return a folded table with interval, difference and values by seed of each number."""
    rows = []
    for row in block.rows:
        for metric, title in table.columns().items():
            number = row.numbers[metric]
            line = number.line
            if number.interval is None:
                continue
            interval = "{:.2f} to {:.2f}".format(*number.interval)
            delta = MISSING
            if not pd.isna(line["delta"]):
                delta = f"{line['delta']:+.2f} ({line['delta_low']:+.2f} to {line['delta_high']:+.2f})"
            p = MISSING if pd.isna(line["p_holm"]) else f"{line['p_holm']:.3f}"
            seeds = " ".join(f"{float(value):.2f}" for value in line["by_seed"].split()) or MISSING
            name, head, paper = map(lettering.markdown, (row.name, title, number.paper))
            rows.append(_markdown_row([name, head, number.text, interval, delta, p, seeds, paper]))
    than = "Full FT" if against(table) == "vs FT" else "its reference"
    top = ["Method", "Metric", "Value", "95 % interval", f"Difference from {than}", "p (Holm)", "By seed", "Paper"]
    rule = ["---", "---", *["--:"] * 6]
    grid = [_markdown_row(top), _markdown_row(rule), *rows]
    return ["<details><summary>Intervals</summary>", "", *grid, "", "</details>"]


def to_markdown(table: Table) -> str:
    """Return the table as Markdown: a block per model and target, each with its intervals folded below."""
    papers = table.paper_metrics()
    head = [lettering.markdown(name) for name in heads(table, papers)]
    out = [f"## {lettering.markdown(table.title)}", ""]
    for block in blocks(table):
        out += [f"### {lettering.markdown(block.model)}, fine-tuned on {lettering.markdown(block.target)}", ""]
        out += [_markdown_row(head), _markdown_row(["---", *["--:"] * (len(head) - 1)])]
        for row in block.rows:
            cells = [lettering.markdown(row.name)]
            for metric in table.columns():
                number = row.numbers[metric]
                cells.append(f"**{number.text}**" if number.best else number.text)
                if number.difference is not None:
                    cells.append(lettering.markdown(number.difference))
            out.append(_markdown_row([*cells, *(lettering.markdown(row.numbers[metric].paper) for metric in papers)]))
        out += ["", *_markdown_details(table, block), ""]
    out += [f"- {lettering.markdown(note)}" for note in table.texts()]
    return "\n".join(out) + "\n"


# -- CSV -------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Return all numbers, one line per model, target, method and metric, four decimals."""
    return lettering.spreadsheet(table.frame.drop(columns=["tuned", "delta_error"]))


# -- LaTeX -----------------------------------------------------------------------------------------------

_LATEX_NAMES = {
    "A_S": r"$\mathcal{A}^{S}$", "A_T": r"$\mathcal{A}^{T}$", "H": r"$\mathcal{H}$", "O": r"$\mathcal{O}$",
}
PACKAGES = ("array", "booktabs", "threeparttable")
# What fits on a page of ICML's two columns (648 pt high), in points: rows of 7 pt type, notes of 8 pt.
PAGE, CAPTION, HEAD, LINE, GAP, NOTE, NOTE_LETTERS = 600.0, 45.0, 20.0, 7.2, 1.5, 9.5, 110
WIDTH_PT, COLUMN, LETTER, NAME = 487.8, 50.0, 4.0, 80.0  # the page, a column of numbers, a letter, the least for names


def _latex_cells(table: Table, row: Row, papers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a method's cells, then the paper's numbers; and what stands below them: intervals."""
    cells, below = [], []
    for metric in table.columns():
        number = row.numbers[metric]
        cell = lettering.latex(number.text)
        if number.best:
            cell = rf"\textbf{{{cell}}}"
        if number.difference not in (None, MISSING):
            cell += rf" {{\tiny {lettering.latex(number.difference)}}}"
        cells.append(cell)
        below.append(r"{{\tiny {:.1f}--{:.1f}}}".format(*number.interval) if number.interval else "")
    return [*cells, *(lettering.latex(row.numbers[metric].paper) for metric in papers)], [*below, *([""] * len(papers))]


def _latex_rows(table: Table, block: Block) -> list[str]:
    """Return the rows of one model and target, each of one or two printed lines."""
    rows: list[str] = []
    papers = given_papers(table)
    for row in block.rows:
        cells, below = _latex_cells(table, row, papers)
        text = f"{_latex_name(row.name)} & {' & '.join(cells)} " + r"\\"
        # No page ends between a number and its interval.
        text = f"{text}\n & {' & '.join(below)} " + r"\\" if any(below) else text
        rows.append(rf"\addlinespace[{GAP}pt]" + f"\n{text}" if rows else text)
    return rows


def _latex_name(name: str) -> str:
    """Return a method's name, which may be broken into lines wherever a word is too long for its column."""
    words = ([word[i : i + 12] for i in range(0, len(word), 12)] for word in lettering.tidy(name).split())
    return " ".join(r"\allowbreak{}".join(map(lettering.latex, parts)) for parts in words)


def name_width(columns: int) -> float:
    """Return how many points the names of methods may take beside so many columns; longer ones wrap."""
    return max(NAME, WIDTH_PT - COLUMN * columns)


def _height(row: str) -> float:
    """Return how high a row of `_latex_rows` is, in points; its first column may wrap."""
    name = next(line for line in row.splitlines() if " & " in line).partition(" & ")[0]
    lines = sum(line.endswith(r"\\") for line in row.splitlines())
    wrapped = math.ceil(LETTER * len(name) / name_width(row.splitlines()[-1].count(" & ")))
    return LINE * max(lines, lines - 1 + wrapped) + GAP


def _latex_floats(table: Table, columns: int, notes: Sequence[str]) -> list[list[str]]:
    """Return the rows of each float: blocks of model and target below each other, as many as a page holds.

    A model starts a float of its own if the table needs several. A block that no page holds is cut into equal parts.
    """
    parted = [(block, _latex_rows(table, block)) for block in blocks(table)]
    below = NOTE * sum(1 + len(note) // NOTE_LETTERS for note in notes)
    whole = CAPTION + below + sum(HEAD + sum(map(_height, rows)) for _, rows in parted)
    floats: list[list[str]] = [[]]
    left, before = PAGE - CAPTION, parted[0][0].model
    for place, (block, rows) in enumerate(parted):
        extra = HEAD + (below if place == len(parted) - 1 else 0)
        high = sum(map(_height, rows))
        parts = next((n for n in range(1, len(rows)) if high / n + extra <= PAGE - CAPTION), len(rows))
        size = math.ceil(len(rows) / parts)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            height = extra + sum(map(_height, part))
            if floats[-1] and (height > left or start or (whole > PAGE and block.model != before)):
                floats.append([])
                left = PAGE - CAPTION
            head = f"{block.heading}{' (continued)' if start else ''}"
            floats[-1] += [
                r"\midrule",
                # Without a width of its own: TeX would give the last column what a spanning cell takes.
                rf"\multicolumn{{{1 + columns}}}{{@{{}}l@{{}}}}{{\makebox[0pt][l]{{\parbox[t]{{\textwidth}}"
                rf"{{\raggedright\strut\textit{{{lettering.latex(head)}}}\strut}}}}}} \\",
                *part,
            ]
            left, before = left - height, block.model
    return floats


def to_latex(table: Table, label: str = "table") -> str:
    """Return the table for a two-column paper: blocks of model and target below each other, the notes under the last.

    Every float is as wide as the page. What is too high for a page goes on in another float of the same number.

    Args:
        table: the table.
        label: what `\\ref{tab:LABEL}` finds.
    """
    names = table.columns()
    head = [_LATEX_NAMES.get(metric, lettering.latex(name)) for metric, name in names.items()]
    head += [lettering.latex(f"Paper {names[metric]}") for metric in given_papers(table)]
    caption = lettering.latex(re.sub(r"^Table [0-9]+[.] ", "", table.title))  # LaTeX counts by itself
    notes = [BELOW, *table.texts()]
    longest, room = max(map(len, table.frame["method_name"])), name_width(len(head))
    first = "l" if LETTER * longest <= room else rf">{{\raggedright\arraybackslash}}p{{{room:.0f}pt}}"
    columns = rf"@{{\extracolsep{{\fill}}}}{first}{'r' * len(head)}@{{}}"
    floats = _latex_floats(table, len(head), notes)
    out = [f"% needs \\usepackage{{{','.join(PACKAGES)}}}"]
    for place, rows in enumerate(floats):
        if place == 0:
            title = rf"\caption{{{caption}}}\label{{tab:{label}}}"
        else:
            title = rf"\addtocounter{{table}}{{-1}}\caption{{{caption} (continued)}}"
        out += [
            r"\begin{table*}[tp]", r"\centering", r"\begin{threeparttable}", title,
            r"\scriptsize\setlength{\tabcolsep}{1.5pt}\renewcommand{\arraystretch}{0.9}",
            rf"\begin{{tabular*}}{{\textwidth}}{{{columns}}}",
            r"\toprule", f"Method & {' & '.join(head)} " + r"\\", *rows, r"\bottomrule", r"\end{tabular*}",
        ]
        if place == len(floats) - 1:
            out.append(r"\begin{tablenotes}[flushleft]\footnotesize\setlength{\labelsep}{0pt}\raggedright")
            out += [rf"\item {lettering.latex(note)}" for note in notes]
            out.append(r"\end{tablenotes}")
        out += [r"\end{threeparttable}", r"\end{table*}"]
    return "\n".join(out) + "\n"


# -- files -----------------------------------------------------------------------------------------------


def write(table: Table, folder: Path, stem: str) -> list[Path]:
    """Write a table as Markdown, CSV and LaTeX.

    Args:
        table: the table.
        folder: usually results/.../tables.
        stem: file name without suffix, such as "table5".

    Returns:
        The three files.

    Raises:
        UserError: the folder cannot be written.
    """
    contents = {"md": to_markdown(table), "csv": to_csv(table), "tex": to_latex(table, stem)}
    paths = []
    for suffix, content in contents.items():
        path = Path(folder) / f"{stem}.{suffix}"
        write_atomic(path, content)
        paths.append(path)
    return paths
