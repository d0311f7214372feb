"""Plots of sweeps, the A^S-A^T plane, parameter importance discrepancy (Fig. 1) and example answers (Fig. 3)."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image

from benchmark.reporting.radar import MATH, STYLE, Style, save, styles

METRICS = ("A_S", "A_T", "H")
LEVELS = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120)
LINEAR = 2.0
"""Points of A^S up to which the axis of a loss is about linear; beyond, it is logarithmic."""
LOSSES = (0, 2, 5, 10, 20, 40, 80)
MARKERS = "os^vDP"


def lines(
    frame: pd.DataFrame, keys: Sequence[str], title: str, stem: Path, marked: float | None = None
) -> list[Path]:
    """Draw A^S, A^T and H over an axis, a line with 95 % intervals per method and a row per group.

    Args:
        frame: one line per point and metric: the keys, model_name, target_name, method, method_name, metric, value,
            low, high.
        keys: the horizontal axis; further ones make rows of panels.
        title: heading.
        stem: output path without suffix.
        marked: a value of the axis to mark with a dotted line.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    groups = [group for _, group in frame.groupby(["model_name", "target_name", *keys[1:]], sort=False)]
    ticks = list(dict.fromkeys(frame[keys[0]]))
    numeric = all(isinstance(tick, int | float | np.number) for tick in ticks)
    ticks = sorted(ticks) if numeric else ticks
    # A logarithmic axis for values in equal ratios (learning rates, batch sizes).
    log = numeric and len(ticks) > 2 and min(ticks) > 0 and max(ticks) / min(ticks) >= 8
    places = {tick: tick if numeric else index for index, tick in enumerate(ticks)}
    chosen = styles(list(dict.fromkeys(frame["method"])))
    names = dict(zip(frame["method"], frame["method_name"], strict=True))
    with plt.rc_context(STYLE):
        size = (9.2, 2.5 * len(groups) + 0.7)
        figure, grid = plt.subplots(len(groups), len(METRICS), figsize=size, squeeze=False, layout="constrained")
        for row, group in zip(grid, groups, strict=True):
            for plot, metric in zip(row, METRICS, strict=True):
                _line_panel(plot, group[group["metric"] == metric], keys[0], places, chosen, names, log)
                plot.set_title(MATH[metric], parse_math=True)
                plot.set_xlabel(_axis_name(keys[0]))
                if marked is not None:
                    plot.axvline(places[marked], color="0.2", linewidth=1.4, linestyle=":", zorder=1)
            rest = [f"{_axis_name(key)} {group[key].iloc[0]}" for key in keys[1:]]
            row[0].set_ylabel("\n".join([group["model_name"].iloc[0], group["target_name"].iloc[0], *rest]))
        grid[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), handlelength=4)
        figure.suptitle(f"{title} (bars: 95 % interval)", fontsize=10)
        columns = ["model_name", "target_name", *keys, "method", "metric", "value", "low", "high"]
        return save(figure, frame.loc[frame["metric"].isin(METRICS), columns], stem)


def _line_panel(
    plot: Axes, points: pd.DataFrame, key: str, places: Mapping[Any, float], chosen: Mapping[str, Style],
    names: Mapping[str, str], log: bool,
) -> None:
    """Draw one metric: a line per method, slightly offset so that intervals do not overlap."""
    spots = np.array(list(places.values()), dtype=float)
    gap = np.min(np.diff(np.sort(spots))) if len(spots) > 1 else 1.0
    for index, (method, style) in enumerate(chosen.items()):
        own = points[points["method"] == method].set_index(key)
        own = own.reindex(list(places))
        shift = (index - (len(chosen) - 1) / 2) * 0.05
        x = spots * (1 + shift) if log else spots + shift * gap
        values = own["value"].to_numpy(dtype=float)
        errors = np.abs(np.vstack([values - own["low"].to_numpy(float), own["high"].to_numpy(float) - values]))
        plot.errorbar(
            x, values, yerr=errors, label=names[method], color=style.colour, linestyle=style.dash,
            marker=style.marker, markersize=8 if style.marker == "*" else 5, linewidth=1.6, elinewidth=1, capsize=2,
            zorder=4 if style.emphasis else 3,
        )
    if log:
        plot.set_xscale("log")
    plot.set_xticks(spots, [tick(value) for value in places])
    plot.minorticks_off()
    plot.grid(axis="y", color="0.9")
    plot.set_axisbelow(True)


