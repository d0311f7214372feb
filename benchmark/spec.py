"""What a cell is: frozen dataclasses, checked as a whole, with a canonical form that is hashed."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import digest_of, user_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).resolve().parent.parent
LONGEST_LABEL = 48  # characters of a cell's name that say what differs from the defaults
LONGEST_HEAD = 150  # and of those that name model, target and method: a file's name may have 255
Spec = TypeVar("Spec", bound="DataclassInstance")
KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


# Metadata of fields, for `canonical`. A field is part of what a cell is, unless it is marked as apart. A field that
# came later is left out at its default, so that the cells made before it keep their names and keys.
APART = {"apart": True}
LATER = {"omit_default": True}


def bounds(
    low: float | None = None, high: float | None = None, above: float | None = None, about: str = ""
) -> dict[str, Any]:
    """Return field metadata that limits a number, or each of several: low <= value <= high, value > above.

    Args:
        low: least value.
        high: largest value.
        above: the value is more than this.
        about: what a message says is expected, in place of the type and the limit.
    """
    return {"low": low, "high": high, "above": above, "about": about}


@dataclass(frozen=True)
class ProfileSpec:
    """A scale: which models and datasets belong to it, and what a cell costs until cells have been measured."""

    id: str
    name: str
    prepare: str | None                      # "module:function" called with the data root if data are missing
    reference: str | None                    # folder of published results to compare with
    models: tuple[str, ...]
    table_models: dict[str, tuple[str, ...]]  # tables whose models are not the profile's
    targets: tuple[str, ...]
    upstream: tuple[str, ...]
    extra: tuple[str, ...]                   # reported for the untuned model, in no average
    seconds: dict[str, float]                # train and posthoc per cell, generate per dataset
    megabytes: float = field(metadata=bounds(low=0))
    jobs: int = field(default=1, metadata=bounds(low=1))  # cells at a time unless asked otherwise


@dataclass(frozen=True)
class ModelSpec:
    """A base model: where its checkpoint is and how it is fed and tuned."""

    id: str
    name: str = field(metadata=APART)
    family: str
    checkpoint: str = field(metadata=APART)
    preprocess: Literal["pad", "crop", "resize"]
    max_length: int = field(metadata=bounds(low=16))
    learning_rate: float = field(metadata=bounds(above=0) | APART)  # the TrainSpec has the rates of a cell
    projector_learning_rate: float = field(metadata=bounds(above=0) | APART)
    # Of the Hugging Face hub, looked for in its cache if there is no such folder.
    repository: str | None = field(default=None, metadata=APART)
    # Folder or hub repository, for a checkpoint without a tower; null: the one that it names.
    vision_tower: str | None = field(default=None, metadata=APART)
    vocab_size: int | None = field(default=None, metadata=bounds(low=1) | LATER)  # rows of the output layer; null: all
    # Of images: the colours under it, as the original has, or on white.
    transparency: Literal["drop", "white"] = field(default="drop", metadata=LATER)
    # Sizes: what a plan counts with and a load must match.
    architecture: dict[str, Any] = field(default_factory=dict, metadata=APART)


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset with its protocol: prompt, metric, answer length, stop rule, splits, asserted counts."""

    id: str
    name: str = field(metadata=APART)
    role: Literal["upstream", "target", "extra"] = field(metadata=APART)
    metric: Literal["vqa_lavis", "vqa_official", "textvqa", "exact_lower", "gqa", "scienceqa", "cider"]
    prompt: str
    max_new_tokens: int = field(metadata=bounds(low=1))
    splits: dict[str, Any]
    counts: dict[str, Any] = field(metadata=APART)
    options: dict[str, Any]
    # Strings that end an answer, beside the end token; they are no part of it.
    stop: tuple[str, ...] = field(default=(), metadata=LATER)


@dataclass(frozen=True)
class MethodSpec:
    """A fine-tuning method and its parameters."""

    id: str
    params: dict[str, Any]
    posthoc: bool = field(default=False, metadata=APART)  # made from the finished Full FT cell, without training


