"""The look of every figure, how it is saved, and radar plots (the paper's Fig. 4).

Every figure is written as PNG, PDF and CSV (the numbers drawn). A method looks the same in all of them. Lines differ in
colour (Okabe and Ito's palette and wine, safe for colour-blind readers), dash and marker, so that they can be
distinguished in grey.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.projections.polar import PolarAxes  # noqa: E402

from benchmark.core.files import write_atomic  # noqa: E402
from benchmark.reporting import lettering  # noqa: E402
from benchmark.reporting.tables import Table  # noqa: E402
from methods.registry import METHODS  # noqa: E402

# The only mathematical texts: they are set with parse_math=True. All other texts are free text.
MATH = {"A_S": r"$\mathcal{A}^S$", "A_T": r"$\mathcal{A}^T$", "H": r"$\mathcal{H}$", "O": r"$\mathcal{O}$"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "spiderbench",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,  # never scale an axis by an offset printed in its corner
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
    "tailor": Style("#882255", (0, (10, 3)), "X"),
    "wise_ft": Style("#8C564B", (0, (5, 1)), "<"),
}
# Variants have the colour of their default.
_VARIANTS = tuple(
    (dash, marker)
    for dash, marker in zip(
        ((0, (5, 1)), (0, (1, 2)), (0, (7, 3)), (0, (3, 3)), (0, (6, 1, 1, 1)), (0, (2, 2, 6, 2)), (0, (1, 1)),
         (0, (9, 2, 3, 2)), (0, (4, 4)), (0, (2, 3)), (0, (5, 2, 2, 2))),
        "<>hpd8^vsDo", strict=True,
    )
)
# Adapters: four colours in turn.
_ADAPTERS = tuple(
    Style(colour, dash, marker) for dash, marker in _VARIANTS for colour in ("#AA4499", "#44AA99", "#999933", "#117733")
)
# Methods of other papers in the colour of their like: EWC is a penalty, some move along w_ft - w*, others train a part
# of the weights.
_KIN = {
    "ewc": "l2_reg",
    **dict.fromkeys(("soup", "ties", "fisher", "lines", "intruder"), "wise_ft"),
    **dict.fromkeys(("gps", "spu", "gmt", "mofo", "model_dowser", "largest_weights"), "half_ft"),
}
# A user's own methods.
_OWN = tuple(
    Style(colour, dash, marker)
    for marker, dash in ((">", (0, (1, 2))), ("h", (0, (7, 3))), ("p", (0, (3, 3))), ("d", (0, (6, 1, 1, 1))))
    for colour in ("#332288", "#17A2B8", "#661100", "#666600")
)


def _look(method: str) -> Style | None:
    """Return the style of a method of the registry, which depends only on its id; None for a user's own."""
    if method in _STYLES or method not in METHODS:
        return _STYLES.get(method)
    if METHODS[method].kind == "adapter":
        adapters = [name for name, entry in METHODS.items() if entry.kind == "adapter"]
        return _ADAPTERS[adapters.index(method) % len(_ADAPTERS)]
    family = max((name for name in _STYLES if _is_of(method, name)), key=len, default="wise_ft")
    variants = [name for name in METHODS if _is_of(name, family) and name not in _STYLES]
    own = _STYLES[family]
    free = [look for look in _VARIANTS if look != (own.dash, own.marker)]
    dash, marker = free[variants.index(method) % len(free)]
    return Style(own.colour, dash, marker)