def tick(value: object) -> str:
    """Return an exact label for a value; learning rates are written as 5e-4."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return str(value)
    if 0 < abs(float(value)) < 0.01:
        return np.format_float_scientific(float(value), trim="-", exp_digits=1)
    text = f"{value:g}"
    return text if float(text) == value else str(value)


def _log_locator(low: float, high: float) -> LogLocator:
    """Return the ticks of a logarithmic axis: at 1, 3, 10, ..., or over many decades at some powers of ten."""
    # Where not every power of ten has a tick, the locator places none at their multiples either.
    return LogLocator(subs=(1.0, 3.0) if high / low < 1e4 else (1.0,), numticks=5)


def _axis_name(key: str) -> str:
    return key.removeprefix("train.").removeprefix("method.").replace("_", " ")


# -- the plane of A^S and A^T ---------------------------------------------------------------------------------


def plane(
    title: str, panels: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], stem: Path, curve_name: str = "WiSE-FT",
    key: str = "",
) -> list[Path]:
    """Draw every method at (A^S, A^T) with both intervals over contours of H, and a curve as the control.

    Args:
        title: heading.
        panels: name -> (methods, curve); both with method, method_name, A_S, A_S_low, A_S_high and the same of A_T.
            The curve's lines are in order and start at the untuned model.
        stem: output path without suffix.
        curve_name: for the legend.
        key: the curves' column whose values label the points.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(4.0 * columns + 1.6, 3.7 * rows), squeeze=False, layout="constrained"
        )
        handles: dict[str, ErrorbarContainer] = {}
        for plot, (name, (points, curve)) in zip(grid.flat, panels.items(), strict=False):
            _plane_panel(plot, points, curve, curve_name, key, handles)
            plot.set_title(name)
            plot.set_xlabel(f"{MATH['A_S']} (kept)", parse_math=True)
            plot.set_ylabel(f"{MATH['A_T']} (learned)", parse_math=True)
        for plot in list(grid.flat)[len(panels) :]:
            plot.set_visible(False)
        figure.legend(  # type: ignore[call-overload]  # containers are handles too, which the stub forgets
            handles.values(), handles.keys(), loc="outside right center"
        )
        below = f"{curve_name}: with its {_axis_name(key)}. " if key else ""
        figure.suptitle(f"{title}. {below}Bars: 95 % intervals; grey: equal H", fontsize=10)
        drawn = [
            lines.assign(panel=name, curve=is_curve)
            for name, pair in panels.items() for is_curve, lines in zip((False, True), pair, strict=True)
        ]
        return save(figure, pd.concat([part for part in drawn if not part.empty], ignore_index=True), stem)


def _curve(plot: Axes, curve: pd.DataFrame, key: str) -> ErrorbarContainer:
    """Draw WiSE-FT's curve with its intervals, and label its points with the key's values, except at the known ends."""
    look = styles(["wise_ft"])["wise_ft"]
    errors = [[(curve[m] - curve[f"{m}_low"]).abs(), (curve[f"{m}_high"] - curve[m]).abs()] for m in ("A_S", "A_T")]
    drawn = plot.errorbar(
        curve["A_S"], curve["A_T"], xerr=errors[0], yerr=errors[1], color=look.colour, linewidth=1.2,
        marker=look.marker, markersize=4, elinewidth=0.6, ecolor=to_rgba(look.colour, 0.35), zorder=2,
    )
    if key:
        own = curve.iloc[1:-1]
        for place, (x, y, value) in enumerate(zip(own["A_S"], own["A_T"], own[key], strict=True)):
            # Labels alternate between the two sides so that those of close points do not overlap.
            plot.annotate(
                tick(value), (x, y), xytext=(5, 3) if place % 2 else (-5, -3), textcoords="offset points", fontsize=6.5,
                ha="left" if place % 2 else "right", va="bottom" if place % 2 else "top", color=look.colour, zorder=6,
                path_effects=[withStroke(linewidth=1.5, foreground="white")],
            )
    return drawn


