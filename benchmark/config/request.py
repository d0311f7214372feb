"""From the command line to cells, with every fault in one message. Everything after this is plain data."""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.config import compose, own_checkpoints
from benchmark.config.axes import axes_of, own_methods, refused
from benchmark.config.grid import FULL_FT, cells_of, changed, method_spec, place_of, sources_of
from benchmark.config.overrides import MOST, flat, home, parse
from benchmark.core.errors import did_you_mean
from benchmark.core.hosts import world_size
from benchmark.spec import (
    WORK,
    CellSpec,
    DatasetSpec,
    Faults,
    MethodSpec,
    ModelSpec,
    ProfileSpec,
    RunSpec,
    build,
    cell_id,
)
from benchmark.training import train_settings


class Entry(NamedTuple):
    """A cell of a grid, and the settings that the command line gave it."""

    cell: CellSpec
    settings: Mapping[str, Any]      # the keys that were given -> this cell's values


@dataclass(frozen=True, kw_only=True)
class Request(RunSpec):
    """What one command line asks for."""

    profile: ProfileSpec
    table: str | None
    title: str | None
    grid: tuple[Entry, ...]          # in the order of the table, without the cells that they depend on
    layout: Mapping[str, Any]        # how the table is printed: the content of its file in conf/table
    full_ft: MethodSpec              # the method that post-hoc methods start from
    datasets: Mapping[str, DatasetSpec]  # every dataset, as it is configured now
    models: tuple[ModelSpec, ...]    # the models that were named, else the profile's
    data_root: str
    dtype: str
    device: str
    threads: int
    results: Path
    left_out: tuple[str, ...] = ()   # methods of the table that this engine cannot train
    unused: tuple[str, ...] = ()     # given keys that do nothing here, such as method.x that none of its methods has

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """The cells of the grid."""
        return tuple(entry.cell for entry in self.grid)

    def filtered(self, keep: Callable[[CellSpec], bool]) -> Request:
        """Return the request with only the cells that `keep` accepts; they keep their settings."""
        return replace(self, grid=tuple(entry for entry in self.grid if keep(entry.cell)))

    def of(self, cells: Iterable[CellSpec]) -> Request:
        """Return the request with these cells, without settings."""
        return replace(self, grid=tuple(Entry(cell, {}) for cell in cells))


