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
from benchmark.reporting.tables import MEASURES, OLDER, REFERENCE, Table

MISSING = "-"
BELOW = "Below each score: its 95 % interval."
WIDTH = 110


def number(value: float) -> str:
    """Return a value with two decimals, or '-' if there is none."""
    return MISSING if pd.isna(value) else f"{value:.2f}"


def _arrow(line: pd.Series) -> str:
    """Return the difference from Full FT, like "↑3.20*"."""
    if pd.isna(line["delta"]):
        return MISSING
    size = f"{abs(line['delta']):.2f}"
    arrow = "" if size == "0.00" else "↑" if line["delta"] > 0 else "↓"
    return f"{arrow}{size}{'*' * bool(line['star'])}"


def value(line: pd.Series, column: str = "value") -> str:
    """Return a line's number as printed: two decimals for scores, as the measure says for others."""
    measure = MEASURES.get(line["metric"])
    if measure is None or pd.isna(line[column]):
        return number(line[column])
    return f"{line[column] * measure.scale:.{measure.digits}f}"


def interval(line: pd.Series) -> str:
    """Return a score's 95 % interval like "79.1-82.4", or nothing where there is none."""
    return "" if pd.isna(line["low"]) or line["metric"] in MEASURES else f"{line['low']:.1f}-{line['high']:.1f}"


def _half(line: pd.Series) -> str:
    """Return half the width of that interval, which a terminal has room for."""
    return f"±{(line['high'] - line['low']) / 2:.1f}"


def paper(line: pd.Series) -> str:
    """Return the paper's number, and how far ours lies from it, like "55.16 (+1.20)"."""
    text = value(line, "paper") + "?" * bool(line["paper_suspect"])
    if pd.isna(line["paper"]) or pd.isna(line["value"]):
        return text
    measure = MEASURES.get(line["metric"])
    gap = (line["value"] - line["paper"]) * (measure.scale if measure else 1)
    return f"{text} ({gap:+.{measure.digits if measure else 2}f})"


def _paper_heads(table: Table) -> dict[str, str]:
    """Return metric -> heading of its column with the paper's number."""
    return {metric: f"Paper {table.columns()[metric]}" for metric in table.paper_metrics()}


def against(table: Table) -> str:
    """Return the heading of the arrows; with several references each row names its own."""
    return "vs FT" if set(table.frame["reference"]) <= {"", REFERENCE} else "vs"


def difference(table: Table, line: pd.Series) -> str:
    """Return arrow, size and star, with the reference where rows have different ones."""
    text = _arrow(line)
    return f"{text} {line['reference']}" if against(table) == "vs" and text != MISSING else text


def name_of(line: pd.Series) -> str:
    """Return the printed name of a line's method, with a mark if older code made its numbers."""
    return f"{line['method_name']} {OLDER}" if line["older_code"] else line["method_name"]


def _methods(block: pd.DataFrame) -> list[tuple[str, dict[str, pd.Series]]]:
    """Return (printed name, metric -> line) for each method of a block."""
    return [
        (name_of(lines.iloc[0]), {line["metric"]: line for _, line in lines.iterrows()})
        for _, lines in block.groupby("method", sort=False)
    ]


# -- terminal --------------------------------------------------------------------------------------------