@dataclass(frozen=True)
class TrainSpec:
    """Fine-tuning settings, with the model's learning rates filled in."""

    epochs: int = field(metadata=bounds(low=1))
    batch_size: int = field(metadata=bounds(low=1))
    micro_batch_size: int = field(metadata=bounds(low=1))
    learning_rate: float = field(metadata=bounds(above=0))
    projector_learning_rate: float = field(metadata=bounds(above=0))
    scope: str
    last_layers: int = field(metadata=bounds(low=1))
    warmup_ratio: float = field(metadata=bounds(low=0, high=1))
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"]
    weight_decay: float = field(metadata=bounds(low=0))
    max_grad_norm: float = field(metadata=bounds(low=0))
    loss_group: int = field(metadata=bounds(low=1))
    limit: int | None = field(metadata=bounds(low=1))
    # Run each block again in the backward pass rather than keep what it made: no number changes.
    gradient_checkpointing: bool = field(default=False, metadata=APART)


@dataclass(frozen=True)
class EvalSpec:
    """How answers are generated."""

    batch_size: int = field(metadata=bounds(low=1) | APART)
    limit: int | None = field(default=None, metadata=bounds(low=1))
    split: Literal["test", "validation"] = "test"
    # Run an image once for all questions on it: the same answers up to rounding.
    share_images: bool = field(default=False, metadata=APART)
    # Of generation only; null: the cell's dtype.
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class PlaceSpec:
    """Where and how a cell runs; of these only the dtype is part of what the cell is."""

    data_root: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = field(default=2, metadata=bounds(low=1))
    checkpoint_minutes: float = field(default=10.0, metadata=bounds(low=0))   # of training between two saved states
    checkpoint_steps: int | None = field(default=None, metadata=bounds(low=1))  # or so many steps, whichever is first
    engine: Literal["single", "zero1", "zero2", "zero3"] = "single"
    zero_optimization: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's section, of the zero engines
    processes: int = field(default=1, metadata=bounds(low=0))  # of a zero engine, per machine; 0: one per visible GPU
    devices: tuple[int, ...] = ()                              # the GPUs of these processes; empty: the first ones
    hostfile: str | None = None                                # DeepSpeed's, for several machines
    report_to: Literal["none", "tensorboard", "wandb"] = "none"  # where the Trainer sends the rows of train.jsonl too


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """How a command runs its cells; no part of what a cell is. The command line sets these, conf/ does not."""

    results: Path | None = None      # folder; None: results/runs/<profile>
    jobs: int = field(default=1, metadata=bounds(low=1))  # cells at a time
    gpus: tuple[int, ...] = field(default=(), metadata=bounds(low=0, about="device numbers, e.g. gpus=0,1"))
    hostfile: Path | None = None     # DeepSpeed's, for several machines
    gpu: str | None = None           # for a plan: cards that may not be here, e.g. 4090x8
    checkpoints: str = ""            # the user's own: NAME:FOLDER,NAME@MODEL:FOLDER
    gate: Literal["stop", "warn"] = "stop"  # what to do if untuned models do not score as in the paper
    radar: Literal["points", "zero_shot", "full_ft"] = "points"  # scale of radar plots, or the method that is 100 %


@dataclass(frozen=True, kw_only=True)
class CellSpec(PlaceSpec):
    """One entry of a table: a model tuned by a method on a target, and the datasets it is evaluated on."""

    profile: str
    model: ModelSpec
    method: MethodSpec
    target: str | None               # None: the model as it is
    seed: int
    train: TrainSpec | None          # None: no training
    datasets: tuple[DatasetSpec, ...]
    eval: EvalSpec
    # What differs from the profile's defaults, as key=value. It is for the reader of a name: `identity` has it all.
    changed: tuple[str, ...] = field(default=(), compare=False)

    @property
    def upstream(self) -> tuple[DatasetSpec, ...]:
        """The datasets whose mean is A^S."""
        return tuple(dataset for dataset in self.datasets if dataset.role == "upstream")

    @property
    def targets(self) -> tuple[DatasetSpec, ...]:
        """The datasets that an A^T is taken from: the cell's target, or for an untuned model all that were asked."""
        return tuple(dataset for dataset in self.datasets if dataset.role == "target")

    def dataset(self, name: str) -> DatasetSpec:
        """Return one of the cell's datasets by its id."""
        return next(dataset for dataset in self.datasets if dataset.id == name)


def at_root(path: str | Path) -> Path:
    """Return a path of the configuration; relative ones start at the repository, ~ is the user's home."""
    return ROOT / user_path(path)


# ---------------------------------------------------------------------------------------------------------------
# Checking


class Faults:
    """Collects everything that is wrong, so that the user reads it once."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Note a fault; one that is known already is not repeated."""
        if message not in self.messages:
            self.messages.append(message)

    def stop(self) -> None:
        """Raise if anything was noted.

        Raises:
            UserError: with every fault on a line of its own.
        """
        if len(self.messages) == 1:
            raise UserError(self.messages[0])
        if self.messages:
            lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(self.messages, 1))
            raise UserError(f"{len(self.messages)} faults in the configuration:\n{lines}")