def _plane_panel(
    plot: Axes, points: pd.DataFrame, curve: pd.DataFrame, curve_name: str, key: str,
    handles: dict[str, ErrorbarContainer],
) -> None:
    both = pd.concat([part for part in (points, curve) if not part.empty])
    limits = []
    for metric in ("A_S", "A_T"):
        low, high = both[f"{metric}_low"].min(), both[f"{metric}_high"].max()
        margin = max(1.5, 0.07 * (high - low))
        limits.append((max(-1.0, low - margin), high + margin))
    (left, right), (bottom, top) = limits
    x, y = np.meshgrid(np.linspace(max(left, 0.01), right, 200), np.linspace(max(bottom, 0.01), top, 200))
    contours = plot.contour(x, y, 2 * x * y / (x + y), levels=LEVELS, colors="0.8", linewidths=0.8, zorder=1)
    plot.clabel(contours, fmt="%g", fontsize=7, colors="0.5")
    plot.set_xlim(left, right)
    plot.set_ylim(bottom, top)
    if not curve.empty:
        handles[curve_name] = _curve(plot, curve, key)
    for method, style in styles(list(points["method"])).items():
        point = points[points["method"] == method].iloc[0]
        errors = [[[abs(point[m] - point[f"{m}_low"])], [abs(point[f"{m}_high"] - point[m])]] for m in ("A_S", "A_T")]
        drawn = plot.errorbar(
            point["A_S"], point["A_T"], xerr=errors[0], yerr=errors[1], color=style.colour, marker=style.marker,
            markersize=11 if style.marker == "*" else 7, elinewidth=1, linestyle="none", zorder=5,
            markeredgecolor="white", markeredgewidth=0.6,
        )
        handles.setdefault(point["method_name"], drawn)


# -- equal learning -------------------------------------------------------------------------------------------