def _is_of(method: str, family: str) -> bool:
    """Return whether a method is drawn in the colour of another one: a variant by its name, others by their kind."""
    return method.startswith(f"{family}_") or _KIN.get(method) == family


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Return a style for each method, the same in every figure.

    A user's own method gets a style by its name. If two would look the same, the second gets another.
    """
    found = {method: look for method in methods if (look := _look(method))}
    for method in (method for method in methods if method not in found):
        first = zlib.crc32(method.encode()) % len(_OWN)
        turns = [_OWN[(first + step) % len(_OWN)] for step in range(len(_OWN))]
        free = [look for look in turns if look not in found.values()]
        distinct = [look for look in free if not _alike(look, found.values())]
        found[method] = (distinct or free or turns)[0]
    return {method: found[method] for method in methods}


def _alike(look: Style, others: Iterable[Style]) -> bool:
    return any(look.colour == one.colour or look.marker == one.marker or look.dash == one.dash for one in others)


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
    lettering.settle(figure)
    paths = []
    for suffix, options in (("png", {"dpi": 160}), ("pdf", {"metadata": {"CreationDate": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, bbox_inches="tight", **options)
        paths.append(Path(f"{stem}.{suffix}"))
        write_atomic(paths[-1], _palette(buffer) if suffix == "png" else buffer.getvalue())
    plt.close(figure)
    paths.append(Path(f"{stem}.csv"))
    write_atomic(paths[-1], lettering.spreadsheet(data))
    return paths


def _palette(buffer: io.BytesIO) -> bytes:
    """Return a PNG with at most 256 colours, a third of the size; these figures hardly have more colours."""
    small = io.BytesIO()
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE).save(
        small, format="PNG", optimize=True
    )
    return small.getvalue()


# -- radar --------------------------------------------------------------------------------------------------

POINTS = "points"  # what radar= may be, else a method whose scores are 100 %
ACCURACY_RIM, CIDER_RIM, RELATIVE_RIM, RING = 100, 160, 160, 20


def radar(
    title: str,
    axes: Mapping[str, str],
    lines: pd.DataFrame,
    names: Mapping[str, str],
    stem: Path,
    rim: float = ACCURACY_RIM,
    reference: str | None = None,
) -> list[Path]:
    """Draw one radar plot, one line per method with its 95 % intervals as a band.

    All axes have one scale from 0 to the rim, whichever methods are drawn. A point beyond the rim is drawn on it with
    its number. A method with a missing value is not drawn, and the legend says so.

    Args:
        title: heading.
        axes: dataset id -> printed name, clockwise from the top.
        lines: method, axis, value, low, high in points; NaN or absent where missing.
        names: method id -> printed name, in the order of the legend.
        stem: output path without suffix.
        rim: of all axes, in points, or in % of the reference.
        reference: method whose scores are 100 %; an axis on which it has none, or 0, is left out. None: points.

    Returns:
        Paths of the PNG, PDF and CSV files.

    Raises:
        UserError: the folder cannot be written.
    """
    values, lows, highs = (
        lines.pivot(index="method", columns="axis", values=what).reindex(index=list(names), columns=list(axes))
        for what in ("value", "low", "high")
    )
    unit, dropped, full = "points", [], ""
    if reference is not None:
        full = names.get(reference, reference)
        base = values.loc[reference] if reference in values.index else pd.Series(np.nan, index=list(axes))
        dropped = [axis for axis in axes if not base[axis] > 0]
        axes = {axis: name for axis, name in axes.items() if axis not in dropped}
        values, lows, highs = (100 * frame[list(axes)] / base[list(axes)] for frame in (values, lows, highs))
        unit = f"% of {full}"
    complete = [method for method in values.index if axes and values.loc[method].notna().all()]
    angles = np.linspace(0, 2 * np.pi, max(1, len(axes)), endpoint=False)
    around = [*angles, angles[0]]

    with plt.rc_context(STYLE):
        figure, plot = plt.subplots(figsize=(6.4, 4.6), subplot_kw={"projection": "polar"})
        assert isinstance(plot, PolarAxes)
        plot.set_theta_zero_location("N")
        plot.set_theta_direction(-1)
        _radar_grid(plot, angles, axes, rim)
        for method, style in styles(list(values.index)).items():
            if method not in complete:
                plot.plot([], [], linestyle="none", label=f"{names[method]} (missing)")
                continue
            band = [frame.loc[method].fillna(values.loc[method]).clip(0, rim).tolist() for frame in (lows, highs)]
            edge = [*band[1], band[1][0], *reversed([*band[0], band[0][0]])]
            plot.fill(
                [*around, *reversed(around)], edge, color=style.colour, alpha=0.18 if style.emphasis else 0.12,
                linewidth=0, zorder=2,
            )
            inside = values.loc[method].clip(upper=rim).tolist()
            plot.plot(
                around, [*inside, inside[0]], label=names[method], color=style.colour,
                linestyle=style.dash, marker=style.marker, linewidth=2.0 if style.emphasis else 1.1,
                markersize=(9 if style.marker == "*" else 5.5) if style.emphasis else 4.5,
                zorder=4 if style.emphasis else 3, clip_on=False,
            )
            for angle, value in zip(angles, values.loc[method], strict=True):
                if value > rim:
                    plot.text(angle, 0.97 * rim, f"{value:.0f}", color=style.colour, fontsize=7, ha="right", zorder=5)
        plot.set_title(title, pad=34)
        plot.legend(loc="center left", bbox_to_anchor=(1.24, 0.5), handlelength=5, labelspacing=0.8)
        note = f"All axes: 0 to {rim:g} {unit}. Bands: 95 % intervals."
        if dropped:
            note += f"\nWithout {', '.join(dropped)}: {full} has no score above 0 there."
        plot.text(0.5, -0.09, note, transform=plot.transAxes, ha="center", va="top", color="0.35", fontsize=8)
        frames = {"": values, "_low": lows, "_high": highs}
        parts = [frame[[axis]].add_suffix(end) for axis in axes for end, frame in frames.items()]
        data = pd.concat([values[[]], *parts], axis=1).rename_axis("method").reset_index()
        data.insert(1, "name", data["method"].map(dict(names)))
        return save(figure, data.assign(unit=unit, rim=rim), stem)


def _radar_grid(plot: PolarAxes, angles: np.ndarray, axes: Mapping[str, str], rim: float) -> None:
    """Draw spokes, rings with their numbers, and the names of the axes."""
    plot.set_ylim(0, rim)
    plot.set_xticks(angles, [])
    plot.set_yticks([])
    plot.spines["polar"].set_visible(False)
    plot.grid(color="0.8", linewidth=0.7)
    closed = [*angles, angles[0]]
    between = np.pi / max(1, len(axes))
    for level in np.arange(RING, rim + 1, RING):
        plot.plot(closed, [level] * len(closed), color="0.75" if level == rim else "0.88", linewidth=0.8, zorder=1)
        # Half-way between two spokes, where a ring is nearer to the centre and there are few lines.
        plot.text(
            between, level * np.cos(between), f"{level:g}", ha="center", va="center", fontsize=6.5, color="0.4",
            zorder=5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.75},
        )
    for angle, name in zip(angles, axes.values(), strict=False):
        side = math.sin(angle)
        align = "center" if abs(side) < 0.2 else "left" if side > 0 else "right"
        base = "bottom" if math.cos(angle) > 0.9 else "top" if math.cos(angle) < -0.7 else "center"
        plot.text(angle, 1.07 * rim, name, ha=align, va=base)


def radars(
    table: Table, folder: Path, stem: str = "fig4", scale: str = POINTS, cider: Iterable[str] = ()
) -> list[Path]:
    """Draw one radar plot for each model and target of a table: the upstream sets and the target.

    Args:
        table: a finished table.
        folder: usually results/.../figures.
        stem: start of the file names; model and target follow.
        scale: "points", or the method whose scores are 100 %: "zero_shot" or "full_ft".
        cider: the datasets whose scores may exceed 100.

    Returns:
        The files written.

    Raises:
        UserError: the folder cannot be written.
    """
    paths, cider = [], set(cider)
    for (model, target), block in table.frame.groupby(["model", "target"], sort=False):
        first = block.iloc[0]
        axes = {**table.upstream, "A_T": f"{first['target_name']} (target)"}
        if scale == POINTS:
            rim, reference, named = CIDER_RIM if cider & {target, *table.upstream} else ACCURACY_RIM, None, stem
        else:
            rim, reference, named = RELATIVE_RIM, scale, f"{stem}_of_{scale}"
        paths += radar(
            f"{first['model_name']}, fine-tuned on {first['target_name']}",
            axes,
            block.loc[block["metric"].isin(list(axes))].rename(columns={"metric": "axis"}),
            dict(zip(block["method"], block["method_name"], strict=True)),
            Path(folder) / f"{named}_{model}_{target}",
            rim,
            reference,
        )
    return paths
