"""Every key of conf/ and every run-time key: what a user sets arrives in the cell or the request, or is refused."""

from __future__ import annotations

import copy
import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pytest
import yaml

from benchmark.config import compose, protocols
from benchmark.config import grid as grid_module
from benchmark.config.compose import AXES, GROUPS, RUN_KEYS, options_of, usual
from benchmark.config.overrides import RAW, hydra_value
from benchmark.config.request import Request, check_used, request
from benchmark.core.errors import UserError
from benchmark.spec import (
    CONF,
    CellSpec,
    DatasetSpec,
    EvalSpec,
    ModelSpec,
    PlaceSpec,
    RunSpec,
    TrainSpec,
    cell_id,
    plain,
)
from benchmark.training import trackers, train_settings
from methods.registry import configured, make_params

# Another valid value, where the rule of `another` finds none.
VALUES = {"train.scope": "all", "train.micro_batch_size": 1, "train.replay": "source", "model.family": "vila"}
SECTIONS = {"train": TrainSpec, "eval": EvalSpec, "model": ModelSpec, "dataset": DatasetSpec}
# What only a file says: the message names the file or the key to use instead.
FILE_KEYS = r"(profile|table)\..*|(model|engine)\.id|dataset\.\w+\.(id|role)"


def leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every key of a configuration that holds a value, as a user writes it."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def hint_of(key: str, method: str) -> Any:
    """Return the type of a key that is a field of a spec or a parameter of a method, else Any."""
    head, _, tail = key.partition(".")
    name = tail.partition(".")[2] if head == "dataset" else tail or head
    params = make_params(method, configured(method)) if head == "method" else None
    return typing.get_type_hints(SECTIONS.get(head, CellSpec) if params is None else type(params)).get(name, Any)


def another(key: str, value: Any, hint: Any) -> Any:
    """Return a valid value of a key, not the one that it has."""
    if key in VALUES:
        return VALUES[key]
    kinds = [hint, *typing.get_args(hint)]
    words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    if words:
        return next(word for word in words if word != value)
    if value is None:
        return {float: 0.5, str: "other"}.get(next((kind for kind in kinds if kind in (int, float, str)), int), 7)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 or 1 if isinstance(value, int) else value / 2 or 0.5
    if isinstance(value, list):
        return value[1:] or [*value, "more"]
    return f"{value}x"


def arrived(asked: Request) -> dict[str, Any]:
    """Return what a request of one cell is made of, by the keys that set it."""
    cell = plain(asked.cells[-1])
    tree = {item.name: cell[item.name] for item in dataclasses.fields(PlaceSpec)}
    tree |= {"seed": cell["seed"], "train": cell["train"], "eval": cell["eval"], "model": cell["model"]}
    # Data of other targets are configured too: one set of overrides serves every table, and `data prepare`.
    tree |= {"dataset": plain(asked.datasets) | {item["id"]: item for item in cell["datasets"]}}
    tree |= {"method": cell["method"]["params"]}
    tree |= {"engine": {"id": cell["engine"], "zero_optimization": cell["zero_optimization"]}}
    return dict(leaves(tree, ""))


def lost(keys: Mapping[str, Any], base: Sequence[str], method: str = "full_ft") -> list[str]:
    """Return the keys that are accepted with another value, but do not arrive, and those that are wrongly refused.

    Args:
        keys: each with the value that it has.
        base: overrides that make one cell.
        method: the cell's.
    """
    found = []
    for key, value in keys.items():
        empty = isinstance(value, Mapping)  # it takes no key
        new = {"invented": 1} if empty else another(key, value, hint_of(key, method))
        try:
            owner, words = train_settings.OWNER.get(key.removeprefix("train."), ("", ("",)))
            with_it = [f"train.{owner}={words[-1]}"] if owner else []
            values = arrived(request([*base, *with_it, f"{key}={hydra_value(new)}"]))
        except UserError as error:
            of_file = re.fullmatch(FILE_KEYS, key) and f"{key}: " in str(error) and re.search("conf/|Use ", str(error))
            # Some values of a parameter need another one with them: such a refusal names both.
            together = key.startswith("method.") and f"{key.partition('.')[2]}=" in str(error)
            if not (of_file or together or empty and "no such key" in str(error)):
                found.append(f"{key}: {error}")
            continue
        if re.fullmatch(FILE_KEYS, key) or values.get(key, "absent") != new:
            found.append(f"{key}={new} arrives as {values.get(key, 'absent')!r}")
    return found


def grid(*more: str, method: str = "full_ft", target: str = "coco") -> list[str]:
    return [f"method={method}", f"dataset={target}", *more]


