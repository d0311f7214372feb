"""Named figures: conf/figure/<name>.yaml defines the figure and its cells; missing cells run first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmark.config import own_modules
from benchmark.config.compose import AXES
from benchmark.config.overrides import without
from benchmark.config.request import Request, check_used, request
from benchmark.core.errors import INTERRUPTED, PREEMPTED, UserError, did_you_mean
from benchmark.planning import plan as planning
from benchmark.reporting import lettering, outputs, slices
from benchmark.running import runner
from benchmark.spec import CONF
from benchmark.store.cells import Store, read_cell
from benchmark.studies import survey, sweep

GRID = ("models", "methods", "targets", "seeds")


def run(name: str, overrides: Sequence[str]) -> int:
    """Run a figure's missing cells, then draw it.

    Args:
        name: of a file in conf/figure.
        overrides: settings that replace those of the file.

    Returns:
        The runner's exit code.

    Raises:
        UserError: no such figure, wrong overrides, or nothing to draw.
    """
    figure = read(name)
    return KINDS[figure["kind"]](figure, [*defaults(figure), *overrides])


def names() -> list[str]:
    """Return the names of all figures."""
    return sorted(path.stem for path in (CONF / "figure").glob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    """Return a figure's file.

    Raises:
        UserError: there is none.
    """
    if name not in names():
        raise UserError(f"Unknown figure {name!r}.{did_you_mean(name, names())}")
    return yaml.safe_load((CONF / "figure" / f"{name}.yaml").read_text(encoding="utf-8"))


def defaults(figure: Mapping[str, Any]) -> list[str]:
    """Return a figure's cells as overrides."""
    found = [f"{key}={','.join(map(str, figure[key]))}" for key in GRID if figure.get(key)]
    return found + [f"{key}={','.join(map(str, values))}" for key, values in (figure.get("axes") or {}).items()]


def requests(name: str, overrides: Sequence[str], optional: bool = False) -> list[Request]:
    """Return the cells that a figure is drawn from, as requests without a table; of the plane, its curve comes last.

    Args:
        name: of the figure.
        overrides: replace what the figure's file says.
        optional: see `benchmark.config.request.request`.

    Raises:
        UserError: no such figure, or wrong overrides.
    """
    figure = read(name)
    if figure["kind"] == "prediction":
        raise UserError(f"figure={name} has no cells of its own: it reads all that are finished. Leave it out.")
    if figure["kind"] == "survey":
        return [survey.ask(figure, overrides).everything]
    if figure["kind"] == "sweep":
        return [sweep.ask([*defaults(figure), *overrides], optional)]
    plain = with_models([*defaults(figure), *overrides])
    curve = figure.get("curve")
    if figure["kind"] == "form":
        shown = [item for item in plain if item.startswith("eval.examples=")] or [f"eval.examples={figure['examples']}"]
        plain = without(plain, ("eval.examples",))
        return [request(plain, optional=optional), request([*plain, *shown], optional=optional)]
    found = [request(plain, optional=optional or bool(curve))]
    if curve:
        found.append(curve_of(curve, plain, found[0]))
        if not optional:
            check_used(found)
    return found


def curve_of(curve: Mapping[str, Any], overrides: Sequence[str], beside: Request) -> Request:
    """Return the cells of a curve: one method over the values of its parameter.

    Args:
        curve: of a figure's file.
        overrides: of the figure. Values of the curve's key in them replace the file's, unless a method of the figure
            has a parameter of that name too.
        beside: the figure's other cells.
    """
    kept = without(overrides, ("methods", "method", "checkpoints"))
    own = any(item.startswith(f"{curve['key']}=") for item in kept) and curve["key"] in beside.unused
    values = [] if own else [f"{curve['key']}={','.join(map(str, curve['values']))}"]
    return request([*kept, f"methods={curve['method']}", *values], optional=True)


