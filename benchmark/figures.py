"""Figures: radar plots (as the paper's Fig. 4), values with intervals and seeds.

Every figure is written as PNG, PDF and CSV (the numbers drawn). Lines differ in colour (Okabe and Ito's
palette, safe for colour-blind readers), dash and marker, so that they can be told apart in grey.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from benchmark.files import write_atomic  # noqa: E402
from benchmark.tables import REFERENCE, Table  # noqa: E402

MATH = {"A_S": r"$\mathcal{A}^S$", "A_T": r"$\mathcal{A}^T$", "H": r"$\mathcal{H}$", "O": r"$\mathcal{O}$"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "spiderbench",
}


@dataclass(frozen=True)
class Style:
    """How a method is drawn: colour, dash, marker, and whether it stands out."""

    colour: str
    dash: str | tuple
    marker: str
    emphasis: bool = False


_STYLES = {
    "zero_shot": Style("#000000", (0, (1, 1.2)), "o", True),
    "full_ft": Style("#0072B2", (0, (3.5, 1.4)), "s", True),
    "spider": Style("#D55E00", "-", "*", True),
    "l2_reg": Style("#56B4E9", (0, (4, 1.5, 1, 1.5)), "v"),
    "grafting": Style("#009E73", (0, (2, 1)), "^"),
    "half_ft": Style("#CC79A7", (0, (8, 2, 1, 2, 1, 2)), "D"),
    "dare": Style("#E69F00", (0, (3, 1, 1, 1)), "P"),
    "tailor": Style("#7A7A7A", (0, (10, 3)), "X"),
}
_OTHERS = (
    Style("#8C564B", (0, (5, 1)), "<"),
    Style("#17A2B8", (0, (1, 2)), ">"),
    Style("#5E4FA2", (0, (7, 3)), "h"),
    Style("#666600", (0, (3, 3)), "p"),
)


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return a style for each method; methods outside the paper get the remaining ones in turn."""
    others = [method for method in methods if method not in _STYLES]
    extra = {method: _OTHERS[index % len(_OTHERS)] for index, method in enumerate(others)}
    return {method: _STYLES.get(method) or extra[method] for method in methods}


