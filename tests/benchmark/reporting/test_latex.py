"""Every table compiles at ICML's width: nothing overfull, no float higher than a page, whatever names are in it."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from PIL import ImageFont

from benchmark.config.compose import options_of
from benchmark.config.request import request
from benchmark.paper.numbers import Published
from benchmark.reporting import lettering, render, tables
from benchmark.spec import ROOT
from tests.benchmark.table_rows import METHODS, UPSTREAM, row

TEXT_WIDTH, TEXT_HEIGHT = 487.8, 648.0  # ICML's two columns of 234.9 pt, in points
HOSTILE = "My_method^2: 5% of $x$ & {more} #1 ~ \\input{nothing} <|> \"quoted\" [a] 'b' Müller–Łódź 中文 قطة 🕷 α_λ"
LONG = "averylongnamewithoutanyspacesinit_" * 3
PAPER = ROOT / "results" / "pocket" / "tables"
DOCUMENT = rf"""
\documentclass[10pt,twocolumn,letterpaper]{{article}}
\usepackage{{{",".join(render.PACKAGES)}}}
\setlength{{\textwidth}}{{{TEXT_WIDTH}pt}}\setlength{{\columnsep}}{{18pt}}\setlength{{\textheight}}{{{TEXT_HEIGHT}pt}}
\setlength{{\topmargin}}{{-60pt}}\setlength{{\oddsidemargin}}{{-9pt}}
\hfuzz=0.01pt\vfuzz=0.01pt
\begin{{document}}
""".lstrip()


def large(title: str = "Table 5. Large", **changes) -> tables.Table:
    """All methods, two models, two targets, with the paper's numbers beside H and values above 100."""
    own = {"paper": {"H": Published(166.61, "duplicate")}, **changes}
    found = [
        row(method, model, target, seeds=(0, 1, 2), **own)
        for model in ("llava", "vila") for target in ("flickr30k", "coco") for method in METHODS
    ]
    notes = ["A note about the protocol, at some length. " * 4] * 3
    table = tables.build(title, found, UPSTREAM, notes=notes, draws=50)
    scores = ["value", "low", "high"]
    return replace(table, frame=table.frame.assign(delta=table.frame["delta"] - 100,
                                                   **{name: table.frame[name] + 100 for name in scores}))


def many() -> tables.Table:
    """Thirty rows a block, one target whose notes do not fit below it."""
    names = {f"method_{place}": f"Method {place}, with a long name of its own" for place in range(30)}
    found = [
        replace(row("full_ft", "llava", target), method=method, method_name=name, reference="method_0")
        for target in ("flickr30k", "coco") for method, name in names.items()
    ]
    notes = ["A note about the protocol, at some length. " * 4] * 6
    return tables.build("Variants", found, UPSTREAM, notes=notes, draws=20, shown=("A_S", "A_T", "H", "rms_delta"))


def hostile() -> tables.Table:
    """Names that are markup to LaTeX, that a font lacks, or that have nowhere to break."""
    found = [
        row("full_ft", target_name=HOSTILE, model_name=HOSTILE),
        row("spider", method_name=HOSTILE, target_name=HOSTILE, model_name=HOSTILE),
        row("dare", method_name=LONG, target_name=HOSTILE, model_name=HOSTILE),
    ]
    return tables.build(f"Table 9. {HOSTILE}", found, UPSTREAM, notes=[HOSTILE, "*: a star", "[a bracket]"], draws=20)


MADE = {"large": large, "many": many, "hostile": hostile}
PUBLISHED = [path.stem for path in sorted(PAPER.glob("*.tex"))]


def text_of(name: str) -> str:
    return (PAPER / f"{name}.tex").read_text() if name in PUBLISHED else render.to_latex(MADE[name](), name)


# -- without TeX ------------------------------------------------------------------------------------------------


def width_of(cell: str) -> float:
    """Return the width of a cell in points, by the metrics of Computer Modern, whose small sizes are wider."""
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "cmr10.ttf"), 1000)
    tiny = sum(map(len, re.findall(r"\\tiny ([^{}]*)", cell)))
    plain = re.sub(r"\\(uparrow|downarrow)", "mm", re.sub(r"\\mathcal\{(.)\}", r"\1", cell))
    plain = re.sub(r"\\(tiny|textbf|text\w+|dagger)|[{}$\\^]", "", plain)
    small = plain[: len(plain) - tiny] if r"\tiny" in cell else plain
    rest = plain[len(small) :]
    bold = 1.15 if r"\textbf" in cell else 1.0
    return bold * 7 * 1.14 * font.getlength(small) / 1000 + 5 * 1.37 * font.getlength(rest) / 1000