def build(cls: type[Spec], values: Mapping[str, Any], where: str, faults: Faults) -> Spec | None:
    """Make a spec from plain values, noting every wrong one.

    Args:
        cls: one of the dataclasses above.
        values: field name to value.
        where: path of the values in the configuration, for messages ("train").
        faults: gets a message per unknown key, missing key and wrong value.

    Returns:
        The spec, or None if something was wrong.
    """
    hints, fields = typing.get_type_hints(cls), {item.name: item for item in dataclasses.fields(cls)}
    before, prefix = len(faults.messages), f"{where}." if where else ""
    for key in values:
        if key not in fields:
            faults.add(f"{prefix}{key}: no such key.{did_you_mean(key, fields)}")
    accepted: dict[str, Any] = {}
    for name, item in fields.items():
        if name in values:
            accepted[name] = _accept(values[name], hints[name], item.metadata, f"{prefix}{name}", faults)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            faults.add(f"{prefix}{name} is missing. Set it in conf or with {prefix}{name}=VALUE.")
    return cls(**accepted) if len(faults.messages) == before else None


def _accept(value: Any, hint: Any, limits: Mapping[str, Any], where: str, faults: Faults) -> Any:
    """Return a value in its field's type, or note why it cannot be."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _accept(value, next(a for a in arguments if a is not type(None)), limits, where, faults)
    if origin is Literal:
        if value not in arguments:
            faults.add(f"{where}={value}: unknown value.{did_you_mean(str(value), map(str, arguments))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            faults.add(f"{where}={value}: expected a list, e.g. [a,b].")
            return ()
        return tuple(_accept(item, arguments[0], limits, where, faults) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            faults.add(f"{where}={value}: expected keys and values, e.g. {{a: 1}}.")
            return {}
        return {str(key): _accept(item, arguments[1], {}, f"{where}.{key}", faults) for key, item in value.items()}
    if hint is Any:
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where, faults)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        wanted = limits.get("about") or KINDS[hint]
        faults.add(f"{where}={'null' if value is None else value}: expected {wanted}.")
        return value
    for name, wrong, text in (
        ("low", lambda bound: value < bound, "at least {}"),
        ("high", lambda bound: value > bound, "at most {}"),
        ("above", lambda bound: value <= bound, "more than {}"),
    ):
        bound = limits.get(name)
        # A NaN is smaller than nothing: it would pass every bound.
        if bound is not None and (wrong(bound) or value != value):
            wanted = f"expected {limits['about']}" if limits.get("about") else f"must be {text.format(bound)}"
            faults.add(f"{where}={value}: {wanted}.")
    return value


def seed_of(value: Any, faults: Faults) -> int:
    """Return a seed, or note that the value is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        faults.add(f"seed={value}: a seed is a whole number from 0 to 4294967295. Use for example seeds=0,1,2.")
        return 0
    return value


# ---------------------------------------------------------------------------------------------------------------
# Canonical form and names


def plain(value: Any) -> Any:
    """Return a spec as dicts, lists and scalars (what cell.yaml holds)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def cell_of(values: Mapping[str, Any], where: str = "cell") -> CellSpec:
    """Return the cell that cell.yaml describes.

    Raises:
        UserError: the values are not those of a cell.
    """
    faults = Faults()
    cell = build(CellSpec, values, where, faults)
    faults.stop()
    assert cell is not None
    return cell


def canonical(spec: Any) -> dict[str, Any]:
    """Return what of a spec is part of what a cell is: see APART and LATER.

    Args:
        spec: one of the dataclasses above.
    """
    return {
        item.name: plain(getattr(spec, item.name)) for item in dataclasses.fields(spec)
        if not item.metadata.get("apart")
        and not (item.metadata.get("omit_default") and getattr(spec, item.name) == item.default)
    }


def protocol(dataset: DatasetSpec) -> dict[str, Any]:
    """Return what makes the numbers of a dataset comparable; pretty names and asserted counts do not."""
    return canonical(dataset)


def input_form(model: ModelSpec) -> dict[str, Any]:
    """Return how a model is fed, whatever its id; its weights are identified by their digest."""
    return {key: value for key, value in canonical(model).items() if key != "id"}


def training_form(train: TrainSpec | None) -> dict[str, Any] | None:
    """Return the settings that make a trained model what it is."""
    return None if train is None else canonical(train)


def own_dtype(cell: CellSpec) -> Literal["float32", "bfloat16", "float16"] | None:
    """Return the dtype in which a cell's answers are generated; None if it is the cell's."""
    return None if cell.eval.dtype == cell.dtype else cell.eval.dtype


def answering_dtype(cell: CellSpec) -> Literal["float32", "bfloat16", "float16"]:
    """Return the dtype in which a cell's answers are generated."""
    return own_dtype(cell) or cell.dtype