def curves(points: pd.DataFrame, title: str, stem: Path) -> list[Path]:
    """Draw the curve of every row of the survey, what it learns over what it loses: a panel per group and target.

    The axis of the loss is stretched near 0: the rows that matter lose a few points, others lose all.

    Args:
        points: one line per point, in the order of its curve: target_name, row, name, group, A_S, A_T. The line with an
            empty group is the untuned model, where every curve starts; the first row stands in every panel, dashed.
        title: heading.
        stem: output path without suffix.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    groups = [group for group in dict.fromkeys(points["group"]) if group]
    targets = list(dict.fromkeys(points["target_name"]))
    first = points.loc[points["group"] == groups[0], "row"].iloc[0]
    panels = list(itertools.product(groups, targets))
    columns = len(targets) if len(targets) > 1 else min(2, len(groups))
    rows = -(-len(panels) // columns)
    base = points[points["group"] == ""].set_index("target_name")["A_S"]
    drawn = points.assign(lost=points["target_name"].map(base) - points["A_S"])
    with plt.rc_context(STYLE):
        # The legend is right of a group's last panel.
        size = (2.7 * columns + 2.4 * columns / len(targets), 2.3 * rows + 1.0)
        shared: Literal["col", "all"] = "col" if len(targets) > 1 else "all"
        figure, grid = plt.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained", sharex="all", sharey=shared
        )
        for number, (plot, (group, target)) in enumerate(zip(grid.flat, panels, strict=False)):
            lines = drawn[drawn["target_name"] == target]
            _curves_panel(plot, lines, lines[lines["group"] == ""], group, first)
            plot.set_title(target if number < columns else "")
            if number >= len(panels) - columns:
                plot.tick_params(labelbottom=True)
                plot.set_xlabel(f"{MATH['A_S']} lost (points)", parse_math=True)
            if number % columns == 0:
                plot.set_ylabel(f"{MATH['A_T']} (learned)", parse_math=True)
            if target == targets[-1]:
                plot.legend(title=group, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=7, title_fontsize=8,
                            frameon=False, alignment="left")
        # The limits and the scale are those of all panels.
        grid.flat[0].set_xscale("asinh", linear_width=LINEAR)
        grid.flat[0].set_xlim(max(LOSSES[1], 1.2 * drawn["lost"].max()), min(-LINEAR / 2, 1.5 * drawn["lost"].min()))
        grid.flat[0].set_xticks(LOSSES, [tick(loss) for loss in LOSSES])
        grid.flat[0].xaxis.set_minor_locator(NullLocator())
        for plot in grid.flat[len(panels) :]:
            plot.set_visible(False)
        text = f"{title}. Lines start at the untuned model (star); dashed: Full FT"
        figure.suptitle(_balanced(text, round(13 * size[0])), fontsize=10)
        return save(figure, points, stem)


def _balanced(text: str, width: int) -> str:
    """Wrap text into as few lines as the width allows, none much shorter than the others."""
    few = len(textwrap.wrap(text, width))
    least = next(shorter for shorter in range(1, width + 1) if len(textwrap.wrap(text, shorter)) <= few)
    return textwrap.fill(text, least)


def _curves_panel(plot: Axes, lines: pd.DataFrame, start: pd.DataFrame, group: str, first: str) -> None:
    """Draw the curves of one group over that of the first row, the reference. Their points are in order."""
    reference = pd.concat([start, lines[lines["row"] == first]])
    plot.plot(reference["lost"], reference["A_T"], color="0.25", linewidth=1.0, linestyle="--", zorder=2)
    plot.plot(start["lost"], start["A_T"], marker="*", markersize=10, color="black", linestyle="none", zorder=6)
    own = lines[lines["group"] == group]
    colours = plt.get_cmap("tab10")
    for place, (_, curve) in enumerate(own.groupby("row", sort=False)):
        drawn = pd.concat([start, curve])
        plot.plot(
            drawn["lost"], drawn["A_T"], color=colours(place % colours.N), linewidth=1.0, markersize=3.5, zorder=4,
            marker=MARKERS[(place + place // colours.N) % len(MARKERS)], label=curve["name"].iloc[0],
        )


# -- the regime map -------------------------------------------------------------------------------------------


def maps(
    frame: pd.DataFrame, panels: Mapping[str, str], title: str, stem: Path, marked: Mapping[str, tuple[float, float]],
) -> list[Path]:
    """Draw numbers over the number of training rows and the learning rate, a row of panels per model and target.

    Args:
        frame: model, model_name, target_name, rows, learning_rate, and a column per panel.
        panels: column -> heading.
        title: heading of the figure.
        stem: output path without suffix.
        marked: model -> (rows, learning rate) of a point to frame.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    groups = [group for _, group in frame.groupby(["model", "target_name"], sort=False)]
    limit = max(1.0, float(np.nanmax(np.abs(frame[list(panels)].to_numpy(dtype=float)))))
    with plt.rc_context(STYLE):
        size = (3.3 * len(panels) + 0.8, 2.1 * len(groups) + 0.8)
        figure, grid = plt.subplots(len(groups), len(panels), figsize=size, squeeze=False, layout="constrained")
        for row, group in zip(grid, groups, strict=True):
            for plot, (column, heading) in zip(row, panels.items(), strict=True):
                _map(plot, group, column, limit, marked.get(group["model"].iloc[0]))
                plot.set_title(heading)
                plot.set_xlabel("learning rate")
            row[0].set_ylabel(f"{group['model_name'].iloc[0]}\n{group['target_name'].iloc[0]}\ntraining rows")
        below = "In points; framed: the paper's own rows and rate; empty: its curve does not pass there"
        figure.suptitle(f"{title}. {below}", fontsize=10)
        return save(figure, frame, stem)


