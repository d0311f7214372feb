"""conf/ as plain data: Hydra composes its files, and single keys of the result are set."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from benchmark.config import own_models, protocols
from benchmark.core.errors import UserError, did_you_mean
from benchmark.spec import CONF, Faults, ModelSpec, RunSpec

# What a user may write -> the axis of the grid. The Makefile passes the plural.
AXES = {
    "model": "models", "models": "models", "method": "methods", "methods": "methods", "dataset": "targets",
    "target": "targets", "targets": "targets", "seed": "seeds", "seeds": "seeds",
}
GROUPS = ("profile", "table", "train", "engine")
WHOLE = ("profile", "table")  # groups whose files are chosen whole: no override can set one of their keys
RUN_KEYS = tuple(item.name for item in fields(RunSpec))


def options_of(group: str) -> list[str]:
    """Return the names in a configuration group."""
    own = own_models.own_models() if group == "model" else {}
    return sorted([*(path.stem for path in (CONF / group).glob("*.yaml")), *own])


def chosen_files(given: Mapping[str, list[Any]], faults: Faults) -> dict[str, str]:
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


def usual(profile: str) -> dict[str, Any]:
    """Return the configuration that a profile alone gives."""
    return composed((("profile", profile),))


@functools.cache
def composed(groups: tuple[tuple[str, str], ...]) -> dict[str, Any]:
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
        if name not in config["models"]:
            file = f"conf/profile/{config['profile'].get('id')}.yaml"
            raise UserError(f"{file}: learning_rates names the model {name!r}.{did_you_mean(name, config['models'])}")
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
    """Turn the errors of YAML, Hydra and OmegaConf into one message."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"Cannot compose conf/: {error}. Look at your changes: git diff conf.") from error


def set_key(
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
            faults.add(no_parameter(key, methods, {f"method.{other}" for node in nodes for other in node}))
        for node in nodes:
            if name in node:
                _assign(node, name, value, "method", faults)
    else:
        settable = {name: node for name, node in config.items() if name not in ("models", "methods", *WHOLE)}
        _assign(settable, key, value, "", faults)
        config.update(settable)


def parameter_of(key: str) -> str:
    """Return the name of a method's parameter: "momentum" for method.momentum and for method.params.momentum."""
    return key.removeprefix("method.").removeprefix("params.")


def no_parameter(key: str, methods: Iterable[str], valid: Collection[str]) -> str:
    """Return the message about a parameter that no method has."""
    hint = did_you_mean(f"method.{parameter_of(key)}", valid) if valid else " They have no parameters."
    return f"{key}: no such parameter in {', '.join(methods) or 'no method'}.{hint}"


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