def request(overrides: Sequence[str], grid: bool = True, optional: bool = False) -> Request:
    """Turn Hydra overrides into checked cells.

    Args:
        overrides: e.g. ["table=table5", "models=llava", "seeds=0,1", "train.epochs=5,10"].
        grid: whether the command needs cells. If not, the profile alone is enough.
        optional: the command makes several requests. A key that does nothing in this one, such as a parameter
            (method.x) that none of its methods has, is then noted as unused; the command passes all its requests to
            `check_used`.

    Returns:
        The request.

    Raises:
        UserError: lists every unknown name and every wrong value.
    """
    faults = Faults()
    given = parse(overrides, faults)
    groups = compose.chosen_files(given, faults)
    config = copy.deepcopy(compose.composed(tuple(groups.items())))  # the user's own targets are added to it
    profile = build(ProfileSpec, config["profile"], "profile", faults)
    if profile is None:
        faults.stop()
    assert profile is not None
    run = _run_settings(given, profile, faults)
    axes = axes_of(given, config, profile, grid, faults)
    engine = config["engine"]["id"]
    run = _workers(run, given, engine, given.get("device", [config["device"]])[0], faults)
    launch = _launch(run, engine, faults)
    named_checkpoints = own_checkpoints.parse(run.checkpoints, faults)
    left_out = [] if faults.messages or {"method", "methods"} & set(given) else refused(axes["methods"], engine)
    # A method that the user named is refused below instead of left out.
    axes["methods"] = [name for name in axes["methods"] if name not in left_out]
    config = config | {"methods": config["methods"] | own_methods(axes["methods"], faults)}
    unused = _unused(given, config, axes["methods"]) if optional else ()
    given = {key: values for key, values in given.items() if key not in unused}
    usual = compose.usual(profile.id)
    usual = usual | {group: config[group] | usual[group] for group in ("dataset", "methods")}  # with the user's own
    entries: list[Entry] = []
    for values in _settings(given, faults):
        settled = copy.deepcopy(config)
        # A named protocol first, so that a single key can change part of it.
        for key, value in sorted(values.items(), key=lambda item: not item[0].startswith("protocol.")):
            compose.set_key(settled, key, value, axes["models"] or profile.models, axes["methods"], faults)
        place = place_of(settled, launch, faults)
        made = cells_of(settled, profile, axes, place, faults)
        made += own_checkpoints.cells(named_checkpoints, made, faults)
        entries += [Entry(replace(cell, changed=changed(cell, usual)), values) for cell in made]
    if grid and not faults.messages:
        idle = _without_effect(given, [entry.cell for entry in entries])
        unused = (*unused, *idle) if optional else unused
        for key, reason in () if optional else idle.items():
            faults.add(f"{key}: {reason}")
    if run.only and not faults.messages:
        entries = _only(entries, run.only, method_spec(config, FULL_FT), faults)
    datasets = [build(DatasetSpec, item, f"dataset.{name}", faults) for name, item in settled["dataset"].items()]
    named = [name for name in axes["models"] or profile.models if name in settled["models"]]
    models = [build(ModelSpec, settled["models"][name], "model", faults) for name in named]
    faults.stop()
    assert place is not None
    table = config.get("table") or {}
    folder = WORK / "results" / "runs" / "-".join(filter(None, (profile.id, table.get("folder"))))
    if engine != "single":
        run = replace(run, gpus=place.devices)
    return Request(
        **vars(replace(run, results=run.results or folder)),
        profile=profile,
        table=table.get("id"),
        title=table.get("title"),
        grid=tuple(entries),
        layout=table,
        full_ft=method_spec(config, FULL_FT),
        datasets={dataset.id: dataset for dataset in datasets if dataset},
        models=tuple(model for model in models if model),
        data_root=place.data_root,
        dtype=place.dtype,
        device=place.device,
        threads=place.threads,
        left_out=tuple(left_out),
        unused=unused,
    )


def check_used(requests: Sequence[Request]) -> None:
    """Refuse keys that do nothing in any request: a parameter (method.x) that no method has, train.x without training.

    Args:
        requests: all requests of one command line, each made with `optional`.

    Raises:
        UserError: names the keys, and the parameters that exist.
    """
    if unused := unused_of(requests):
        methods = dict.fromkeys(cell.method.id for request in requests for cell in request.cells)
        valid = {f"method.{name}" for request in requests for cell in request.cells for name in cell.method.params}
        faults = Faults()
        idle = _without_effect(unused, [cell for request in requests for cell in request.cells])
        for key in unused:
            faults.add(f"{key}: {idle[key]}" if key in idle else compose.no_parameter(key, methods, valid))
        faults.stop()


def unused_of(requests: Sequence[Request]) -> list[str]:
    """Return the given keys that do nothing in any request."""
    return [key for key in requests[0].unused if all(key in request.unused for request in requests)]


def _unused(given: Mapping[str, Any], config: Mapping[str, Any], methods: Sequence[str]) -> tuple[str, ...]:
    """Return the given parameters (method.x) that none of these methods has."""
    known = {name for method in methods for name in config["methods"].get(method, {}).get("params", ())}
    return tuple(key for key in given if key.startswith("method.") and compose.parameter_of(key) not in known)


def _without_effect(given: Iterable[str], cells: Sequence[CellSpec]) -> dict[str, str]:
    """Return the given training settings that none of these cells has -> why, and what to do.

    Settings of a dataset that no cell reads are accepted: a script may describe all its data in every command.
    """
    trains = [cell.train for cell in cells if cell.train]
    if trains:
        return {key: reason for key in given if (reason := train_settings.idle(key.removeprefix("train."), trains))}
    reason = "no cell of this request is trained. Leave it out, or add a method that trains."
    return {key: reason for key in given if key.startswith("train.")}