def _map(plot, group: pd.DataFrame, column: str, limit: float, marked: tuple[float, float] | None) -> None:
    wide = group.pivot(index="rows", columns="learning_rate", values=column).sort_index().sort_index(axis=1)
    values = wide.to_numpy(dtype=float)
    plot.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = abs(value) > 0.6 * limit
            plot.text(x, y, f"{value:+.0f}", ha="center", va="center", fontsize=7.5, color="white" if dark else "black")
    plot.set_xticks(range(len(wide.columns)), [tick(rate) for rate in wide.columns], fontsize=7.5)
    plot.set_yticks(range(len(wide.index)), [tick(rows) for rows in wide.index])
    plot.tick_params(length=0)
    if marked and marked[0] in wide.index and marked[1] in wide.columns:
        corner = wide.columns.get_loc(marked[1]) - 0.5, wide.index.get_loc(marked[0]) - 0.5
        plot.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2))


# -- form or content ------------------------------------------------------------------------------------------


def lost_and_shown(frame: pd.DataFrame, title: str, stem: Path) -> list[Path]:
    """Draw what each method lost, asked as usual and after a solved question: a panel per target, a row per model.

    Args:
        frame: one line per tuned model: model_name, target_name, method, method_name, and lost and lost_shown, each
            with _low and _high.
        title: heading.
        stem: output path without suffix.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    models, targets = (list(dict.fromkeys(frame[name])) for name in ("model_name", "target_name"))
    names = dict(zip(frame["method"], frame["method_name"], strict=True))
    chosen = styles(list(names))
    looks = {"lost": ("white", 0.16, "as usual"), "lost_shown": (None, -0.16, "after a solved question")}
    with plt.rc_context(STYLE):
        size = (2.6 * len(targets) + 1.2, (0.36 * len(names) + 0.9) * len(models) + 0.7)
        figure, grid = plt.subplots(
            len(models), len(targets), figsize=size, squeeze=False, layout="constrained", sharex=True, sharey=True
        )
        for row, model in zip(grid, models, strict=True):
            for plot, target in zip(row, targets, strict=True):
                own = frame[(frame["model_name"] == model) & (frame["target_name"] == target)].set_index("method")
                plot.axvline(0, color="0.5", linewidth=0.8)
                for place, method in enumerate(names):
                    if method not in own.index:
                        continue
                    line, colour = own.loc[method], chosen[method].colour
                    for name, (inside, offset, _) in looks.items():
                        plot.errorbar(
                            line[name], place - offset, color=colour, markerfacecolor=inside or colour, markersize=5,
                            xerr=[[line[name] - line[f"{name}_low"]], [line[f"{name}_high"] - line[name]]],
                            marker=chosen[method].marker, elinewidth=0.9,
                        )
                plot.grid(axis="x", color="0.9")
                plot.set_title(f"{model}, {target}", fontsize=9)
            row[0].set_yticks(range(len(names)), list(names.values()))
        grid[0][0].set_ylim(len(names) - 0.5, -0.5)
        for plot in grid[-1]:
            plot.set_xlabel(f"points of {MATH['A_S']} lost", parse_math=True)
        figure.legend(
            [plt.Line2D([], [], linestyle="none", marker="o", color="0.3", markerfacecolor=inside or "0.3")
             for inside, *_ in looks.values()],
            [name for *_, name in looks.values()], loc="outside lower center", ncols=2,
        )
        figure.suptitle(f"{title}. Bars: 95 % intervals", fontsize=10)
        return save(figure, frame, stem)


# -- what predicts forgetting ---------------------------------------------------------------------------------


def predictors(
    frame: pd.DataFrame, correlations: pd.DataFrame, panels: Mapping[str, Any], title: str, stem: Path
) -> list[Path]:
    """Draw forgetting against each measure: a point per cell, a colour per target, a marker per model.

    Args:
        frame: one line per cell: model, model_name, target, target_name, forgetting, and a column per panel.
        correlations: measure, within, within_low, within_high.
        panels: column -> what it is: name, unit, log.
        title: heading.
        stem: output path without suffix.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    colours = dict(zip(dict.fromkeys(frame["target_name"]), map(plt.get_cmap("tab10"), range(10)), strict=False))
    markers = dict(zip(dict.fromkeys(frame["model_name"]), "os^Dv*Pp<>hX", strict=False))
    found = correlations.set_index("measure")
    with plt.rc_context(STYLE):
        size = (2.7 * columns + 1.8, 2.5 * rows + 0.7)
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", sharey=True)
        for plot, (column, about) in zip(grid.flat, panels.items(), strict=False):
            drawn = frame[frame[column] > 0] if about.log else frame
            for (model, target), group in drawn.groupby(["model_name", "target_name"], sort=False):
                plot.plot(
                    group[column], group["forgetting"], linestyle="none", marker=markers.get(model, "o"), markersize=3,
                    color=colours.get(target, "0.5"), alpha=0.7, markeredgewidth=0,
                )
            if about.log:
                plot.set_xscale("log")
                plot.xaxis.set_major_locator(_log_locator(*plot.get_xlim()))
                plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(float(f"{value:.3g}"))))
                plot.xaxis.set_minor_locator(NullLocator())
            line = found.loc[column]
            text = f"{line['within']:+.2f} ({line['within_low']:+.2f} to {line['within_high']:+.2f})"
            plot.set_title(text if np.isfinite(line["within"]) else "constant", fontsize=8)
            plot.set_xlabel(f"{about.name} ({about.unit})" if about.unit else about.name, fontsize=8)
        for plot in list(grid.flat)[len(panels) :]:
            plot.set_visible(False)
        for row in grid:
            row[0].set_ylabel("forgetting (points)")
        shown = [(name, {"color": colour, "marker": "o"}) for name, colour in colours.items()]
        shown += [(name, {"color": "0.5", "marker": marker}) for name, marker in markers.items()]
        figure.legend(
            [plt.Line2D([], [], linestyle="none", **look) for _, look in shown], [name for name, _ in shown],
            loc="outside right center", fontsize=7,
        )
        figure.suptitle(f"{title}. Above: rank correlation within models and targets, 95 % interval", fontsize=10)
        return save(figure, frame, stem)