def file_of(group: str, name: str) -> dict[str, Any]:
    """Return a file of a group."""
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def installed_trackers(monkeypatch):
    monkeypatch.setattr(trackers, "fault", lambda name: None)  # whether TensorBoard is installed is not the question


@pytest.mark.slow
@pytest.mark.parametrize("profile", options_of("profile"))
def test_every_key_of_a_cell_arrives(profile):
    composed = {key: value for key, value in usual(profile).items() if key not in ("models", "methods", "table")}
    model = composed["profile"]["models"][0]
    base = grid(f"profile={profile}", f"model={model}")
    datasets = composed.pop("dataset")
    composed.pop("generic")  # arrives in the cells that read it: tests/benchmark/training/test_replay.py
    assert {"train", "eval", "engine", "profile", "seed", "threads", "report_to"} <= set(composed)
    assert lost(dict(leaves(composed, "")), base) == []
    for name, values in datasets.items():
        own = {"target": {"target": name}, "extra": {"method": "zero_shot"}}.get(values["role"], {})
        assert lost(dict(leaves(values, f"dataset.{name}")), grid(*base[2:], **own)) == []


@pytest.mark.parametrize("model", options_of("model"))
def test_every_key_of_a_model_arrives(model):
    optional = {item.name: None for item in dataclasses.fields(ModelSpec) if item.name != "architecture"}
    given = {"transparency": "drop", "split_images": False, "projector": []}
    values = {**optional, **given, **file_of("model", model)}
    assert lost(dict(leaves(values, "model")), grid(f"model={model}")) == []


@pytest.mark.parametrize("method", [method for method in options_of("method") if configured(method)])
def test_every_parameter_of_a_method_arrives(method):
    assert lost(dict(leaves(configured(method), "method")), grid("model=llava_pocket", method=method), method) == []


@pytest.mark.parametrize("key", ["method", "methods", "model", "target", "seeds"])
def test_an_axis_takes_names_alone(key):
    with pytest.raises(UserError, match=f"{key}={{'a': 1}}: expected a name"):
        request([*grid("model=llava_pocket"), f"{key}={{a:1}}"])


@pytest.mark.parametrize("engine", options_of("engine"))
def test_every_key_of_an_engine_arrives(engine):
    base = grid("model=llava_pocket", f"engine={engine}", "gpus=1")
    assert lost(dict(leaves(file_of("engine", engine), "engine")), base) == []


@pytest.mark.parametrize("table", options_of("table"))
def test_keys_of_a_tables_file_are_refused_with_what_to_do(table):
    content = file_of("table", table)
    keys = dict(leaves(content.get("table", content), "table"))
    assert lost(keys, [f"table={table}"]) == []
    with pytest.raises(UserError, match=r"table.seeds: .*Use seeds=VALUE"):
        request([f"table={table}", "table.seeds=[1]"])


def test_the_walk_finds_a_key_that_is_dropped(monkeypatch):
    """Were run-time keys taken from a list of names again, a key that the list lacks would be reported."""
    base = grid("model=llava_pocket")
    composed = copy.deepcopy(usual("pocket")) | {"invented": 3}
    whole = grid_module.build
    monkeypatch.setattr(compose, "composed", lambda groups: composed)

    def dropping(cls, values, where, faults):
        return whole(cls, {key: value for key, value in values.items() if key != "invented"}, where, faults)

    with pytest.raises(UserError, match="invented: no such key"):
        request([*base, "invented=4"])
    monkeypatch.setattr(grid_module, "build", dropping)
    assert lost({"invented": 3, "threads": 1}, base) == ["invented=6 arrives as 'absent'"]


def test_every_run_time_key_arrives(tmp_path):
    """Of the keys that no file has: with a value each, all of RunSpec's."""
    (tmp_path / "own").mkdir()
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=2\n")
    values = {
        "results": tmp_path / "r", "jobs": 3, "gpus": (0, 1), "gpu": "4090x8", "gate": "warn", "radar": "full_ft",
        "checkpoints": f"mine:{tmp_path}/own",
    }
    values["only"] = tuple(cell_id(cell) for cell in request(
        [*grid("model=llava_pocket"), f"checkpoints={values['checkpoints']}"]
    ).cells)
    given = [
        f"{key}={','.join(map(str, value)) if key in ('gpus', 'only') else value}" for key, value in values.items()
    ]
    asked = request([*grid("model=llava_pocket", "device=cuda"), *given])
    zero = request([*grid("model=llava_pocket", "engine=zero2", "train.micro_batch_size=1"), f"hostfile={hosts}"])
    assert {key: getattr(asked, key) for key in values} == values
    assert {*values, "hostfile"} == {item.name for item in dataclasses.fields(RunSpec)} == set(RUN_KEYS)
    assert asked.cells[-1].model.checkpoint == f"{tmp_path}/own"
    assert (zero.hostfile, zero.cells[0].hostfile) == (hosts, str(hosts))


