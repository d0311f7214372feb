"""Which models, methods, targets and seeds a command line means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from benchmark.config import own_modules
from benchmark.config.compose import AXES
from benchmark.config.overrides import flat
from benchmark.core.errors import UserError, did_you_mean
from benchmark.spec import Faults, ProfileSpec, seed_of


def axes_of(
    given: Mapping[str, list[Any]], config: Mapping[str, Any], profile: ProfileSpec, grid: bool, faults: Faults
) -> dict[str, list[Any]]:
    """Return models, methods, targets and seeds: the user's, else the table's, else the profile's."""
    from methods.registry import entry

    named: dict[str, list[Any]] = {}
    for key, values in given.items():
        if key in AXES:
            names = flat(values)
            if any(isinstance(value, list | dict) for value in names):
                faults.add(f"{key}={shorten(','.join(map(str, values)), 60)}: expected a name, or names: {key}=A,B.")
                names = []
            named[AXES[key]] = list(dict.fromkeys(names))
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

    try:
        if text.rpartition(":")[0]:
            return own_modules.canonical_class(text)
        cls = entry(text).cls
        return text if text in METHODS else cls
    except UserError as error:
        faults.add(str(error))
        return text


def own_methods(methods: Sequence[str], faults: Faults) -> dict[str, Any]:
    """Return the configuration of the user's own methods (module:Class): the defaults of their parameters."""
    from methods.registry import defaults

    if faults.messages:
        return {}
    return {name: {"id": name, "params": defaults(name)} for name in methods if ":" in name}


def refused(methods: Sequence[str], engine: str) -> list[str]:
    """Return the methods that, as configured, cannot train on an engine."""
    from methods.registry import entry

    return [name for name in methods if engine in entry(name).refuses]


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