def save(figure: Figure, data: pd.DataFrame, stem: Path) -> list[Path]:
    """Write a figure as PNG and PDF, and its numbers as CSV, then close it.

    Args:
        figure: the figure.
        data: the numbers drawn.
        stem: path without suffix.

    Returns:
        The three files.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for suffix, options in (("png", {"dpi": 160}), ("pdf", {"metadata": {"CreationDate": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, bbox_inches="tight", **options)
        paths.append(Path(f"{stem}.{suffix}"))
        write_atomic(paths[-1], _palette(buffer) if suffix == "png" else buffer.getvalue())
    plt.close(figure)
    paths.append(Path(f"{stem}.csv"))
    write_atomic(paths[-1], data.to_csv(index=False, float_format="%.4f"))
    return paths


def _palette(buffer: io.BytesIO) -> bytes:
    """Return a PNG with at most 256 colours, which these drawings hardly exceed: a third of the size in the tree."""
    small = io.BytesIO()
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE).save(
        small, format="PNG", optimize=True
    )
    return small.getvalue()


# -- radar --------------------------------------------------------------------------------------------------


def axis_range(values: Sequence[float]) -> tuple[float, float]:
    """Return round numbers around the values, for the centre and the rim of one axis.

    Args:
        values: points of all methods on one dataset, at least one.

    Returns:
        (low, high): multiples of 1, 2, 5 or 10 with every value inside and the lowest off the centre; never
        below 0. An axis spans eight points at least, so that noise does not fill the plot.
    """
    low, high = min(values), max(values)
    span = high - low
    if span < 8:
        low, high, span = (low + high) / 2 - 4, (low + high) / 2 + 4, 8.0
    step = next(size for size in (1, 2, 5, 10, 20, 50, 100, 200) if span / size <= 8)
    bottom = max(0.0, math.floor((low - 0.15 * span) / step) * step)
    top = max(math.ceil(high / step) * step, bottom + step)
    return bottom, 100 if max(values) <= 100 < top else top


def radar(
    title: str,
    axes: Mapping[str, str],
    lines: Mapping[str, Mapping[str, float]],
    names: Mapping[str, str],
    stem: Path,
) -> list[Path]:
    """Draw one radar plot, one line per method.

    Each axis has its own scale, written beside its name. A method with a missing value is not drawn, and the
    legend says so.

    Args:
        title: heading.
        axes: dataset id -> printed name, clockwise from the top.
        lines: method id -> dataset id -> points; NaN or absent where missing.
        names: method id -> printed name.
        stem: output path without suffix.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    points = {method: [line.get(axis, np.nan) for axis in axes] for method, line in lines.items()}
    values = pd.DataFrame(points, index=list(axes), dtype=float)
    complete = [method for method in values.columns if values[method].notna().all()]
    ranges = {axis: axis_range(values.loc[axis, complete].tolist() or [0.0]) for axis in axes}
    angles = np.linspace(0, 2 * np.pi, len(axes), endpoint=False)

    with plt.rc_context(STYLE):
        figure, plot = plt.subplots(figsize=(6.2, 4.4), subplot_kw={"projection": "polar"})
        plot.set_theta_zero_location("N")
        plot.set_theta_direction(-1)
        _radar_grid(plot, angles, axes, ranges)
        for method, style in styles(list(values.columns)).items():
            if method not in complete:
                plot.plot([], [], linestyle="none", label=f"{names[method]} (missing)")
                continue
            scaled = [(values.loc[axis, method] - low) / (high - low) for axis, (low, high) in ranges.items()]
            plot.plot(
                [*angles, angles[0]], [*scaled, scaled[0]], label=names[method], color=style.colour,
                linestyle=style.dash, marker=style.marker, linewidth=2.2 if style.emphasis else 1.1,
                markersize=(9 if style.marker == "*" else 6) if style.emphasis else 4.5,
                zorder=4 if style.emphasis else 3, clip_on=False,
            )  # fmt: skip
        plot.set_title(title, pad=38)
        plot.legend(loc="center left", bbox_to_anchor=(1.2, 0.5), handlelength=5, labelspacing=0.8)
        plot.text(
            0.5, -0.13, "Each axis has its own scale: centre to rim, in points.", transform=plot.transAxes,
            ha="center", color="0.35", fontsize=8,
        )  # fmt: skip
        data = values.T.rename_axis("method").reset_index()
        data.insert(1, "name", data["method"].map(dict(names)))
        scale = [{"method": end, "name": "axis scale", **{axis: ranges[axis][i] for axis in axes}}
                 for i, end in enumerate(("(centre)", "(rim)"))]  # fmt: skip
        return save(figure, pd.concat([data, pd.DataFrame(scale)], ignore_index=True), stem)


def _radar_grid(plot, angles: np.ndarray, axes: Mapping[str, str], ranges: Mapping[str, tuple]) -> None:
    """Draw spokes, polygons and the labels of names and scales."""
    plot.set_ylim(0, 1)
    plot.set_xticks(angles, [])
    plot.set_yticks([])
    plot.spines["polar"].set_visible(False)
    plot.grid(color="0.75", linewidth=0.8)
    closed = [*angles, angles[0]]
    for level in (0.25, 0.5, 0.75, 1.0):
        shade = "0.55" if level == 1 else "0.85"
        plot.plot(closed, [level] * len(closed), color=shade, linewidth=0.8, zorder=1)
    for angle, (axis, name) in zip(angles, axes.items(), strict=True):
        low, high = ranges[axis]
        side = math.sin(angle)
        align = "center" if abs(side) < 0.2 else "left" if side > 0 else "right"
        base = "bottom" if math.cos(angle) > 0.9 else "top" if math.cos(angle) < -0.7 else "center"
        label = f"{name}\n{low:g} to {high:g}"
        plot.text(angle, 1.07, label, ha=align, va=base, multialignment="center", linespacing=1.25)


