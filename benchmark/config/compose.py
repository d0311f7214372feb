"""From the command line to specs. Hydra composes conf/ and parses overrides; everything after this is plain data."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
import os
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark.config import own_checkpoints, own_models, own_modules, protocols
from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import user_path
from benchmark.core.hosts import world_size
from benchmark.spec import (
    CONF,
    WORK,
    CellSpec,
    DatasetSpec,
    EvalSpec,
    Faults,
    MethodSpec,
    ModelSpec,
    PlaceSpec,
    ProfileSpec,
    RunSpec,
    TrainSpec,
    build,
    cell_id,
    changed_without,
    differences,
    identity,
    members,
    seed_of,
)
from benchmark.training import replay, trackers, train_settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# What a user may write -> the axis of the grid. The Makefile passes the plural.
AXES = {
    "model": "models", "models": "models", "method": "methods", "methods": "methods", "dataset": "targets",
    "target": "targets", "targets": "targets", "seed": "seeds", "seeds": "seeds",
}
GROUPS = ("profile", "table", "train", "engine")
FULL_FT = "full_ft"
MOST = 10_000    # values of one key, and combinations of the values of all keys
LONGEST = 10_000  # characters of an override
RUN_KEYS = tuple(item.name for item in fields(RunSpec))
RAW = ("results", "hostfile", "checkpoints", "only")  # Hydra does not parse them: paths may hold commas and brackets
PATHS = ("data_root", "model.checkpoint", "model.vision_tower")
# Sections of the composed configuration. Every key outside them is a run-time key of a cell (a PlaceSpec).
SECTIONS = ("profile", "table", "seed", "train", "eval", "dataset", "engine", "models", "methods", "generic")
WHOLE = ("profile", "table")  # groups whose files are chosen whole: no override can set one of their keys


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


def options_of(group: str) -> list[str]:
    """Return the names in a configuration group."""
    own = own_models.own_models() if group == "model" else {}
    return sorted([*(path.stem for path in (CONF / group).glob("*.yaml")), *own])


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
    given = _parse(overrides, faults)
    groups = _groups(given, faults)
    config = copy.deepcopy(_compose(tuple(groups.items())))  # the user's own targets are added to it
    profile = build(ProfileSpec, config["profile"], "profile", faults)
    if profile is None:
        faults.stop()
    assert profile is not None
    run = _run_settings(given, profile, faults)
    axes = _axes(given, config, profile, grid, faults)
    engine, device = config["engine"]["id"], given.get("device", [config["device"]])[0]
    if "jobs" not in given and engine != "single":
        run = replace(run, jobs=1)
    elif "jobs" not in given and device == "cuda":
        run = replace(run, jobs=max(run.jobs, len(run.gpus)))  # one cell for each GPU that is named
    if engine == "single" and run.gpus and device == "cpu":
        numbers = ",".join(map(str, run.gpus))
        faults.add(f"gpus={numbers}: device=cpu uses no GPU. Leave gpus out, or set device=cuda.")
    launch = _launch(run, engine, faults)
    named_checkpoints = own_checkpoints.parse(run.checkpoints, faults)
    left_out = [] if faults.messages or {"method", "methods"} & set(given) else _refused(axes["methods"], engine)
    # A method that the user named is refused below instead of left out.
    axes["methods"] = [name for name in axes["methods"] if name not in left_out]
    config = config | {"methods": config["methods"] | _own_methods(axes["methods"], faults)}
    unused = _unused(given, config, axes["methods"]) if optional else ()
    given = {key: values for key, values in given.items() if key not in unused}
    own = {group: config[group] | usual(profile.id)[group] for group in ("dataset", "methods")}
    entries: list[Entry] = []
    for values in _settings(given, faults):
        settled = copy.deepcopy(config)
        # A named protocol first, so that a single key can change part of it.
        for key, value in sorted(values.items(), key=lambda item: not item[0].startswith("protocol.")):
            _apply(settled, key, value, axes["models"] or profile.models, axes["methods"], faults)
        place = _place(settled, launch, faults)
        made = _cells(settled, profile, axes, place, faults)
        made += own_checkpoints.cells(named_checkpoints, made, faults)
        entries += [Entry(replace(cell, changed=changed(cell, usual(profile.id) | own)), values) for cell in made]
    if grid and not faults.messages:
        idle = _without_effect(given, [entry.cell for entry in entries])
        unused = (*unused, *idle) if optional else unused
        for key, reason in () if optional else idle.items():
            faults.add(f"{key}: {reason}")
    if run.only and not faults.messages:
        entries = _only(entries, run.only, _method(config, FULL_FT), faults)
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
        full_ft=_method(config, FULL_FT),
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
            faults.add(f"{key}: {idle[key]}" if key in idle else _no_parameter(key, methods, valid))
        faults.stop()


def unused_of(requests: Sequence[Request]) -> list[str]:
    """Return the given keys that do nothing in any request."""
    return [key for key in requests[0].unused if all(key in request.unused for request in requests)]


def without(overrides: Sequence[str], keys: Container[str]) -> list[str]:
    """Return the overrides whose key is not one of `keys`."""
    return [item for item in overrides if item.partition("=")[0] not in keys]


def _unused(given: Mapping[str, Any], config: Mapping[str, Any], methods: Sequence[str]) -> tuple[str, ...]:
    """Return the given parameters (method.x) that none of these methods has."""
    known = {name for method in methods for name in config["methods"].get(method, {}).get("params", ())}
    return tuple(key for key in given if key.startswith("method.") and parameter_of(key) not in known)


def _without_effect(given: Iterable[str], cells: Sequence[CellSpec]) -> dict[str, str]:
    """Return the given training settings that none of these cells has -> why, and what to do.

    Settings of a dataset that no cell reads are accepted: a script may describe all its data in every command.
    """
    trains = [cell.train for cell in cells if cell.train]
    if trains:
        return {key: reason for key in given if (reason := train_settings.idle(key.removeprefix("train."), trains))}
    reason = "no cell of this request is trained. Leave it out, or add a method that trains."
    return {key: reason for key in given if key.startswith("train.")}


def parameter_of(key: str) -> str:
    """Return the name of a method's parameter: "momentum" for method.momentum and for method.params.momentum."""
    return key.removeprefix("method.").removeprefix("params.")


