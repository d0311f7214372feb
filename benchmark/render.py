"""Turn a table into terminal text, Markdown, CSV and LaTeX."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import rich.box
import rich.table
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from benchmark.files import write_atomic
from benchmark.tables import MEASURES, OLDER, REFERENCE, Table

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
        wide = Console(file=io.StringIO(), width=10 * WIDTH, force_terminal=True, color_system="standard")
        wide.print(grid)
        console.print(Text.from_ansi(wide.file.getvalue().rstrip()), soft_wrap=True)
    console.print()
    for note in ("±: half the width of the 95 % interval.", *table.notes):
        if plain and note.startswith("Bold:"):
            note = note.replace("Bold:", "[Brackets]:", 1)
        console.print(Padding(Text(note), (0, 0, 0, 2)))


def to_text(table: Table, width: int = WIDTH) -> str:
    """Return the table as plain text of the given width."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    show(table, console)
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


# -- Markdown --------------------------------------------------------------------------------------------


def _markdown_escape(text: str) -> str:
    return re.sub(r"([\\|*_<>`~$\[\]])", r"\\\1", text)


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
            cells = [_markdown_escape(name), title, number(line["value"]), interval, delta, p, seeds]
            cells.append(_markdown_escape(paper(line)))
            rows.append(_markdown_row(cells))
    than = "Full FT" if against(table) == "vs FT" else "its reference"
    head = ["Method", "Metric", "Value", "95 % interval", f"Difference from {than}", "p (Holm)", "By seed", "Paper"]
    rule = ["---", "---", *["--:"] * 6]
    grid = [_markdown_row(head), _markdown_row(rule), *rows]
    return ["<details><summary>Intervals</summary>", "", *grid, "", "</details>"]


def to_markdown(table: Table) -> str:
    """Return the table as Markdown: a block per model and target, each with its intervals folded below."""
    out = [f"## {_markdown_escape(table.title)}", ""]
    for model, target, block in table.blocks():
        head = ["Method"]
        for metric, name in table.columns().items():
            head += [name, against(table)] if metric in table.compared() else [name]
        head += _paper_heads(table).values()
        out += [f"### {_markdown_escape(model)}, fine-tuned on {_markdown_escape(target)}", ""]
        out += [_markdown_row(head), _markdown_row(["---", *["--:"] * (len(head) - 1)])]
        for name, lines in _methods(block):
            cells = [_markdown_escape(name)]
            for metric in table.columns():
                line = lines[metric]
                text = value(line)
                cells.append(f"**{text}**" if line["best"] else text)
                if metric in table.compared():
                    cells.append(_markdown_escape(difference(table, line)))
            cells += [_markdown_escape(paper(lines[metric])) for metric in _paper_heads(table)]
            out.append(_markdown_row(cells))
        out += ["", *_markdown_details(table, block), ""]
    out += [f"- {_markdown_escape(note)}" for note in table.notes]
    return "\n".join(out) + "\n"


# -- CSV -------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Return all numbers, one line per model, target, method and metric, four decimals."""
    return table.frame.drop(columns=["tuned", "delta_error"]).to_csv(index=False, float_format="%.4f")


# -- LaTeX -----------------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\texttt{\char34}",  # \textquotedbl needs another font encoding
    "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "†": r"$\dagger$",
}  # fmt: skip

_LATEX_NAMES = {
    "A_S": r"$\mathcal{A}^{S}$", "A_T": r"$\mathcal{A}^{T}$", "H": r"$\mathcal{H}$", "O": r"$\mathcal{O}$",
}  # fmt: skip


def latex_escape(text: str) -> str:
    """Return text with every character that LaTeX would interpret written out."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_cells(table: Table, lines: dict[str, pd.Series] | None) -> list[str]:
    """Return one method's cells on one target, then the paper's numbers where there are any."""
    papers = _latex_papers(table)
    if lines is None:
        return [MISSING] * (len(table.columns()) + len(papers))
    cells = []
    for metric in table.columns():
        line = lines[metric]
        cell = latex_escape(value(line))
        if line["best"]:
            cell = rf"\textbf{{{cell}}}"
        if metric in table.compared() and not pd.isna(line["delta"]):
            cell += rf" {{\tiny {latex_escape(difference(table, line))}}}"
        cells.append(cell)
    return cells + [latex_escape(paper(lines[metric])) for metric in papers]


def _latex_intervals(table: Table, lines: dict[str, pd.Series] | None) -> list[str]:
    """Return what stands below the cells of `_latex_cells`: intervals, and nothing below the paper's numbers."""
    papers = [""] * len(_latex_papers(table))
    found = [interval(lines[metric]) if lines else "" for metric in table.columns()]
    return [rf"{{\tiny {text.replace('-', '--')}}}" if text else "" for text in found] + papers


def _latex_papers(table: Table) -> list[str]:
    """Return the metrics with a column for the paper's number: only where it has one."""
    given = set(table.frame.loc[table.frame["paper"].notna(), "metric"])
    return [metric for metric in table.paper_metrics() if metric in given]


def to_latex(table: Table) -> str:
    """Return the table in the paper's layout (booktabs): targets side by side, one block per model."""
    heads = [_LATEX_NAMES.get(metric, latex_escape(name)) for metric, name in table.columns().items()]
    heads += [latex_escape(_paper_heads(table)[metric]) for metric in _latex_papers(table)]
    targets = dict(zip(table.frame["target"], table.frame["target_name"], strict=True))
    width = len(heads)
    out = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table*}[t]",
        rf"\caption{{{latex_escape(re.sub(r'^Table [0-9]+[.] ', '', table.title))}}}",  # LaTeX counts by itself
        r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{l{('r' * width) * len(targets)}}}",
        r"\toprule",
        "Method & "
        + " & ".join(rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(name)}}}" for name in targets.values())
        + r" \\",
        " ".join(rf"\cmidrule(lr){{{2 + i * width}-{1 + (i + 1) * width}}}" for i in range(len(targets))),
        " & " + " & ".join(heads * len(targets)) + r" \\",
    ]
    for _, model in table.frame.groupby("model", sort=False):
        out += [r"\midrule", rf"\multicolumn{{{1 + width * len(targets)}}}{{l}}"
                rf"{{\textit{{{latex_escape(model['model_name'].iloc[0])}}}}} \\"]  # fmt: skip
        blocks = {target: _methods(model[model["target"] == target]) for target in targets}
        names = dict.fromkeys(name for target in targets for name, _ in blocks[target])
        for name in names:
            parts = [_latex_cells(table, dict(blocks[target]).get(name)) for target in targets]
            cells = [cell for part in parts for cell in part]
            out.append(f"{latex_escape(name)} & {' & '.join(cells)} " + r"\\")
            parts = [_latex_intervals(table, dict(blocks[target]).get(name)) for target in targets]
            if any(below := [cell for part in parts for cell in part]):
                out.append(f" & {' & '.join(below)} " + r"\\")
    out += [r"\bottomrule", r"\end{tabular}", "", r"\vspace{2pt}\raggedright"]
    out += [rf"{latex_escape(note)}\par" for note in (BELOW, *table.notes)]
    return "\n".join([*out, r"\end{table*}"]) + "\n"


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
    contents = {"md": to_markdown(table), "csv": to_csv(table), "tex": to_latex(table)}
    paths = []
    for suffix, content in contents.items():
        path = Path(folder) / f"{stem}.{suffix}"
        write_atomic(path, content)
        paths.append(path)
    return paths