def _rich_block(table: Table, title: str, block: pd.DataFrame, plain: bool) -> rich.table.Table:
    """Return one block; without styles the best values stand in brackets instead of bold."""
    grid = rich.table.Table(
        title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    grid.add_column("Method", no_wrap=True)
    for metric, name in table.columns().items():
        grid.add_column(name, justify="right", no_wrap=True)
        if metric in table.compared():
            grid.add_column(against(table), justify="left", no_wrap=True)
    for head in _paper_heads(table).values():
        grid.add_column(head, justify="right", no_wrap=True)
    for name, lines in _methods(block):
        cells = [Text(name)]
        for metric in table.columns():
            line = lines[metric]
            text = value(line)
            cell = Text(f"[{text}]" if plain else text, style="" if plain else "bold") if line["best"] else Text(text)
            cells.append(cell.append(f"\n{_half(line)}", style="not bold dim") if interval(line) else cell)
            if metric in table.compared():
                cells.append(Text(difference(table, line)))
        cells += [Text(paper(lines[metric])) for metric in _paper_heads(table)]
        grid.add_row(*cells)
    return grid


def show(table: Table, console: Console) -> None:
    """Print a table to a terminal: one block per model and target, then the notes.

    Args:
        table: the table.
        console: where to; without colour support the best values stand in brackets.
    """
    plain = not console.is_terminal or console.no_color
    console.print(Text(table.title, style="bold"))
    for model, target, block in table.blocks():
        console.print()
        grid = _rich_block(table, f"{model}, fine-tuned on {target}", block, plain)
        # Laid out at full width: rich would cut numbers short where a narrow terminal simply wraps lines.
        laid_out = io.StringIO()
        wide = Console(file=laid_out, width=10 * WIDTH, force_terminal=True, color_system="standard")
        wide.print(grid)
        console.print(Text.from_ansi(laid_out.getvalue().rstrip()), soft_wrap=True)
    console.print()
    for note in ("±: half the width of the 95 % interval.", *table.notes):
        if plain and note.startswith("Bold:"):
            note = note.replace("Bold:", "[Brackets]:", 1)
        console.print(Padding(Text(note), (0, 0, 0, 2)))


def to_text(table: Table, width: int = WIDTH) -> str:
    """Return the table as plain text of the given width."""
    output = io.StringIO()
    show(table, Console(file=output, width=width, force_terminal=False, color_system=None))
    lines = output.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


# -- Markdown --------------------------------------------------------------------------------------------


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_details(table: Table, block: pd.DataFrame) -> list[str]:
    """Return a folded table with interval, difference and values by seed of each number."""
    rows = []
    for name, lines in _methods(block):
        for metric, title in table.columns().items():
            line = lines[metric]
            if pd.isna(line["value"]) or metric in MEASURES:
                continue
            interval = f"{line['low']:.2f} to {line['high']:.2f}"
            delta = MISSING
            if not pd.isna(line["delta"]):
                delta = f"{line['delta']:+.2f} ({line['delta_low']:+.2f} to {line['delta_high']:+.2f})"
            p = MISSING if pd.isna(line["p_holm"]) else f"{line['p_holm']:.3f}"
            seeds = " ".join(f"{float(value):.2f}" for value in line["by_seed"].split()) or MISSING
            written = (lettering.markdown(text) for text in (name, title))
            cells = [*written, number(line["value"]), interval, delta, p, seeds, lettering.markdown(paper(line))]
            rows.append(_markdown_row(cells))
    than = "Full FT" if against(table) == "vs FT" else "its reference"
    head = ["Method", "Metric", "Value", "95 % interval", f"Difference from {than}", "p (Holm)", "By seed", "Paper"]
    rule = ["---", "---", *["--:"] * 6]
    grid = [_markdown_row(head), _markdown_row(rule), *rows]
    return ["<details><summary>Intervals</summary>", "", *grid, "", "</details>"]


def to_markdown(table: Table) -> str:
    """Return the table as Markdown: a block per model and target, each with its intervals folded below."""
    out = [f"## {lettering.markdown(table.title)}", ""]
    for model, target, block in table.blocks():
        head = ["Method"]
        for metric, name in table.columns().items():
            head += [name, against(table)] if metric in table.compared() else [name]
        head = [lettering.markdown(name) for name in (*head, *_paper_heads(table).values())]
        out += [f"### {lettering.markdown(model)}, fine-tuned on {lettering.markdown(target)}", ""]
        out += [_markdown_row(head), _markdown_row(["---", *["--:"] * (len(head) - 1)])]
        for name, lines in _methods(block):
            cells = [lettering.markdown(name)]
            for metric in table.columns():
                line = lines[metric]
                text = value(line)
                cells.append(f"**{text}**" if line["best"] else text)
                if metric in table.compared():
                    cells.append(lettering.markdown(difference(table, line)))
            cells += [lettering.markdown(paper(lines[metric])) for metric in _paper_heads(table)]
            out.append(_markdown_row(cells))
        out += ["", *_markdown_details(table, block), ""]
    out += [f"- {lettering.markdown(note)}" for note in table.notes]
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


def _latex_cells(table: Table, lines: dict[str, pd.Series]) -> list[str]:
    """Return one method's cells, then the paper's numbers where there are any."""
    cells = []
    for metric in table.columns():
        line = lines[metric]
        cell = lettering.latex(value(line))
        if line["best"]:
            cell = rf"\textbf{{{cell}}}"
        if metric in table.compared() and not pd.isna(line["delta"]):
            cell += rf" {{\tiny {lettering.latex(difference(table, line))}}}"
        cells.append(cell)
    return cells + [lettering.latex(paper(lines[metric])) for metric in _latex_papers(table)]


def _latex_intervals(table: Table, lines: dict[str, pd.Series]) -> list[str]:
    """Return what stands below the cells of `_latex_cells`: intervals, and nothing below the paper's numbers."""
    found = [interval(lines[metric]) for metric in table.columns()]
    tiny = [rf"{{\tiny {text.replace('-', '--')}}}" if text else "" for text in found]
    return tiny + [""] * len(_latex_papers(table))


def _latex_papers(table: Table) -> list[str]:
    """Return the metrics with a column for the paper's number: only where it has one."""
    given = set(table.frame.loc[table.frame["paper"].notna(), "metric"])
    return [metric for metric in table.paper_metrics() if metric in given]


def _latex_rows(table: Table, block: pd.DataFrame) -> list[str]:
    """Return the rows of one model and target, each of one or two printed lines."""
    rows: list[str] = []
    for name, lines in _methods(block):
        row = f"{_latex_name(name)} & {' & '.join(_latex_cells(table, lines))} " + r"\\"
        below = _latex_intervals(table, lines)
        # No page ends between a number and its interval.
        row = f"{row}\n & {' & '.join(below)} " + r"\\" if any(below) else row
        rows.append(rf"\addlinespace[{GAP}pt]" + f"\n{row}" if rows else row)
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
    blocks = [(model, target, _latex_rows(table, block)) for model, target, block in table.blocks()]
    below = NOTE * sum(1 + len(note) // NOTE_LETTERS for note in notes)
    whole = CAPTION + below + sum(HEAD + sum(map(_height, rows)) for _, _, rows in blocks)
    floats: list[list[str]] = [[]]
    left, before = PAGE - CAPTION, blocks[0][0]
    for place, (model, target, rows) in enumerate(blocks):
        extra = HEAD + (below if place == len(blocks) - 1 else 0)
        high = sum(map(_height, rows))
        parts = next((n for n in range(1, len(rows)) if high / n + extra <= PAGE - CAPTION), len(rows))
        size = math.ceil(len(rows) / parts)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            height = extra + sum(map(_height, part))
            if floats[-1] and (height > left or start or (whole > PAGE and model != before)):
                floats.append([])
                left = PAGE - CAPTION
            head = f"{model}, fine-tuned on {target}{' (continued)' if start else ''}"
            floats[-1] += [
                r"\midrule",
                # Without a width of its own: TeX would give the last column what a spanning cell takes.
                rf"\multicolumn{{{1 + columns}}}{{@{{}}l@{{}}}}{{\makebox[0pt][l]{{\parbox[t]{{\textwidth}}"
                rf"{{\raggedright\strut\textit{{{lettering.latex(head)}}}\strut}}}}}} \\",
                *part,
            ]
            left, before = left - height, model
    return floats


def to_latex(table: Table, label: str = "table") -> str:
    """Return the table for a two-column paper: blocks of model and target below each other, the notes under the last.

    Every float is as wide as the page. What is too high for a page goes on in another float of the same number.

    Args:
        table: the table.
        label: what `\\ref{tab:LABEL}` finds.
    """
    heads = [_LATEX_NAMES.get(metric, lettering.latex(name)) for metric, name in table.columns().items()]
    heads += [lettering.latex(_paper_heads(table)[metric]) for metric in _latex_papers(table)]
    caption = lettering.latex(re.sub(r"^Table [0-9]+[.] ", "", table.title))  # LaTeX counts by itself
    notes = [BELOW, *table.notes]
    longest, room = max(map(len, table.frame["method_name"])), name_width(len(heads))
    names = "l" if LETTER * longest <= room else rf">{{\raggedright\arraybackslash}}p{{{room:.0f}pt}}"
    columns = rf"@{{\extracolsep{{\fill}}}}{names}{'r' * len(heads)}@{{}}"
    floats = _latex_floats(table, len(heads), notes)
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
            r"\toprule", f"Method & {' & '.join(heads)} " + r"\\", *rows, r"\bottomrule", r"\end{tabular*}",
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