def _no_parameter(key: str, methods: Iterable[str], valid: Collection[str]) -> str:
    """Return the message about a parameter that no method has."""
    hint = did_you_mean(f"method.{parameter_of(key)}", valid) if valid else " They have no parameters."
    return f"{key}: no such parameter in {', '.join(methods) or 'no method'}.{hint}"


# ---------------------------------------------------------------------------------------------------------------
# Overrides


def _parse(overrides: Sequence[str], faults: Faults) -> dict[str, list[Any]]:
    """Return key -> its values: several for a comma list or a range. The last override of a key wins."""
    from hydra.errors import HydraException

    given = dict[str, list[Any]]()
    for text in overrides:
        key, equals, raw = text.partition("=")
        if len(text) > LONGEST or not text.replace("\n", " ").replace("\t", " ").isprintable():
            faults.add(f"{text[:60]!r} has control characters, or more than {LONGEST} characters. Remove them.")
            continue
        if not equals or not key:
            faults.add(f"{text!r} is not of the form key=value.")
            continue
        if key in RAW:
            given[key] = [raw]
            continue
        if key in PATHS:  # Hydra knows no ~
            text = f"{key}={re.sub('(?<![^,])~[^,]*', lambda path: hydra_value(str(_home(path[0], faults))), raw)}"
        try:
            override = _override(text)
            # A range may be very long, so it is cut before it fills the memory.
            sweep = override.sweep_iterator() if override.is_sweep_override() else iter([override.value()])
            values: list[Any] = copy.deepcopy(list(itertools.islice(sweep, MOST + 1)))
        except HydraException as error:
            reason = shorten(str(error).splitlines()[0], 200)
            faults.add(f"{shorten(text, 200)!r} cannot be read: {reason}. Quote it: '{key}=\"value\"'.")
            continue
        except (RecursionError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            faults.add(f"{text[:60]!r} cannot be read ({type(error).__name__}). Give a plain value, a list or a range.")
            continue
        if len(values) > MOST:
            faults.add(f"{text[:60]!r} has more than {MOST} values. Give fewer.")
            continue
        if override.is_delete() or override.package is not None:
            name = override.key_or_group
            faults.add(f"{text!r}: an override can set a key, not remove or move it. Use {name}=VALUE.")
            continue
        given[override.key_or_group] = values
    return given


@functools.lru_cache(maxsize=1024)
def _override(text: str) -> Override:
    """Return a parsed override. Some commands make many requests of the same text, and Hydra's grammar is slow."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(text)


def _groups(given: Mapping[str, list[Any]], faults: Faults) -> dict[str, str]:
    """Return the chosen file of each configuration group that the user named, and of the profile."""
    chosen = {"profile": default_profile()}  # always named: a request and `usual` then share one composition
    for group in GROUPS:
        if group not in given:
            continue
        name, valid = given[group][0], options_of(group)
        if len(given[group]) > 1:
            faults.add(f"{group}={','.join(map(str, given[group]))}: give one. Valid: {', '.join(valid)}.")
        elif name not in valid:
            faults.add(f"Unknown {group} {name!r}.{did_you_mean(str(name), valid)}")
        else:
            chosen[group] = name
    return chosen


@functools.cache
def default_profile() -> str:
    """Return the profile that conf/config.yaml chooses."""
    import yaml

    defaults = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return next(entry["profile"] for entry in defaults if isinstance(entry, dict) and "profile" in entry)


@functools.cache
def _compose(groups: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return conf/ composed as plain dicts, with every model under `models` and every method under `methods`."""
    from omegaconf import OmegaConf

    chosen = _hydra("config", tuple(f"{group}={name}" for group, name in groups))
    with _conf_errors():
        config = OmegaConf.to_container(OmegaConf.merge(chosen, _library()), resolve=True)
    assert isinstance(config, dict)
    # Every model gets every key, so that model.KEY=VALUE works for all of them.
    optional = {item.name: item.default for item in fields(ModelSpec) if item.default is not MISSING}
    config["models"] = {name: {**optional, "architecture": {}, **model} for name, model in config["models"].items()}
    for name, rate in config["profile"].get("learning_rates", {}).items():
        model = config["models"][name]
        model["projector_learning_rate"] *= rate / model["learning_rate"]  # keeps its ratio
        model["learning_rate"] = rate
    return {str(key): value for key, value in config.items()}


@functools.cache
def _library() -> Any:
    """Return every model under `models` and every method under `methods`: once, since no choice changes these files."""
    from omegaconf import OmegaConf

    own = own_models.own_models()
    chosen = [f"+model@models.{name}={name}" for name in options_of("model") if name not in own]
    chosen += [f"+method@methods.{name}={name}" for name in options_of("method")]
    library = _hydra(None, tuple(chosen))
    for name, path in own.items():
        with _conf_errors():
            library.models[name] = OmegaConf.load(path)
    return library


def _hydra(name: str | None, chosen: tuple[str, ...]) -> Any:
    """Return a file of conf/, or None for an empty one, with Hydra's overrides; nothing is resolved yet."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with _conf_errors(), initialize_config_dir(str(CONF), version_base=None):
        config = compose(name, overrides=list(chosen))
        OmegaConf.set_struct(config, False)  # keys may be added to it
        return config


@contextlib.contextmanager
def _conf_errors() -> Iterator[None]:
    """Turn the errors of Hydra and OmegaConf into one message."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"Cannot compose conf/: {error}. Look at your changes: git diff conf.") from error


def _home(path: Any, faults: Faults) -> Path:
    """Return a path with ~ expanded; a shell does not expand it in the middle of a word."""
    try:
        return user_path(str(path))
    except UserError as error:
        faults.add(str(error))
        return Path(str(path))


def hydra_value(value: Any) -> str:
    """Return a value in Hydra's syntax."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Hydra reads a backslash as it is, except in front of a quote.
        return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value) + "'"
    if isinstance(value, list):
        return f"[{','.join(map(hydra_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _flat(values: Iterable[Any]) -> list[Any]:
    """Return the values of a comma list, with lists among them flattened."""
    return list(itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in values))


def _run_settings(given: Mapping[str, list[Any]], profile: ProfileSpec, faults: Faults) -> RunSpec:
    """Return how the command runs: results folder, workers, GPUs and so on. A wrong value is noted and not used."""
    values: dict[str, Any] = {"jobs": min(profile.jobs, os.cpu_count() or 1)}
    for key in RUN_KEYS:
        if key not in given:
            continue
        flat = _flat(given[key])
        if key == "gpus":
            values[key] = flat
        elif key == "only":
            values[key] = list(filter(None, flat[0].split(",")))
        elif len(flat) != 1:
            faults.add(f"{key}={','.join(map(str, flat))}: give one value.")
        elif flat != [""]:
            values[key] = str(flat[0]) if key == "gpu" else flat[0]  # the name of a card may be a number
    for key in ("results", "hostfile"):
        if key in values:
            values[key] = _home(values[key], faults).absolute()
    if "hostfile" in values and not values["hostfile"].is_file():
        name = given["hostfile"][0]
        faults.add(f"hostfile={name}: no such file. Write one with a line like 'host1 slots=8' for each machine.")
        del values["hostfile"]
    return build(RunSpec, values, "", faults) or RunSpec()


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
    special = {*AXES, *GROUPS, *RUN_KEYS}
    swept = {key: values for key, values in given.items() if key not in special}
    combinations = math.prod(map(len, swept.values()))
    if combinations > MOST:
        faults.add(f"{', '.join(swept)}: {combinations} combinations, but a grid has at most {MOST}. Give fewer.")
        swept = {key: values[:1] for key, values in swept.items()}
    for combination in itertools.product(*swept.values()):
        yield dict(zip(swept, combination, strict=True))


def _apply(
    config: dict[str, Any], key: str, value: Any, models: Sequence[str], methods: Sequence[str], faults: Faults
) -> None:
    """Set one key of the composed configuration; model.x and method.x apply to all models and methods named."""
    head, _, tail = key.partition(".")
    if reason := _of_file(key, config):
        faults.add(reason)
    elif head == "protocol" and tail:
        if tail not in config["dataset"]:
            faults.add(f"{key}={value}: no such dataset.{did_you_mean(tail, config['dataset'])}")
            return
        try:
            config["dataset"][tail] = protocols.apply(config["dataset"][tail], tail, str(value))
        except UserError as error:
            faults.add(str(error))
    elif head == "model" and tail:
        nodes = [config["models"][name] for name in models if name in config["models"]]
        for node in [node for node in nodes if _holds(node, tail)] or nodes[:1]:
            _assign(node, tail, value, "model", faults)
    elif head == "method" and tail:
        name = parameter_of(key)
        nodes = [config["methods"][method]["params"] for method in methods if method in config["methods"]]
        if not any(name in node for node in nodes):
            faults.add(_no_parameter(key, methods, {f"method.{other}" for node in nodes for other in node}))
        for node in nodes:
            if name in node:
                _assign(node, name, value, "method", faults)
    else:
        settable = {name: node for name, node in config.items() if name not in ("models", "methods", *WHOLE)}
        _assign(settable, key, value, "", faults)
        config.update(settable)


def _of_file(key: str, config: Mapping[str, Any]) -> str | None:
    """Return why a key is refused that only a file in conf/ may set; None for every other key."""
    head, *middle = key.split(".")
    last = middle.pop() if middle else ""
    if head in WHOLE and last:
        if not config.get(head):
            return f"{key}: no {head} was chosen. Use {head}=NAME with one of {', '.join(options_of(head))}."
        file = f"conf/{head}/{config[head]['id']}.yaml"
        own = f"Use {last}=VALUE." if last in {*AXES, *RUN_KEYS} else (
            f"Copy it to conf/{head}/NAME.yaml, change the copy, and use {head}=NAME."
        )
        return f"{key}: only {file} can set it. {own}"
    if (head, *middle, last)[:2] == ("engine", "zero_optimization") and "zero_optimization" not in config["engine"]:
        used = config["engine"]["id"]
        return f"{key}: engine={used} does not use DeepSpeed, whose setting it is. Leave it out, or use engine=zero2."
    if key == "engine.id":
        return f"{key}: it is the name of the engine's file. Use engine=NAME."
    if (head, last) in (("model", "id"), ("dataset", "id")) and len(middle) < 2:
        return f"{key}: results are named after it. Use {'.'.join((head, *middle))}.name to change the name in tables."
    if (head, last) == ("dataset", "role") and len(middle) == 1:
        return f"{key}: it decides which average the dataset enters. Change it in conf/dataset/{middle[0]}.yaml."
    return None


def _holds(node: Any, path: str) -> bool:
    """Return whether a node holds a path of keys."""
    for name in path.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return False
        node = node[name]
    return True


def _assign(node: dict[str, Any], path: str, value: Any, prefix: str, faults: Faults) -> None:
    """Set node[path] if the key exists and the value has its type; otherwise note the fault."""
    name, _, rest = path.partition(".")
    full = f"{prefix}.{name}" if prefix else name
    if name not in node:
        valid = [f"{prefix}.{other}" for other in node] if prefix else {*node, *GROUPS, *RUN_KEYS, *AXES}
        faults.add(f"{full}: no such key.{did_you_mean(full, valid) if valid else f' {prefix} has no keys.'}")
        return
    old = node[name]
    if isinstance(old, dict):
        inner = {rest: value} if rest else value
        if not isinstance(inner, dict):
            inside = ", ".join(f"{full}.{name}" for name in old)
            faults.add(f"{full}={value}: {full} is a group of keys. Set one of {inside}.")
            return
        for key, item in inner.items():
            _assign(old, str(key), item, full, faults)
        return
    if rest:
        faults.add(f"{full}.{rest}: no such key. {full} is a single value: use {full}=VALUE.")
        return
    # Dataclasses check typed fields. Free-form options and parameters are checked only here.
    same = old is None or value is None or type(old) is type(value) or {type(old), type(value)} <= {int, float}
    if not same and (".options." in full or prefix.startswith("method")):
        faults.add(f"{full}={value}: expected a value like {old!r}.")
        return
    node[name] = value


# ---------------------------------------------------------------------------------------------------------------
# The grid


def _axes(
    given: Mapping[str, list[Any]], config: Mapping[str, Any], profile: ProfileSpec, grid: bool, faults: Faults
) -> dict[str, list[Any]]:
    """Return models, methods, targets and seeds: the user's, else the table's, else the profile's."""
    from methods.registry import entry

    named: dict[str, list[Any]] = {}
    for key, values in given.items():
        if key in AXES:
            flat = _flat(values)
            if any(isinstance(value, list | dict) for value in flat):
                faults.add(f"{key}={shorten(','.join(map(str, values)), 60)}: expected a name, or names: {key}=A,B.")
                flat = []
            named[AXES[key]] = list(dict.fromkeys(flat))
    table = config.get("table") or {}
    if table:
        models = table["models"] or profile.table_models.get(table["id"]) or profile.models
        defaults = {"models": models, "methods": table["methods"], "targets": table["targets"], "seeds": table["seeds"]}
    else:
        defaults = {"models": [], "methods": [], "targets": [], "seeds": [config["seed"]]}
    axes = {name: list(named.get(name, default)) for name, default in defaults.items()}
    axes["targets"] = [
        name if name in config["dataset"] or not own_modules.is_module(str(name))
        else _own_target(str(name), config, faults) for name in axes["targets"]
    ]
    axes["methods"] = [_own_method(str(name), faults) for name in axes["methods"]]
    _check_axes(axes, config, faults)
    axes["seeds"] = [seed_of(seed, faults) for seed in axes["seeds"]]
    if grid or named:
        needed = [("models", "model"), ("methods", "method")]
        if not faults.messages and any(entry(name).kind != "none" for name in axes["methods"]):
            needed += [("targets", "dataset"), ("seeds", "seed")]
        missing = [f"{key}=" for name, key in needed if not axes[name]]
        if missing and not faults.messages:
            faults.add(f"{', '.join(missing)} missing. Give table=table5, or method=, model= and dataset= (see list).")
    return axes


def _own_target(module: str, config: Mapping[str, Any], faults: Faults) -> str:
    """Add the user's own target (a module or its file) to the datasets; return its id."""
    from benchmark.data import own_target

    try:
        values = own_target(own_modules.canonical(module))
    except UserError as error:
        faults.add(str(error))
        return module
    config["dataset"][values["id"]] = values
    return values["id"]


def _own_method(text: str, faults: Faults) -> str:
    """Return a method's id: module:Class for the user's own, who may have written FILE:Class, or another package's."""
    from methods.registry import METHODS, entry

    module, _, name = text.rpartition(":")
    try:
        if not module:
            cls = entry(text).cls
            return text if text in METHODS else cls
        return f"{own_modules.canonical(module)}:{name}"
    except UserError as error:
        faults.add(str(error))
        return text


def _check_axes(axes: Mapping[str, list[Any]], config: Mapping[str, Any], faults: Faults) -> None:
    """Note every model, method and target that does not exist."""
    from methods.registry import entry

    targets = [name for name, dataset in config["dataset"].items() if dataset["role"] == "target"]
    for name in axes["models"]:
        if name not in config["models"]:
            faults.add(f"Unknown model {name!r}.{did_you_mean(str(name), config['models'])}")
    for name in axes["methods"]:
        try:
            entry(str(name))
        except UserError as error:
            faults.add(str(error))
    for name in axes["targets"]:
        if name in config["dataset"] and name not in targets:
            faults.add(f"{name!r} is not a target: it is a source set (A^S). Valid: {', '.join(targets)}.")
        elif name not in targets:
            faults.add(f"Unknown dataset {name!r}.{did_you_mean(str(name), targets)}")


def _own_methods(methods: Sequence[str], faults: Faults) -> dict[str, Any]:
    """Return the configuration of the user's own methods (module:Class): the defaults of their parameters."""
    from methods.registry import defaults

    if faults.messages:
        return {}
    return {name: {"id": name, "params": defaults(name)} for name in methods if ":" in name}


def _refused(methods: Sequence[str], engine: str) -> list[str]:
    """Return the methods that, as configured, cannot train on an engine."""
    from methods.registry import entry

    return [name for name in methods if engine in entry(name).refuses]


def _place(config: Mapping[str, Any], launch: Mapping[str, Any], faults: Faults) -> PlaceSpec | None:
    """Return where and how cells run: every key of conf/config.yaml that belongs to no section, and the engine's."""
    engine = dict(config["engine"])
    keys = {key: value for key, value in config.items() if key not in SECTIONS}
    place = build(PlaceSpec, {**keys, "engine": engine.pop("id"), **engine, **launch}, "", faults)
    if place and (lacking := trackers.fault(place.report_to)):
        faults.add(lacking)
    return place


def _cells(
    config: Mapping[str, Any], profile: ProfileSpec, axes: Mapping[str, list[Any]], place: PlaceSpec | None,
    faults: Faults,
) -> list[CellSpec]:
    """Return the cells of one combination of settings, models outermost, methods innermost."""
    from methods.registry import entry

    datasets = {
        name: build(DatasetSpec, values, f"dataset.{name}", faults) for name, values in config["dataset"].items()
    }
    models = {
        name: build(ModelSpec, config["models"][name], "model", faults)
        for name in axes["models"] if name in config["models"]
    }
    trains = {name: _train_spec(config["train"], model, faults) for name, model in models.items() if model}
    evaluation = build(EvalSpec, config["eval"], "eval", faults)
    sets = {name: dataset for name, dataset in datasets.items() if dataset}
    _check_names(config, profile, faults)
    _check_stops(list(sets.values()), faults)
    _check_methods(config, axes["methods"], faults)
    if faults.messages or place is None or evaluation is None:
        return []
    if any(entry(name).kind != "none" for name in axes["methods"]):
        _check_processes(trains.values(), place, faults)
        for train in filter(None, trains.values()):
            zero = place.zero_optimization if place.engine != "single" else {}
            for fault in filter(None, (train_settings.freed(train, zero), replay.fault_of(train))):
                faults.add(fault)
            for method in axes["methods"]:
                if train.loss in train_settings.NEEDS_BASE and not entry(method).starts_as_base:
                    faults.add(
                        f"train.loss={train.loss} compares with the base model, but method={method} changes what the "
                        "model computes before the first step, and only its weights can be put back. Use "
                        "train.loss=cross_entropy, or another method."
                    )
    upstream, extra, asked = (
        tuple(sets[name] for name in names) for names in (profile.upstream, profile.extra, axes["targets"])
    )
    generic = _generic(config, trains.values(), axes["methods"], faults)
    cells: list[CellSpec] = []
    for name, target, seed in itertools.product(axes["models"], asked or [None], axes["seeds"]):
        model = models[name]
        assert model is not None
        untuned = CellSpec(
            **vars(place), profile=profile.id, model=model, method=MethodSpec("", {}), target=None, seed=0, train=None,
            datasets=(*upstream, *asked, *extra), eval=evaluation,
        )
        for method in axes["methods"]:
            cell = replace(untuned, method=_method(config, method))
            if entry(method).kind != "none":
                assert target is not None
                tuned = {"target": target.id, "seed": seed, "train": trains[name], "datasets": (*upstream, target)}
                cell = replace(cell, **tuned)
                if _uses_generic(cell.train, method):
                    cell = replace(cell, generic=generic)
            if cell not in cells:
                cells.append(cell)
    return cells


def _uses_generic(train: TrainSpec | None, method: str) -> bool:
    """Return whether a training reads data that show no source set."""
    from methods.registry import entry

    return train is not None and (train.replay == "generic" or entry(method).sees_generic)


def _generic(
    config: Mapping[str, Any], trains: Iterable[TrainSpec | None], methods: Sequence[str], faults: Faults
) -> DatasetSpec | None:
    """Return the data that show no source set, if a cell needs them; note why there are none."""
    from benchmark.data import own_target

    users = [f"train.replay={train.replay}" for train in trains if train and train.replay == "generic"]
    users = users or [f"method={method}" for method in methods if _uses_generic(next(iter(trains), None), method)]
    if not users:
        return None
    if not config["generic"]:
        faults.add(f"{users[0]} {replay.NO_DATA}")
        return None
    try:
        values = own_target(own_modules.canonical(str(config["generic"]))) | {"role": "extra"}
    except UserError as error:
        faults.add(f"generic={config['generic']}: {error}")
        return None
    return build(DatasetSpec, values, "generic", faults)


def sources_of(cell: CellSpec, full_ft: MethodSpec) -> tuple[CellSpec, ...]:
    """Return the Full FT cells that a post-hoc cell is made from.

    It is the one with the cell's seed, unless the method merges several (`members`): then the cell with seed s is made
    from the n seeds that begin at s n, so that two seeds of a soup share no training.
    """
    count = members(cell)
    generic = cell.generic if cell.train and cell.train.replay == "generic" else None
    source = replace(cell, method=full_ft, changed=changed_without(cell, "method."), generic=generic)
    return tuple(replace(source, seed=count * cell.seed + i) for i in range(count))


def _only(entries: Sequence[Entry], names: Sequence[str], full_ft: MethodSpec, faults: Faults) -> list[Entry]:
    """Return the entries with these names, and the Full FT cells with these names that post-hoc cells are made from."""
    sources = [source for entry in entries if entry.cell.method.posthoc for source in sources_of(entry.cell, full_ft)]
    known = {cell_id(source): Entry(source, {}) for source in sources} | {cell_id(one.cell): one for one in entries}
    for name in names:
        if name not in known:
            faults.add(f"only={name}: the other keys make no cell of this name.{did_you_mean(name, known)}")
    return [entry for name, entry in known.items() if name in names]


def usual(profile: str) -> dict[str, Any]:
    """Return the configuration that a profile alone gives."""
    return _compose((("profile", profile),))


def changed(cell: CellSpec, usual: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings in which a cell differs from its profile's defaults.

    Args:
        cell: the cell.
        usual: the configuration of its profile, with the user's own targets and methods.

    Returns:
        The settings as key=value, e.g. "train.epochs=10".
    """
    none = Faults()  # stays empty: conf/ was checked before
    model = build(ModelSpec, usual["models"][cell.model.id], "model", none) or cell.model
    train = _train_spec(usual["train"], model, none) if cell.train else None
    sets = tuple(build(DatasetSpec, usual["dataset"][one.id], "", none) or one for one in cell.datasets)
    method = replace(cell.method, params=usual["methods"].get(cell.method.id, {}).get("params", {}))
    evaluation = build(EvalSpec, usual["eval"], "eval", none) or cell.eval
    other = replace(cell, model=model, method=method, train=train, datasets=sets, eval=evaluation, dtype=usual["dtype"])
    found = differences(identity(cell), identity(other))
    return tuple(f"{_key(path)}={_short(value)}" for path, value, _ in found)


def _key(path: str) -> str:
    """Return a path of a cell's identity as the key that a user sets."""
    return re.sub("^datasets", "dataset", path).replace("method.params.", "method.", 1)


def _short(value: Any) -> str:
    """Return a value in Hydra's syntax, on one short line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shorten(str(value), 60)


def _train_spec(values: Mapping[str, Any], model: ModelSpec, faults: Faults) -> TrainSpec | None:
    """Return the training settings of a model; its own learning rates fill in the rates that are not set.

    If only train.learning_rate is set, the projector's rate keeps the model's ratio to it.
    """
    rate, projector = values["learning_rate"], values["projector_learning_rate"]
    if projector is None:
        ratio = model.projector_learning_rate / model.learning_rate
        number = isinstance(rate, int | float) and not isinstance(rate, bool)
        projector = rate * ratio if number else model.projector_learning_rate
    rate = model.learning_rate if rate is None else rate
    filled = {**values, "learning_rate": rate, "projector_learning_rate": projector}
    train = build(TrainSpec, filled, "train", faults)
    if train and train.batch_size % train.micro_batch_size:
        faults.add(
            f"train.batch_size={train.batch_size} is not a multiple of train.micro_batch_size={train.micro_batch_size}."
        )
    return train and train_settings.settled(train)


def _check_processes(trains: Iterable[TrainSpec | None], place: PlaceSpec, faults: Faults) -> None:
    """Note a number of processes that does not divide the batch, before each of them loads a model."""
    count = world_size(place.processes, place.hostfile)
    for train in filter(None, trains):
        batch, micro = train.batch_size, train.micro_batch_size
        if count < 2 or batch % (micro * count) == 0:
            continue
        fits = [size for size in range(micro, 0, -1) if batch % (size * count) == 0]
        numbers = ", ".join(str(n) for n in range(1, batch // micro + 1) if batch % (micro * n) == 0)
        fix = f"Set train.micro_batch_size={fits[0]}." if fits else f"Use one of these numbers of processes: {numbers}."
        faults.add(
            f"{count} processes with train.micro_batch_size={micro} each do not divide train.batch_size={batch}. {fix}"
        )


def _check_names(config: Mapping[str, Any], profile: ProfileSpec, faults: Faults) -> None:
    """Note names in conf/ that only the code can check: model families and the blocks to tune."""
    from benchmark.models import FAMILIES
    from benchmark.models.scope import fault_of

    if fault := fault_of(str(config["train"]["scope"]), config["train"]["projector"]):
        faults.add(fault)
    for model in config["models"].values():
        if model["family"] not in FAMILIES:
            faults.add(f"model.family={model['family']}: unknown value.{did_you_mean(str(model['family']), FAMILIES)}")
    # These become names of files and folders.
    ids = {f"dataset.{name}.id": item["id"] for name, item in config["dataset"].items()}
    ids |= {f"model.id of {name}": model["id"] for name, model in config["models"].items()}
    ids |= {"table.id": config["table"]["id"]} if config.get("table") else {}
    for key, value in ids.items():
        if not re.fullmatch(r"\w[\w.+-]{0,99}", str(value)):
            faults.add(f"{key}={value}: a name may have only letters, digits, '.', '_', '+' and '-'.")
    for name in (*profile.upstream, *profile.targets, *profile.extra):
        if name not in config["dataset"]:
            faults.add(f"profile {profile.id} names the dataset {name!r}.{did_you_mean(name, config['dataset'])}")


def _check_stops(datasets: Sequence[DatasetSpec], faults: Faults) -> None:
    """Note stop strings that would end every answer at once, or no answer: overrides cannot escape a line break."""
    for dataset in datasets:
        named = "first_line" in protocols.known(dataset.id)
        hint = f" For the first line use protocol.{dataset.id}=first_line." if named else ""
        for word in dataset.stop:
            if not word or "\\" in word:
                key = f"dataset.{dataset.id}.stop"
                faults.add(f"{key}={word!r}: expected text without a backslash, e.g. ['###'].{hint}")


def _check_methods(config: Mapping[str, Any], methods: Sequence[Any], faults: Faults) -> None:
    """Note parameters of methods that are out of range, and methods that refuse the engine.

    A method's module takes seconds to import. Unchanged parameters are known to be valid, and the registry says which
    engines refuse them, so the module is not imported for these.
    """
    from methods.registry import METHODS, configured, entry, make_params, refusal

    engine = config["engine"]["id"]
    for name in map(str, methods):
        try:
            method = _method(config, name)
            as_configured = name in METHODS and method.params == configured(name)
            if not as_configured:
                make_params(name, method.params)
            looked_at = not as_configured or engine in entry(name).refuses
            if engine != "single" and entry(name).kind in ("training", "adapter") and looked_at:
                reason = refusal(name, method.params, engine)
                if reason:
                    faults.add(f"method={name} refuses engine={engine}: {reason}")
        except UserError as error:
            faults.add(str(error))


def _method(config: Mapping[str, Any], name: str) -> MethodSpec:
    """Return a method with its parameters."""
    from methods.registry import entry

    return MethodSpec(name, config["methods"].get(name, {}).get("params", {}), entry(name).kind == "posthoc")