@pytest.mark.parametrize("name", [*PUBLISHED, *MADE])
def test_a_tables_columns_fit_the_page_by_the_fonts_own_metrics(name):
    for part in text_of(name).split(r"\begin{tabular*}")[1:]:
        head, body = part.split(r"\toprule")
        lines = (line for line in body.split(r"\bottomrule")[0].splitlines() if " & " in line)
        rows = [line.removesuffix(r" \\").split(" & ") for line in lines]
        assert len({len(cells) for cells in rows}) == 1
        columns = [max(map(width_of, cells)) for cells in zip(*rows, strict=True)]
        if "arraybackslash" in head:
            columns[0] = render.name_width(len(columns) - 1)
        assert sum(columns) + 2 * 1.5 * len(columns) <= TEXT_WIDTH, columns


@pytest.mark.parametrize("name", [*PUBLISHED, *MADE])
def test_a_table_has_a_label_a_caption_and_its_notes_outside_the_tabular(name):
    text = text_of(name)
    floats = re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}", text, re.DOTALL)
    assert text.count(rf"\label{{tab:{name}}}") == 1 and rf"\label{{tab:{name}}}" in floats[0]
    assert all(r"\caption{" in part for part in floats)
    assert [r"\begin{tablenotes}" in part for part in floats] == [False] * (len(floats) - 1) + [True]
    notes = floats[-1].split(r"\begin{tablenotes}")[1]
    assert notes.startswith(r"[flushleft]\footnotesize") and r"\end{tabular*}" not in notes
    assert r"\resizebox" not in text and text.isascii()
    for environment in ("table*", "threeparttable", "tabular*", "tablenotes"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}")
    depth = list(itertools.accumulate((c == "{") - (c == "}") for c in re.sub(r"\\[{}]", "", text)))
    assert min(depth) == 0 == depth[-1]


def test_every_published_table_is_there():
    assert set(PUBLISHED) >= {"table2", "table3", "table4", "table5", "table6", "variants"}
    assert {"smoke", *PUBLISHED} >= set(options_of("table"))
    assert request(["table=smoke"]).title


@pytest.mark.slow
def test_a_models_rows_stay_together_and_notes_stand_below_rows():
    floats = render.to_latex(large()).split(r"\begin{table*}")[1:]
    models = [set(re.findall(r"textit\{(\w+), fine-tuned", part)) for part in floats]
    assert all(len(found) == 1 for found in models) and set().union(*models) == {"LLaVA", "VILA"}
    assert all(r"\addtocounter{table}{-1}\caption{Large (continued)}" in part for part in floats[1:])
    for part in render.to_latex(many()).split(r"\begin{table*}")[1:]:
        assert part.count(r"\addlinespace") >= 8  # no page of one orphan row


def test_text_becomes_latex_that_every_engine_prints():
    assert lettering.latex(r"a_b 5% {x} $ & # ~ ^ \n <|>") == (
        r"a\_b 5\% \{x\} \$ \& \# \textasciitilde{} \textasciicircum{} \textbackslash{}n "
        r"\textless{}\textbar{}\textgreater{}"
    )
    assert lettering.latex("Müller, Łódź, ñ, ï") == r"M\"{u}ller, \L{}\'{o}d\'{z}, \~{n}, \"{\i}"
    spelled = lettering.latex("α λ\n中 🕷\ufe0f\x07").replace(r"\allowbreak{}", "")
    assert spelled == r"$\alpha$ $\lambda$ {[}U+4E2D{]} {[}spider{]}"


# -- with TeX -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here: widths are checked by metrics alone")
@pytest.mark.parametrize("name", [*PUBLISHED, *MADE])
def test_a_table_compiles_at_icmls_width(name, tmp_path):
    (tmp_path / "table.tex").write_text(text_of(name))
    body = rf"Table~\ref{{tab:{name}}} stands on page~\pageref{{tab:{name}}}.\input{{table}}"
    (tmp_path / "paper.tex").write_text(DOCUMENT + body + "\n\\end{document}\n")
    for _ in range(2):  # the second run knows the label
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"], cwd=tmp_path, capture_output=True,
            text=True, errors="replace", timeout=120, stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout[-2000:]
    wrong = re.findall(r"(?:Overfull|Float too large|undefined|Missing character|Command .* invalid).*", done.stdout)
    assert not wrong, wrong
