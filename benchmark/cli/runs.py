"""Commands that run cells or plan them: run, zeroshot, plan, sweep, figure, all, rates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmark.cli.arguments import overrides_of, split
from benchmark.core.errors import UserError, did_you_mean


def run(arguments: list[str]) -> int:
    """train, generate and score every cell that is missing, then print the table"""
    from benchmark.config.request import request

    if "--cfg" in arguments:
        return _show_config(arguments)
    asked = request(overrides_of(arguments, ["cells-only"]))
    if "--cells-only" in arguments:
        from benchmark.running import runner

        return runner.run(asked)
    from benchmark.reporting import outputs

    code, done = outputs.make(asked)
    if done:
        _compare_with_reference(asked.profile.reference, asked.results, [item.id for item in done])
    return code


def zeroshot(arguments: list[str]) -> int:
    """score the untuned models and compare them with the paper's zero-shot row"""
    from benchmark.config.request import request
    from benchmark.paper import zero_shot_gate
    from benchmark.planning import plan
    from benchmark.reporting import outputs
    from benchmark.running import runner
    from benchmark.store.cells import Store

    given = overrides_of(arguments)
    table = [] if any(item.startswith("table=") for item in given) else ["table=table5"]
    asked = request([*table, *given, "methods=zero_shot"])
    code = runner.run(asked)
    if code != runner.DONE:
        return code
    store = Store(asked.results)
    planned = plan.make(asked, store)
    outputs.report(asked, planned, store)
    zero_shot_gate.hold(asked, planned, store)
    return code


def plan(arguments: list[str]) -> int:
    """show the cells of a grid: what is done, what is left, time and space; --sbatch writes a Slurm array script"""
    from benchmark.config.request import request
    from benchmark.planning import plan as planning
    from benchmark.planning.cost import Costs
    from benchmark.store.cells import Store

    flags = [item.partition("=")[2] for item in arguments if item.startswith("sbatch=")]
    overrides = overrides_of([item for item in arguments if not item.startswith("sbatch=")], ["sbatch"])
    asked = request(overrides)
    store = Store(asked.results)
    sbatch = "--sbatch" in arguments
    planned = planning.make(asked, store, compute=sbatch)  # a plan takes no time; jobs are for what is really missing
    on_gpus = None
    if asked.gpu is None:
        costs = Costs(store, asked.profile)
    else:
        from benchmark.planning import forecast

        costs = on_gpus = forecast.Forecast(store, asked, asked.gpu)
    if sbatch:
        from benchmark.running.slurm import script

        print(script(planned, asked, costs, overrides, " ".join(flags)), end="")
        return 0
    print(planning.describe(planned, asked, costs))
    if on_gpus is not None:
        print(forecast.describe(planned, asked, on_gpus))
    elif any(model.architecture for model in asked.models):
        print("Add gpu=4090x8 (make: GPU=4090x8) for hours, memory and disk on such cards.")
    return 0


def sweep(arguments: list[str]) -> int:
    """run cells over the values of any keys, write a tidy CSV and line plots: sweep train.epochs=5,10 [name=NAME]"""
    from benchmark.studies.sweep import run as run_sweep

    overrides = overrides_of(arguments)
    named = [item.removeprefix("name=") for item in overrides if item.startswith("name=")]
    if named and not re.fullmatch(r"[\w.+-]+", named[-1]):
        raise UserError(f"name={named[-1]}: a file name of letters, digits, '.', '_', '+' and '-' is needed.")
    rest = [item for item in overrides if not item.startswith("name=")]
    return run_sweep(named[-1] if named else None, None, rest)


def figure(arguments: list[str]) -> int:
    """draw a figure of conf/figure, running what it lacks: figure fig5"""
    from benchmark.studies import named_figures

    overrides, words = split(overrides_of(arguments))
    if len(words) != 1:
        raise UserError(f"figure needs one name.{did_you_mean(' '.join(words), named_figures.names())}")
    return named_figures.run(words[0], overrides)


def all_(arguments: list[str]) -> int:
    """every table and figure from whatever cells are missing, then the report"""
    from benchmark.studies.everything import run as run_everything

    return run_everything(overrides_of(arguments))


def rates(arguments: list[str]) -> int:
    """choose each model's learning rate: a grid of Full FT on validation data"""
    from benchmark.studies.learning_rate import run as choose_rates

    return choose_rates(overrides_of(arguments))


def calibration(arguments: list[str]) -> int:
    """compare the untuned models and Full FT with the paper's rows: how hard the targets are"""
    from benchmark.studies.calibration import run as calibrate

    return calibrate(overrides_of(arguments))


def _show_config(arguments: list[str]) -> int:
    """Print every cell as its spec, one YAML document each."""
    import yaml

    from benchmark.config.request import request
    from benchmark.spec import cell_id, plain

    place = arguments.index("--cfg")
    if arguments[place + 1 : place + 2] not in (["job"], ["all"]):
        raise UserError("--cfg needs the word job: --cfg job.")
    asked = request(overrides_of([*arguments[:place], *arguments[place + 2 :]]))
    for cell in asked.cells:
        print(f"--- # {cell_id(cell)}")
        print(yaml.safe_dump(plain(cell), sort_keys=False, allow_unicode=True), end="")
    return 0


def _compare_with_reference(reference: str | None, ours: Path, cells: Sequence[str]) -> None:
    """Print one line on how far the cells of a run are from the published numbers, if there are any."""
    from benchmark.publishing.compare import compare, line
    from benchmark.spec import WORK, at_root
    from benchmark.store.cells import Store

    theirs = at_root(reference) if reference else None
    if theirs is None or theirs == ours or not any(Store(theirs).cells.glob("*/scores.json")):
        return
    gaps, alone = compare(ours, theirs, cells)
    print(line(gaps, theirs.relative_to(WORK) if theirs.is_relative_to(WORK) else theirs, alone))