def with_models(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with the profile's models where none are named."""
    if any(item.startswith(("models=", "model=")) for item in overrides):
        return list(overrides)
    profile = [item for item in overrides if item.startswith("profile=")]
    return [f"models={','.join(request(profile, grid=False).profile.models)}", *overrides]


def _part(figure: Mapping[str, Any], asked: Request, ignore: Sequence[str] = ()) -> dict[str, str]:
    """Return how a request differs from the figure in conf/figure; see `slices.differences`."""
    return slices.differences(asked, requests(figure["id"], [f"profile={asked.profile.id}"])[0], ignore)


def _told(paths: Sequence[Path]) -> None:
    for stem in dict.fromkeys(path.with_suffix("") for path in paths):
        print(f"Figure: {stem}.{{png,pdf,csv}}")


# -- kinds ----------------------------------------------------------------------------------------------------


def _sweep(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    part = _part(figure, sweep.ask(overrides))
    return sweep.run(figure["id"] + slices.suffix(part), figure["title"] + slices.heading(part), overrides)


def _plane(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    """Draw the plane of A^S and A^T: methods of the tables, and the curve of WiSE-FT as the control."""
    # The overrides include those of the file; applying them twice is harmless.
    asked, extra = requests(figure["id"], overrides)
    outputs.check_places(asked.cells)
    both = replace(asked, grid=asked.grid + extra.grid)
    code = runner.run(both)
    if code in (PREEMPTED, INTERRUPTED):
        return code
    store = Store(asked.results)
    points = outputs.build_table(asked, planning.make(asked, store), store).frame
    bends = sweep.tidy(extra, store, [figure["curve"]["key"]])
    part = _part(figure, asked, ignore=("models",))  # each has a file of its own
    stem, title = figure["id"] + slices.suffix(part), figure["title"] + slices.heading(part)
    _told(planes(points, bends, figure["curve"]["key"], store.root / "figures", stem, title))
    return code


def planes(
    points: pd.DataFrame, bends: pd.DataFrame, key: str, folder: Path, stem: str, title: str
) -> list[Path]:
    """Draw one plane per model with a panel per target.

    Args:
        points: frame of a table.
        bends: frame of the curve's sweep over `key`, may be empty.
        key: the swept key.
        folder: of the figures.
        stem: start of the file names.
        title: heading.

    Raises:
        UserError: no finished cell, or the folder cannot be written.
    """
    from benchmark.reporting import plots

    paths: list[Path] = []
    for model, own in points[points["value"].notna()].groupby("model", sort=False):
        panels = {}
        for target, block in own.groupby("target", sort=False):
            wide = _wide(block, ["method", "method_name"])
            if wide.empty:
                continue
            curve = pd.DataFrame()
            if not bends.empty:
                bent = bends[(bends["model"] == model) & (bends["target"] == target)]
                curve = _wide(bent, [key, "method", "method_name"]).sort_values(key) if not bent.empty else curve
            if not curve.empty:
                # The ends of the curve are known: none of the change, and all of it.
                start, end = (wide[wide["method"] == name] for name in ("zero_shot", "full_ft"))
                curve = pd.concat([start.assign(**{key: 0.0}), curve, end.assign(**{key: 1.0})])
            panels[block["target_name"].iloc[0]] = (wide, curve)
        if panels:
            name = own["model_name"].iloc[0]
            paths += plots.plane(f"{title}: {name}", panels, folder / f"{stem}_{model}", key=key)
    if not paths:
        raise UserError("No finished cell to draw. Run the cells first.")
    return paths


def _wide(lines: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """Return one row per method (or point) with A_S, A_T, H and their intervals as columns; incomplete ones go."""
    lines = lines[lines["metric"].isin(sweep.METRICS)]
    wide = lines.pivot_table(index=index, columns="metric", values=["value", "low", "high"], sort=False)
    wide.columns = [metric if what == "value" else f"{metric}_{what}" for what, metric in wide.columns]
    columns = [f"{metric}{end}" for metric in sweep.METRICS for end in ("", "_low", "_high")]
    return wide.reindex(columns=columns).dropna().reset_index()


def _pid(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    """Draw Fig. 1: no cell is needed, only base models and training data."""
    from benchmark.core.progress import images_told, long_work, progress
    from benchmark.reporting import plots
    from benchmark.running.worker import Worker, prepare_process
    from benchmark.studies import discrepancy

    asked = request(with_models(overrides))
    store, show = Store(asked.results), progress()
    store.check_writable()
    runner.prepare(asked, show)
    planning.check_inputs(asked.cells)
    place = asked.cells[0]
    prepare_process(place.threads, place.device, asked.gpus[0] if asked.gpus else None)
    worker = Worker(store)
    for model in asked.models:
        with long_work(f"{figure['id']} {model.id}") as told, images_told(partial(told, "images")):
            frame = discrepancy.measure(asked, model, worker, store.root / "pid")
        tokens, shards = frame["tokens"].iloc[0], frame["shards"].iloc[0]
        title = f"{figure['title']}: {model.name}, at w*, {shards} shards of {tokens} supervised tokens"
        _told(plots.discrepancy(frame, title, store.root / "figures" / f"{figure['id']}_{model.id}"))
    return 0


def _examples(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    """Draw Fig. 3: images with answers."""
    from benchmark.running.worker import Worker
    from benchmark.studies import examples

    asked = request(with_models(overrides))
    if len({cell.seed for cell in asked.cells if cell.train is not None}) > 1:
        raise UserError("The examples are of one training: give one seed, e.g. seeds=0.")
    outputs.check_places(asked.cells)
    code = runner.run(asked)
    if code in (PREEMPTED, INTERRUPTED):
        return code
    store = Store(asked.results)
    worker = Worker(store)
    records = {
        cell.target: worker.records(cell, cell.target, cell.eval.split, cell.eval.limit)
        for cell in asked.cells if cell.target
    }
    plan = planning.make(asked, store)
    # Each model and target has a file of its own, with the same three methods.
    part = _part(figure, asked, ignore=("models", "targets", "methods"))
    stem, title = figure["id"] + slices.suffix(part), figure["title"] + slices.heading(part)
    _told(examples.draw(asked, plan, store, records, store.root / "figures" / stem, title))
    return code


def _epochs(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    """Draw forgetting over training: scores after every epoch of one schedule."""
    from benchmark.core.files import write_atomic
    from benchmark.reporting import plots
    from benchmark.studies import forgetting_curve

    asked = request(with_models(overrides))
    outputs.check_places(asked.cells)
    code = forgetting_curve.run(asked)
    if code:
        return code
    frame = forgetting_curve.tidy(asked)
    root, part = Path(asked.results), _part(figure, asked)
    stem = figure["id"] + slices.suffix(part)
    write_atomic(root / "sweeps" / f"{stem}.csv", lettering.spreadsheet(frame))
    _told(plots.lines(frame, ["epoch"], figure["title"] + slices.heading(part), root / "figures" / stem))
    return 0


def _regime(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    """Draw where a method beats Full FT, over the number of training rows and the learning rate."""
    from benchmark.core.files import write_atomic
    from benchmark.reporting import plots
    from benchmark.studies import regime_map

    asked = sweep.ask(overrides)
    methods = list(dict.fromkeys(cell.method.id for cell in asked.cells))
    compared = [method for method in methods if method not in ("zero_shot", "full_ft")]
    if len(compared) != 1 or len(methods) != 3:
        raise UserError(f"methods={','.join(methods)}: this figure needs zero_shot, full_ft and one more method.")
    code = runner.run(asked)
    if code in (PREEMPTED, INTERRUPTED):
        return code
    store, part = Store(asked.results), _part(figure, asked)
    stem, title = figure["id"] + slices.suffix(part), figure["title"] + slices.heading(part)
    lines = sweep.tidy(asked, store, [regime_map.ROWS, regime_map.RATE])
    frame = regime_map.measure(lines, compared[0]) if not lines.empty else lines
    if frame.empty:
        raise UserError("No finished Full FT to draw. Run the cells first.")
    rates = figure["paper"]["learning_rate"]
    rows = figure["paper"]["rows"]
    marked = {model.id: (rows, rates[model.family]) for model in asked.models if model.family in rates}
    write_atomic(store.root / "sweeps" / f"{stem}.csv", lettering.spreadsheet(frame))
    panels = {
        "forgetting": "Full FT forgets (A^S)", "difference": f"H: {outputs.name_of(compared[0])} - Full FT",
        "matched": "the same at equal A^T",
    }
    _told(plots.maps(frame, panels, title, store.root / "figures" / stem, marked))
    return code


def _survey(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    """Make the table and the plane of every method at equal learning."""
    from benchmark.reporting import plots
    from benchmark.studies import row_costs

    asked = survey.ask(figure, overrides)
    outputs.check_places(asked.base.cells)
    code = runner.run(asked.everything)
    if code in (PREEMPTED, INTERRUPTED):
        return code
    store = Store(asked.base.results)
    plan = planning.make(asked.everything, store)
    readings, points = survey.measure(asked, store, plan)
    if readings.empty:
        raise UserError("No finished curve to read: the untuned model, Full FT and one more point are needed.")
    row_costs.measure(asked, plan, store)
    readings = readings.merge(row_costs.recorded(asked, plan, store), on=["model", "row"], how="left")
    part = survey.part_of(figure, overrides, asked)
    for model, lines in readings.groupby("model", sort=False):
        stem = f"{figure['id']}_{model}{slices.suffix(part)}"
        title = f"{figure['title']}{slices.heading(part)}: {lines['model_name'].iloc[0]}"
        text = survey.markdown(lines, asked.levels, title, survey.notes(asked, lines))
        print(f"\n{text}")
        _save_study(store.root / "studies" / stem, text, lines)
        _told(plots.curves(points[points["model"] == model], title, store.root / "figures" / stem))
    return code


def _prediction(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    """Hold forgetting against cheap measures of every finished cell. Nothing is trained."""
    from benchmark.core.progress import long_work
    from benchmark.reporting import plots
    from benchmark.running.worker import Worker, prepare_process
    from benchmark.studies import drift, prediction

    given = {item.partition("=")[0]: item.partition("=")[2].strip("[]") for item in overrides}
    wanted = {AXES[key]: value.split(",") for key, value in given.items() if key in AXES}
    if "methods" in wanted:
        wanted["methods"] = list(map(own_modules.canonical_class, wanted["methods"]))
    asked = request([item for item in overrides if item.partition("=")[0] not in AXES], grid=False)
    store = Store(asked.results)
    folders = prediction.choose(store, asked.profile.id, wanted)
    if not store.is_published:
        store.check_writable()
        stage = drift.Stage(store, drift.Amount(**figure["records"]), Worker(store))
        missing = stage.missing(folders)
        if missing:
            place = read_cell(missing[0])
            prepare_process(place.threads, place.device, asked.gpus[0] if asked.gpus else None)
        for number, folder in enumerate(missing, 1):
            with long_work(f"{folder.name} ({number} of {len(missing)})") as told:
                stage.run(folder, told)
    frame, notes = prediction.collect(folders)
    found = prediction.correlations(frame) if not frame.empty else frame
    part = {axis: ", ".join(values) for axis, values in wanted.items()}
    stem, title = figure["id"] + slices.suffix(part), figure["title"] + slices.heading(part)
    text = prediction.markdown(found, title, notes)
    print(f"\n{text}")
    if store.is_published:
        return 0
    _save_study(store.root / "studies" / stem, text, found)
    panels = {name: about for name, about in prediction.MEASURES.items() if name in set(found["measure"])}
    _told(plots.predictors(frame, found, panels, title, store.root / "figures" / stem))
    return 0


def _form(figure: Mapping[str, Any], overrides: Sequence[str]) -> int:
    """Compare what models lost when they are asked as usual and after solved questions."""
    from benchmark.reporting import plots
    from benchmark.studies import answer_form

    plain, shown = requests(figure["id"], overrides)
    outputs.check_places(plain.cells)
    outputs.check_places(shown.cells)
    code = runner.run(replace(plain, grid=plain.grid + shown.grid))
    if code in (PREEMPTED, INTERRUPTED):
        return code
    store = Store(plain.results)
    part = slices.differences(shown, requests(figure["id"], [f"profile={plain.profile.id}"])[1])
    stem, title = figure["id"] + slices.suffix(part), figure["title"] + slices.heading(part)
    found = answer_form.measure(plain, shown, store)
    text = answer_form.markdown(found, title, shown.cells[0].eval.examples)
    print(f"\n{text}")
    _save_study(store.root / "studies" / stem, text, found)
    if (tuned := found[found["target"] != ""]).empty:
        return code
    _told(plots.lost_and_shown(tuned, title, store.root / "figures" / stem))
    return code


def _save_study(path: Path, text: str, frame: pd.DataFrame) -> None:
    """Save a study's table as Markdown and as CSV, and say where."""
    from benchmark.core.files import write_atomic

    write_atomic(path.with_name(f"{path.name}.md"), text)
    write_atomic(path.with_name(f"{path.name}.csv"), lettering.spreadsheet(frame))
    print(f"Table: {path}.{{md,csv}}")


KINDS: dict[str, Callable[[Mapping[str, Any], Sequence[str]], int]] = {
    "sweep": _sweep, "plane": _plane, "pid": _pid, "examples": _examples, "epochs": _epochs,
    "regime": _regime, "survey": _survey, "prediction": _prediction, "form": _form,
}

