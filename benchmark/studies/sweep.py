"""Sweeps: cells over the values of one or several keys, as a tidy CSV and line plots with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.config.compose import AXES
from benchmark.config.overrides import hydra_value
from benchmark.config.own_checkpoints import PREFIX
from benchmark.config.request import Request, request
from benchmark.core.errors import INTERRUPTED, PREEMPTED, UserError
from benchmark.core.files import write_atomic
from benchmark.planning import plan as planning
from benchmark.reporting import lettering, outputs, slices
from benchmark.reporting.tables import LEVEL
from benchmark.running import runner
from benchmark.spec import CellSpec, cell_id
from benchmark.store.cells import Store
from eval import stats

METHODS = ("full_ft", "half_ft", "spider")
COLUMNS = (
    "model", "target", "method", "metric", "value", "low", "high", "n", "seeds", "by_seed", "delta", "delta_low",
    "delta_high", "p", "p_holm", "star",
)
METRICS = ("A_S", "A_T", "H")


def run(name: str | None, title: str | None, overrides: Sequence[str]) -> int:
    """Run the missing cells of a sweep, then write sweeps/<name>.csv and its plots.

    Args:
        name: of the files; by default the swept keys with their values, and what else differs from the same sweep
            without further settings.
        title: heading of the plot.
        overrides: at least one key with several values; models= methods= and targets= have defaults.

    Returns:
        The runner's exit code; finished points are written even if other cells failed.

    Raises:
        UserError: wrong overrides, no swept key, or a table.
    """
    asked = ask(overrides)
    code = runner.run(asked)
    if code in (PREEMPTED, INTERRUPTED):
        return code
    keys = axes(asked)
    store = Store(asked.results)
    frame = tidy(asked, store, keys)
    if frame.empty:
        print("No cell of this sweep is finished: nothing to draw.")
        return code
    paths = write(frame, keys, store.root, name or name_of(asked, keys), title)
    print("\n" + summary(frame, keys))
    print(f"\nSweep: {paths[0]}\nPlot:  {paths[1].with_suffix('')}.{{png,pdf,csv}}")
    return code


def ask(overrides: Sequence[str], optional: bool = False) -> Request:
    """Return the request of a sweep; the defaults are the profile's models, flickr30k and three methods.

    Args:
        overrides: of the command line.
        optional: see `benchmark.config.request.request`.

    Raises:
        UserError: wrong overrides, no swept key, or a table.
    """
    given = {AXES.get(item.partition("=")[0], item.partition("=")[0]) for item in overrides}
    if "table" in given:
        raise UserError("A sweep has no table. Leave table= out and give methods=, models=, targets=.")
    defaults = [] if "methods" in given else [f"methods={','.join(METHODS)}"]
    defaults += [] if "targets" in given else ["targets=flickr30k"]
    if "models" not in given:
        profile = [item for item in overrides if item.startswith("profile=")]
        models = request(profile, grid=False).profile.models
        defaults.append(f"models={','.join(models)}")
    asked = request([*defaults, *overrides], optional=optional)
    axes(asked)
    return asked


def axes(asked: Request) -> list[str]:
    """Return the keys with several values, in the order given.

    Raises:
        UserError: no key has several values.
    """
    keys = [
        key for key in asked.grid[0].settings if len({repr(entry.settings[key]) for entry in asked.grid}) > 1
    ] if asked.grid else []
    if not keys:
        raise UserError(
            "A sweep needs a key with several values, e.g. train.epochs=5,10 "
            "(make sweep AXIS=train.epochs VALUES=5,10)."
        )
    return keys


def name_of(asked: Request, keys: Sequence[str]) -> str:
    """Return the default file name of a sweep; sweeps with different cells get different names.

    Args:
        asked: the sweep.
        keys: the swept keys.
    """
    values = {key: dict.fromkeys(hydra_value(entry.settings[key]) for entry in asked.grid) for key in keys}
    methods = [name for name in dict.fromkeys(cell.method.id for cell in asked.cells) if not name.startswith(PREFIX)]
    whole = ask([
        f"profile={asked.profile.id}", f"methods={','.join(methods)}",  # a key may be of these alone
        *(f"{key}={','.join(found)}" for key, found in values.items()),
    ])
    parts = {key: ", ".join(found) for key, found in values.items()} | slices.differences(asked, whole)
    if set(methods) != set(METHODS):
        parts["methods"] = ", ".join(methods)
    return "_".join(keys) + slices.suffix(parts)


def tidy(asked: Request, store: Store, keys: Sequence[str]) -> pd.DataFrame:
    """Return one line per point and metric, from the cells that are done.

    Args:
        asked: the sweep.
        store: the results.
        keys: the swept keys; each becomes a column.

    Returns:
        The table lines with the axes in front. p-values are Holm-corrected over the whole sweep.
    """
    plan = planning.make(asked, store)
    done = {item.id for item in plan if item.done}
    points: dict[str, tuple[dict[str, Any], list[CellSpec]]] = {}
    for cell, settings in asked.grid:
        point = {key: settings[key] for key in keys}
        points.setdefault(repr(point), (point, []))[1].append(cell)
    frames = []
    for point, cells in points.values():
        if not any(cell_id(cell) in done for cell in cells):
            continue
        table = outputs.build_table(replace(asked.of(cells), title="sweep"), plan, store)
        frame = table.frame[table.frame["value"].notna()]
        frame = frame.assign(**{key: _text(value) for key, value in point.items()})
        frames.append(frame[[*keys, *COLUMNS, "method_name", "model_name", "target_name", "tuned"]])
    if not frames:
        return pd.DataFrame()
    frame = pd.concat(frames, ignore_index=True)
    # A point that a key does not change (a method without that parameter) is one comparison, not several.
    tested = frame[(frame["metric"] == "H") & frame["tuned"] & frame["p"].notna()]
    same = ["model", "target", "method", "value", "delta", "p"]
    compared = tested[same].drop_duplicates()
    adjusted = tested[same].merge(compared.assign(p_holm=stats.holm(compared["p"].tolist())), on=same, how="left")
    frame["p_holm"] = pd.Series(adjusted["p_holm"].to_numpy(), index=tested.index, dtype=float)
    frame["star"] = frame["p_holm"] < LEVEL
    return frame


def _text(value: Any) -> Any:
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value)


def write(frame: pd.DataFrame, keys: Sequence[str], root: Path, name: str, title: str | None) -> list[Path]:
    """Write the CSV and the plot of a sweep.

    Args:
        frame: from `tidy`.
        keys: the swept keys, the first of which is the plot's horizontal axis.
        root: results folder.
        name: file name without suffix.
        title: heading.

    Returns:
        The CSV, then the files of the plot.

    Raises:
        UserError: the folder cannot be written.
    """
    from benchmark.reporting import plots

    path = root / "sweeps" / f"{name}.csv"
    write_atomic(path, lettering.spreadsheet(frame.drop(columns=["tuned"])))
    drawn = plots.lines(frame, keys, title or f"Sweep over {', '.join(keys)}", root / "figures" / name)
    return [path, *drawn]


def summary(frame: pd.DataFrame, keys: Sequence[str]) -> str:
    """Return H over the first axis as text, one line per model, target, further axes and method."""
    lines = frame[frame["metric"] == "H"]
    wide = lines.pivot_table(
        index=["model_name", "target_name", *keys[1:], "method_name"], columns=keys[0], values="value", sort=False
    )
    head = f"H over {keys[0]}"
    return f"{head}\n{wide.round(2).reset_index().to_string(index=False)}"
