"""Weight statistics from a cell's log: how far weights moved, and where the method let them move."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from methods.blocks import split_layer

Row = Mapping[str, float]
NAMES = {
    "loss": "training loss",
    "rms_delta": "root mean square of w - w*",
    "restored_fraction": "share of weights exactly at w*",
    "mask_selected": "share selected (M > 0)",
    "mask_ones": "share of M equal to 1",
    "mask_flips": "share selected anew or no more",
}
LAYER, TENSOR = "selected_in/", "selected/"
OUTSIDE, WHOLE = "projector", "all"  # tensors outside the decoder layers; all tensors of a layer together


def read(path: Path) -> list[dict[str, float]]:
    """Return the rows of a train.jsonl that hold diagnostics; none if there is no such file."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [row for row in rows if "rms_delta" in row]


def describe(rows: Sequence[Row]) -> list[str]:
    """Return the last diagnostics as lines of text: one number each, then the selected share by layer and kind."""
    if not rows:
        return []
    last, lines = rows[-1], []
    lines.append(f"weights   at step {last['step']:.0f}" if last["step"] else "weights   as finished")
    for key, name in NAMES.items():
        if key not in last:
            continue
        text = f"{last[key]:.4g}" if key in ("loss", "rms_delta") else f"{100 * last[key]:.2f} %"
        since = f", since step {rows[-2]['step']:.0f}" if key == "mask_flips" and len(rows) > 1 else ""
        lines.append(f"          {name + since:<46} {text:>9}")
    cells = grid(last)
    if cells:
        kinds = list(dict.fromkeys(kind for row in cells.values() for kind in row))
        width = max(map(len, kinds))
        lines.append(f"selected  {'% of':<{width}}  " + "  ".join(f"{layer:>8}" for layer in cells))
        for kind in kinds:
            numbers = (f"{100 * row[kind]:.1f}" if kind in row else "" for row in cells.values())
            lines.append(f"          {kind:<{width}}  " + "  ".join(f"{text:>8}" for text in numbers).rstrip())
    elif "mask_selected" not in last:
        lines.append("          no mask: the method lets every weight move")
    return lines


def grid(row: Row) -> dict[str, dict[str, float]]:
    """Return layer -> kind of tensor -> selected share, from one row of the log; "all" is the whole layer.

    Args:
        row: of train.jsonl.

    Returns:
        Layers in order, the projector last; each of its tensors is a separate kind.
    """
    layers = sorted((key.removeprefix(LAYER) for key in row if key.startswith(LAYER)), key=_order)
    cells = {short(layer): {WHOLE: row[LAYER + layer]} for layer in layers}
    for key, value in row.items():
        if key.startswith(TENSOR):
            name = key.removeprefix(TENSOR)
            layer, module = split_layer(name) or (OUTSIDE, "")
            # A projector has each of its tensors once: their names end in 1.weight, linear_2.bias or the like.
            kind = module.rpartition(".")[2] if module else f"projector {'.'.join(name.split('.')[-2:])}"
            cells[short(layer)][kind.removesuffix("_proj").replace("layernorm", "norm")] = value
    return cells


def short(layer: str) -> str:
    """Return "layer 6" for "model.language_model.layers.6"."""
    return f"layer {layer.rpartition('.')[2]}" if layer != OUTSIDE else layer


def _order(layer: str) -> tuple[bool, int]:
    return (True, 0) if layer == OUTSIDE else (False, int(layer.rpartition(".")[2]))


def draw(rows: Sequence[Row], title: str, stem: Path) -> Path | None:
    """Draw the selected share of every layer over the steps, and of every kind of tensor at the last step.

    Args:
        rows: from `read`.
        title: heading.
        stem: path without suffix.

    Returns:
        The PNG file (PDF and CSV have the same stem), or None if the log has no selection.

    Raises:
        UserError: the folder cannot be written.
    """
    if not rows or not grid(rows[-1]):
        return None
    import pandas as pd
    from matplotlib import pyplot as plt

    from benchmark.reporting.radar import STYLE, save

    found = [
        (row["step"], layer, kind, share)
        for row in rows for layer, kinds in grid(row).items() for kind, share in kinds.items()
    ]
    data = pd.DataFrame(found, columns=["step", "layer", "kind", "selected"])
    last = data[(data["step"] == rows[-1]["step"]) & (data["kind"] != WHOLE)]
    layers, kinds = list(data["layer"].unique()), list(last["kind"].unique())
    looks = {layer: _look(place, layer, layers) for place, layer in enumerate(layers)}
    several = data["step"].nunique() > 1
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1, 1 + several, figsize=(4.6 + 3.8 * several, 0.22 * len(kinds) + 1.6), squeeze=False, layout="constrained"
        )
        right = panels[0][-1]
        for layer, look in looks.items():
            own = last[last["layer"] == layer]
            right.plot(own["selected"], [kinds.index(kind) for kind in own["kind"]], **(look | {"linestyle": "none"}))
            if several:
                whole = data[(data["layer"] == layer) & (data["kind"] == WHOLE)]
                panels[0][0].plot(whole["step"], whole["selected"], **look, label=layer, markevery=[-1])
        right.set_yticks(range(len(kinds)), kinds)
        right.invert_yaxis()
        right.grid(axis="x", color="0.9")
        right.xaxis.set_major_formatter(_percent)
        right.set_xlim(_limits(last["selected"]))
        right.set_title(f"by kind of tensor, step {rows[-1]['step']:.0f}" if several else "by kind of tensor")
        if several:
            left = panels[0][0]
            left.grid(axis="y", color="0.9")
            left.yaxis.set_major_formatter(_percent)
            left.set_ylim(_limits(data.loc[data["kind"] == WHOLE, "selected"]))
            left.set_xlabel("step")
            left.set_title("by layer")
        handles = [plt.Line2D([], [], label=layer, **look) for layer, look in looks.items()]
        figure.legend(handles=handles, loc="outside right upper")
        figure.suptitle(f"Selected share of the weights: {title}", fontsize=10)
        return save(figure, data, stem)[0]


def _percent(share: float, _: int) -> str:
    """Return a tick label for a share with all its digits: 42.5 %, not 42 %."""
    return f"{round(100 * share, 6):g}%"


def _limits(shares: Sequence[float]) -> tuple[float, float]:
    """Return axis limits around shares, at least ten points wide so that noise does not fill the plot."""
    middle, half = (min(shares) + max(shares)) / 2, max(0.05, 0.55 * (max(shares) - min(shares)))
    return middle - half, middle + half


def _look(place: int, layer: str, layers: Sequence[str]) -> dict[str, Any]:
    """Return the style of a layer: dark to light in order, with cycling markers; the projector is orange."""
    from matplotlib import colormaps

    if layer == OUTSIDE:
        return {"color": "#D55E00", "marker": "X", "linestyle": (0, (4, 1.5))}
    shade = colormaps["viridis"](0.8 * place / max(1, len(layers) - 1))
    return {"color": shade, "marker": "osD^v"[place % 5], "linestyle": "-"}
