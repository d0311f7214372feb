"""The cells of one combination of settings, and what a cell differs in from its profile."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from textwrap import shorten
from typing import Any

from benchmark.config import own_modules, protocols
from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.hosts import world_size
from benchmark.spec import (
    CellSpec,
    DatasetSpec,
    EvalSpec,
    Faults,
    MethodSpec,
    ModelSpec,
    PlaceSpec,
    ProfileSpec,
    TrainSpec,
    build,
    changed_without,
    differences,
    identity,
    members,
)
from benchmark.training import replay, trackers, train_settings

FULL_FT = "full_ft"
# Sections of the composed configuration. Every key outside them is a run-time key of a cell (a PlaceSpec).
SECTIONS = ("profile", "table", "seed", "train", "eval", "dataset", "engine", "models", "methods", "generic")


def place_of(config: Mapping[str, Any], launch: Mapping[str, Any], faults: Faults) -> PlaceSpec | None:
    """Return where and how cells run: every key of conf/config.yaml that belongs to no section, and the engine's."""
    engine = dict(config["engine"])
    keys = {key: value for key, value in config.items() if key not in SECTIONS}
    place = build(PlaceSpec, {**keys, "engine": engine.pop("id"), **engine, **launch}, "", faults)
    if place and (lacking := trackers.fault(place.report_to)):
        faults.add(lacking)
    return place


def cells_of(
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
            cell = replace(untuned, method=method_spec(config, method))
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


def method_spec(config: Mapping[str, Any], name: str) -> MethodSpec:
    """Return a method with its parameters."""
    from methods.registry import entry

    return MethodSpec(name, config["methods"].get(name, {}).get("params", {}), entry(name).kind == "posthoc")


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


def sources_of(cell: CellSpec, full_ft: MethodSpec) -> tuple[CellSpec, ...]:
    """Return the Full FT cells that a post-hoc cell is made from.

    It is the one with the cell's seed, unless the method merges several (`members`): then the cell with seed s is made
    from the n seeds that begin at s n, so that two seeds of a soup share no training.
    """
    count = members(cell)
    generic = cell.generic if cell.train and cell.train.replay == "generic" else None
    source = replace(cell, method=full_ft, changed=changed_without(cell, "method."), generic=generic)
    return tuple(replace(source, seed=count * cell.seed + i) for i in range(count))


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
            method = method_spec(config, name)
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