@pytest.mark.parametrize("key", [key for key in RUN_KEYS if key not in (*RAW, "gpus")])
def test_a_run_time_key_takes_one_value(key):
    """The first or the last of several was taken and the others ignored."""
    values = {"jobs": "1,2", "gpu": "4090x8,h100x8", "gate": "stop,warn", "radar": "points,full_ft"}[key]
    with pytest.raises(UserError, match=f"{key}={values}: give one value"):
        request([*grid("model=llava_pocket"), f"{key}={values}"])


@pytest.mark.parametrize(("axis", "value"), [
    ("profile", "paper"), ("train", "paper"), ("engine", "zero1"), ("table", "table6"), ("model", "vila_pocket"),
    ("models", "vila_pocket"), ("method", "spider"), ("methods", "spider"), ("dataset", "iconqa"),
    ("target", "iconqa"), ("targets", "iconqa"), ("seed", 7), ("seeds", 7),
])
def test_every_choice_of_a_group_arrives(axis, value):
    base = [item for item in grid("model=llava_pocket") if item.partition("=")[0] != axis]
    asked = request([*base, f"{axis}={value}"])
    cell = asked.cells[-1]
    found = {
        "profile": asked.profile.id, "engine": cell.engine, "table": asked.table, "model": cell.model.id,
        "method": cell.method.id, "dataset": cell.target, "target": cell.target, "seed": cell.seed,
        "train": "paper" if cell.train and cell.train.gradient_checkpointing else "default",
    }
    assert found[axis.removesuffix("s")] == value
    assert set(GROUPS) <= set(found) and {name.removesuffix("s") for name in AXES} <= set(found)


@pytest.mark.parametrize("dataset", options_of("protocol"))
def test_every_named_protocol_arrives(dataset):
    role = usual("pocket")["dataset"][dataset]["role"]
    base = grid("model=llava_pocket", **({"target": dataset} if role == "target" else {}))
    for name, choice in protocols.choices(dataset).items():
        values = plain(request([*base, f"protocol.{dataset}={name}"]).cells[0].dataset(dataset))
        if choice.default:
            assert values == usual("pocket")["dataset"][dataset]
            continue
        for key, value in choice.changes.items():
            assert values[key] == (values[key] | value if isinstance(value, Mapping) else value), name


@pytest.mark.parametrize(("path", "value", "reason"), [
    (("invented",), 1, "invented: no such key"), (("section",), {"a": 1}, "section: no such key"),
    (("engine", "invented"), 1, "invented: no such key"), (("train", "invented"), 1, "train.invented: no such key"),
    (("dataset", "gqa", "id"), "../../evil", "dataset.gqa.id=../../evil: a name may have only letters"),
    (("models", "llava_pocket", "invented"), 1, "model.invented: no such key"),
])
def test_a_key_of_conf_that_no_spec_has_is_refused(monkeypatch, path, value, reason):
    composed = copy.deepcopy(usual("pocket"))
    node = composed
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    monkeypatch.setattr(compose, "composed", lambda groups: composed)
    with pytest.raises(UserError, match=reason):
        request(grid("model=llava_pocket"))


@pytest.mark.parametrize(("overrides", "reason"), [
    (["methods=zero_shot", "train.epochs=7"], "train.epochs: no cell of this request is trained"),
])
def test_a_key_without_effect_on_any_cell_is_refused(overrides, reason):
    """It was taken without a word, and whoever gave it believed that it did something."""
    with pytest.raises(UserError, match=reason):
        request(["model=llava_pocket", *overrides])
    (key,) = request(["model=llava_pocket", *overrides], optional=True).unused  # another request may have use for it
    assert key == overrides[-1].partition("=")[0]


def test_a_key_that_one_of_several_requests_reads_is_taken():
    given = ["model=llava_pocket", "target=coco", "train.epochs=7"]
    requests = [request([*given, f"methods={methods}"], optional=True) for methods in ("zero_shot", "full_ft")]
    check_used(requests)
    with pytest.raises(UserError, match="train.epochs: no cell of this request is trained"):
        check_used(requests[:1])
    assert request([*given, "methods=zero_shot,full_ft"]).cells


def test_settings_of_a_dataset_that_no_cell_reads_are_taken():
    assert request(["methods=full_ft", "model=llava_pocket", "targets=coco", "dataset.iconqa.counts.test=3"]).cells