def identity(cell: CellSpec) -> dict[str, Any]:
    """Return the canonical description that names a cell's folder.

    An untuned model is one cell whatever targets it is asked for, so only upstream protocols count there. Paths,
    threads, devices, evaluation batches and pretty names count nowhere.
    """
    counted = (*cell.upstream, *(cell.targets if cell.train is not None else ()))
    return {
        "profile": cell.profile,
        "model": canonical(cell.model),
        "method": canonical(cell.method),
        "target": cell.target,
        "seed": cell.seed,
        "train": training_form(cell.train),
        "datasets": {dataset.id: protocol(dataset) for dataset in counted},
        "eval": canonical(dataclasses.replace(cell.eval, dtype=own_dtype(cell))),
        "dtype": cell.dtype,
    }


def cell_hash(cell: CellSpec) -> str:
    """Return the eight hex digits that end a cell's name and tell it from all others."""
    return digest_of(identity(cell))[:8]


def cell_id(cell: CellSpec) -> str:
    """Return a short readable name that no two different cells share: vila-coco-spider-momentum0.9-s0-1a2b3c4d."""
    return "-".join(filter(None, (head_of(cell), label(cell.changed), seed_part(cell), cell_hash(cell))))


def digits_of(name: str) -> str:
    """Return the end of a cell's name that no other cell has; the words before may be another version's."""
    return name.rpartition("-")[2]


def is_name_of(name: str, cell: CellSpec) -> bool:
    """Return whether a folder's name is a cell's: the words between method and seed may be others, or none."""
    return digits_of(name) == cell_hash(cell) and of_same_grid(name, cell)


def of_same_grid(name: str, cell: CellSpec) -> bool:
    """Return whether a folder's name has a cell's model, target, method and seed; its settings may be others."""
    head, seed = head_of(cell), seed_part(cell)
    rest = name.removeprefix(f"{head}-")
    return rest != name and (not seed or rest.rpartition("-")[0].rpartition("-")[2] == seed)


def changed_without(cell: CellSpec, *heads: str) -> tuple[str, ...]:
    """Return what differs from the defaults in a cell made from this one, to which keys that begin so do not apply."""
    return tuple(item for item in cell.changed if not item.startswith(heads))


def head_of(cell: CellSpec) -> str:
    """Return the words that begin a cell's name: model, target, method."""
    words = (cell.model.id, cell.target, cell.method.id)
    return "-".join(word.replace(":", ".").replace("/", ".") for word in words if word)[:LONGEST_HEAD]


def seed_part(cell: CellSpec) -> str:
    """Return the seed as a cell's name has it; empty for an untuned model."""
    return "" if cell.train is None else f"s{cell.seed}"


def label(changed: Sequence[str]) -> str:
    """Return the part of a cell's name that says what differs from the defaults.

    Args:
        changed: e.g. ("train.epochs=10", "method.alpha=0.4", "eval.split=validation").

    Returns:
        For example epochs10-alpha0.4-eval.split_validation; what is too long is counted ("and2more"), and a value that
        does not fit a file's name is left out.
    """
    parts: list[str] = []
    for number, text in enumerate(changed):
        key, _, value = text.partition("=")
        head, _, tail = key.partition(".")
        value = value if re.fullmatch(r"[A-Za-z0-9_.+-]{1,16}", value) else ""
        part = (tail if tail and head in ("method", "train", "model", "dataset") else key) + "_" * value[:1].isalpha()
        parts.append(re.sub(r"[^A-Za-z0-9_.+-]", "_", part + value))
        if len("-".join(parts)) > LONGEST_LABEL:
            return "-".join([*parts[:-1], f"and{len(changed) - number}more" if number else f"{len(changed)}changed"])
    return "-".join(parts)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the keys in which two descriptions differ, as paths, with both values; a missing one is "absent"."""
    ours, theirs = dict(flat(one)), dict(flat(other))
    return [
        (key, ours.get(key, "absent"), theirs.get(key, "absent"))
        for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)
    ]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a description as paths (train.epochs), each with its value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