# -- Fig. 1 ---------------------------------------------------------------------------------------------------


def discrepancy(frame: pd.DataFrame, title: str, stem: Path) -> list[Path]:
    """Draw PID overall and per layer, for seen and unseen sets (paper, Fig. 1).

    Args:
        frame: dataset, dataset_name, role (upstream, target), part ("tuned" or a layer's name), value, low, high.
        title: heading.
        stem: output path without suffix.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    whole = frame[frame["part"] == "tuned"]
    parts = [part for part in dict.fromkeys(frame["part"]) if part != "tuned"]
    order = sorted(zip(whole["dataset"], whole["role"], strict=True), key=lambda pair: pair[1] == "target")
    looks = {dataset: _set_look(place, role) for place, (dataset, role) in enumerate(order)}
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(9.6, 3.8), layout="constrained", gridspec_kw={"width_ratios": [1, 1.7]}
        )
        for place, point in enumerate(whole.itertuples()):
            left.errorbar(
                point.value, place, xerr=[[point.value - point.low], [point.high - point.value]],
                **(looks[point.dataset] | {"linestyle": "none", "elinewidth": 2, "markersize": 7}),
            )
        left.set_yticks(range(len(whole)), whole["dataset_name"])
        left.invert_yaxis()
        left.set_xlabel("PID of the tuned weights (bar: 95 % interval)")
        left.grid(axis="x", color="0.9")
        left.set_title("filled, solid: seen; hollow, dashed: unseen", fontsize=9)
        for place, (dataset, look) in enumerate(looks.items()):
            own = frame[frame["dataset"] == dataset].set_index("part").reindex(parts)
            errors = np.abs(np.vstack([own["value"] - own["low"], own["high"] - own["value"]]))
            # Slightly offset, so that intervals do not overlap.
            spots = np.arange(len(parts)) + 0.07 * (place - (len(looks) - 1) / 2)
            right.errorbar(spots, own["value"], yerr=errors, label=own["dataset_name"].iloc[0], **look)
        right.set_xticks(range(len(parts)), parts)
        right.set_xlabel("decoder layer (and projector)")
        right.set_ylabel("PID")
        right.grid(axis="y", color="0.9")
        right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, handlelength=4)
        figure.suptitle(title, fontsize=10)
        return save(figure, frame, stem)


def _set_look(place: int, role: str) -> dict[str, object]:
    """Return how a set is drawn: a separate colour and marker; hollow and dashed if it was never seen."""
    colour = ("#000000", "#0072B2", "#009E73", "#882255", "#D55E00", "#56B4E9", "#CC79A7", "#E69F00")[place % 8]
    seen = role == "upstream"
    return {
        "color": colour, "marker": "osv^DXP*"[place % 8], "linestyle": "-" if seen else (0, (4, 1.5)), "linewidth": 1.2,
        "markersize": 5.5, "markerfacecolor": colour if seen else "white", "capsize": 2, "elinewidth": 0.9,
    }


# -- Fig. 3 ---------------------------------------------------------------------------------------------------


def gallery(title: str, rule: str, examples: Sequence[Mapping], stem: Path) -> list[Path]:
    """Draw example images with the references and the answers of several methods below each (paper, Fig. 3).

    Args:
        title: heading.
        rule: how the examples were chosen, printed below.
        examples: each with item_id, image (PIL image or None), prompt, references and answers (name -> (text, score)).
        stem: output path without suffix.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    blocks = [_example_text(example, 40) for example in examples]
    deepest = max((text.count("\n") + 1 for text in blocks), default=1)
    footer = textwrap.fill(rule, 34 * max(1, len(examples)))
    # In inches, from the top: title, image, text, rule.
    side, gap, top, below = 2.5, 0.25, 0.6, 0.13 * deepest + 0.25
    width = len(examples) * (side + gap) + gap
    height = top + side + below + 0.14 * (footer.count("\n") + 1) + 0.1
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        for index, (example, text) in enumerate(zip(examples, blocks, strict=True)):
            left, bottom = gap + index * (side + gap), height - top - side
            plot = figure.add_axes((left / width, bottom / height, side / width, side / height))
            plot.imshow(example["image"] or Image.new("RGB", (64, 64), (235, 235, 235)), interpolation="nearest")
            plot.set_axis_off()
            plot.set_title(str(example["item_id"]), fontsize=8)
            plot.text(0, -0.04, text, transform=plot.transAxes, va="top", fontsize=7.5)
        figure.suptitle(title, fontsize=10, y=1 - 0.12 / height)
        figure.text(0.5, 0.1 / height, footer, ha="center", va="bottom", fontsize=7.5, color="0.35")
        rows = [
            {"item_id": example["item_id"], "prompt": example["prompt"], "method": name, "answer": text,
             "score": score, "references": " | ".join(example["references"])}
            for example in examples for name, (text, score) in example["answers"].items()
        ]
        return save(figure, pd.DataFrame(rows), stem)


def _example_text(example: Mapping, width: int) -> str:
    lines = textwrap.wrap(f"Prompt: {example['prompt']}", width)[:4] + [""]
    for reference in example["references"][:2]:
        lines += textwrap.wrap(f"Reference: {reference}", width)
    for name, (text, score) in example["answers"].items():
        lines += ["", *textwrap.wrap(f"{name} ({100 * score:.0f}): {text or '(empty)'}", width)[:6]]
    return "\n".join(lines)