def radars(table: Table, folder: Path, stem: str = "fig4") -> list[Path]:
    """Draw one radar plot for each model and target of a table: the upstream sets and the target.

    Args:
        table: a finished table.
        folder: usually results/.../figures.
        stem: start of the file names, which go on with model and target.

    Returns:
        The files written.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for (model, target), block in table.frame.groupby(["model", "target"], sort=False):
        first = block.iloc[0]
        wide = block.pivot(index="method", columns="metric", values="value").reindex(block["method"].unique())
        paths += radar(
            f"{first['model_name']}, fine-tuned on {first['target_name']}",
            {**table.upstream, "A_T": f"{first['target_name']} (target)"},
            wide.to_dict(orient="index"),
            dict(zip(block["method"], block["method_name"], strict=True)),
            Path(folder) / f"{stem}_{model}_{target}",
        )
    return paths


# -- summary with seeds -------------------------------------------------------------------------------------


def summary(
    table: Table, folder: Path, stem: str = "summary", metrics: Sequence[str] = ("A_S", "A_T", "H")
) -> list[Path]:
    """Draw value, 95 % interval and single seeds of each method, one row of panels per model and target.

    Args:
        table: a finished table.
        folder: usually results/.../figures.
        stem: file name without suffix.
        metrics: names among A_S, A_T, H, O and the dataset ids.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    blocks = table.blocks()
    names = {**table.upstream, **MATH}
    methods = list(table.frame["method"].unique())
    with plt.rc_context(STYLE):
        size = (2.6 * len(metrics) + 1, (0.24 * len(methods) + 0.75) * len(blocks))
        figure, grid = plt.subplots(
            len(blocks), len(metrics), figsize=size, squeeze=False, sharey="row", layout="constrained"
        )
        for row, (model, target, block) in zip(grid, blocks, strict=True):
            order = list(block["method"].unique())
            labels = [block.loc[block["method"] == method, "method_name"].iloc[0] for method in order]
            for plot, metric in zip(row, metrics, strict=True):
                _interval_panel(plot, block[block["metric"] == metric].set_index("method").loc[order])
                plot.set_title(names[metric])
                plot.set_yticks(range(len(order)), labels)
            row[0].set_ylim(len(order) - 0.4, -0.6)
            row[0].set_ylabel(f"{model}\n{target}")
        legend = ["points", "bar: 95 % interval"]
        legend += ["small dots: single seeds"] * bool(table.frame["by_seed"].str.contains(" ").any())
        legend += ["dotted line: Full FT"] * (REFERENCE in methods)
        figure.supxlabel("; ".join(legend), fontsize=8, color="0.35")
        columns = ["model", "target", "method", "metric", "value", "low", "high", "by_seed"]
        drawn = table.frame.loc[table.frame["metric"].isin(metrics), columns]
        return save(figure, drawn, Path(folder) / stem)


def _interval_panel(plot, lines: pd.DataFrame) -> None:
    """Draw one metric: interval as a bar, value as the method's marker, seeds as small dots."""
    plot.grid(axis="x", color="0.9")
    plot.set_axisbelow(True)
    if REFERENCE in lines.index and pd.notna(lines.loc[REFERENCE, "value"]):
        plot.axvline(lines.loc[REFERENCE, "value"], color="0.6", linewidth=0.8, linestyle=":")
    for place, (method, style) in enumerate(styles(list(lines.index)).items()):
        line = lines.loc[method]
        if pd.isna(line["value"]):
            where = plot.get_yaxis_transform()
            plot.text(0.5, place, "missing", transform=where, ha="center", va="center", color="0.5")
            continue
        size = 9 if style.marker == "*" else 5.5
        plot.plot([line["low"], line["high"]], [place, place], color=style.colour, linewidth=2)
        plot.plot(line["value"], place, marker=style.marker, color=style.colour, markersize=size)
        seeds = [float(value) for value in str(line["by_seed"]).split()]
        if len(seeds) > 1:
            plot.plot(seeds, [place + 0.27] * len(seeds), ".", markersize=4, color="0.35")