def _run_settings(given: Mapping[str, list[Any]], profile: ProfileSpec, faults: Faults) -> RunSpec:
    """Return how the command runs: results folder, workers, GPUs and so on. A wrong value is noted and not used."""
    values: dict[str, Any] = {"jobs": min(profile.jobs, os.cpu_count() or 1)}
    for key in compose.RUN_KEYS:
        if key not in given:
            continue
        found = flat(given[key])
        if key == "gpus":
            values[key] = found
        elif key == "only":
            values[key] = list(filter(None, found[0].split(",")))
        elif len(found) != 1:
            faults.add(f"{key}={','.join(map(str, found))}: give one value.")
        elif found != [""]:
            values[key] = str(found[0]) if key == "gpu" else found[0]  # the name of a card may be a number
    for key in ("results", "hostfile"):
        if key in values:
            values[key] = home(values[key], faults).absolute()
    if "hostfile" in values and not values["hostfile"].is_file():
        name = given["hostfile"][0]
        faults.add(f"hostfile={name}: no such file. Write one with a line like 'host1 slots=8' for each machine.")
        del values["hostfile"]
    return build(RunSpec, values, "", faults) or RunSpec()


def _workers(run: RunSpec, given: Mapping[str, Any], engine: str, device: str, faults: Faults) -> RunSpec:
    """Set how many cells run at the same time, unless the user did; note GPUs that nothing would use."""
    if engine == "single" and run.gpus and device == "cpu":
        numbers = ",".join(map(str, run.gpus))
        faults.add(f"gpus={numbers}: device=cpu uses no GPU. Leave gpus out, or set device=cuda.")
    if "jobs" in given:
        return run
    if engine != "single":
        return replace(run, jobs=1)
    return replace(run, jobs=max(run.jobs, len(run.gpus))) if device == "cuda" else run  # a cell for each named GPU


def _launch(run: RunSpec, engine: str, faults: Faults) -> dict[str, Any]:
    """Return how many processes train a cell, and on which GPUs: gpus=8 means any eight, gpus=4,5 these two."""
    hostfile = str(run.hostfile) if run.hostfile else None
    if engine == "single":
        if hostfile:
            faults.add(f"hostfile={hostfile}: engine=single trains in one process. Use engine=zero2.")
        return {"processes": 1, "devices": (), "hostfile": None}
    if run.jobs > 1:
        faults.add(f"jobs={run.jobs}: with engine={engine} one cell uses all GPUs. Leave jobs out.")
    if run.gpus == (0,):
        faults.add(f"gpus=0: with engine={engine} a single number is the number of GPUs. Use gpus=1 or more.")
    if hostfile and not world_size(1, hostfile):
        faults.add(f"hostfile={hostfile}: no machine is named. Write a line like 'host1 slots=8' for each.")
    listed = run.gpus if len(run.gpus) > 1 else ()
    return {"processes": len(listed) or sum(run.gpus), "devices": listed, "hostfile": hostfile}


def _settings(given: Mapping[str, list[Any]], faults: Faults) -> Iterator[dict[str, Any]]:
    """Yield one dict of settings per combination of the swept keys."""
    special = {*compose.AXES, *compose.GROUPS, *compose.RUN_KEYS}
    swept = {key: values for key, values in given.items() if key not in special}
    combinations = math.prod(map(len, swept.values()))
    if combinations > MOST:
        faults.add(f"{', '.join(swept)}: {combinations} combinations, but a grid has at most {MOST}. Give fewer.")
        swept = {key: values[:1] for key, values in swept.items()}
    for combination in itertools.product(*swept.values()):
        yield dict(zip(swept, combination, strict=True))


def _only(entries: Sequence[Entry], names: Sequence[str], full_ft: MethodSpec, faults: Faults) -> list[Entry]:
    """Return the entries with these names, and the Full FT cells with these names that post-hoc cells are made from."""
    sources = [source for entry in entries if entry.cell.method.posthoc for source in sources_of(entry.cell, full_ft)]
    known = {cell_id(source): Entry(source, {}) for source in sources} | {cell_id(one.cell): one for one in entries}
    for name in names:
        if name not in known:
            faults.add(f"only={name}: the other keys make no cell of this name.{did_you_mean(name, known)}")
    return [entry for name, entry in known.items() if name in names]
