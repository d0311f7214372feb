"""The vocabulary: cells and their parts as frozen dataclasses, with checks and a canonical form that is hashed."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.files import digest_of, user_path
from benchmark.core.project import CODE, IS_CHECKOUT, ROOT, WORK, shipped

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from typing_extensions import TypeIs

CONF = shipped("conf")
LONGEST_LABEL = 48  # characters of a cell's name for the settings that differ from the defaults
LONGEST_HEAD = 150  # characters for model, target and method; a file name may have 255 in all
Spec = TypeVar("Spec", bound="DataclassInstance")
KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


# Metadata of fields, for `canonical`. APART fields are not part of a cell's identity; all others are. LATER fields were
# added later: at their default they are left out, so that older cells keep their names and keys.
APART = {"apart": True}
LATER = {"omit_default": True}


def bounds(
    low: float | None = None, high: float | None = None, above: float | None = None, about: str = ""
) -> dict[str, Any]:
    """Return field metadata that limits a number, or each number of several: low <= value <= high, value > above.

    Args:
        low: least value.
        high: largest value.
        above: the value must be larger than this.
        about: what messages call the expected value, in place of its type and limit.
    """
    return {"low": low, "high": high, "above": above, "about": about}


@dataclass(frozen=True)
class ProfileSpec:
    """A scale: its models and datasets, and the assumed cost of a cell until cells have been measured."""

    id: str
    name: str
    prepare: str | None                      # "module:object" with complete(folder) and draw(folder, on_progress=)
    reference: str | None                    # folder of published results to compare with
    models: tuple[str, ...]
    table_models: dict[str, tuple[str, ...]]  # table -> models, where they are not the profile's
    targets: tuple[str, ...]
    upstream: tuple[str, ...]
    extra: tuple[str, ...]                   # reported for the untuned model only; in no average
    seconds: dict[str, float]                # stage -> seconds: train and posthoc per cell, generate per dataset
    megabytes: float = field(metadata=bounds(low=0))
    jobs: int = field(default=1, metadata=bounds(low=1))  # cells at the same time, by default
    rate_grid: tuple[float, ...] = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)  # learning rates that `rates` compares
    learning_rates: dict[str, float] = field(default_factory=dict)  # model -> its rate at this scale, if not its own
    prepare_generic: str | None = None       # as `prepare`, for the data that show no source set


@dataclass(frozen=True)
class ModelSpec:
    """A base model: where its checkpoint is, how it takes its input, and how it is tuned."""

    id: str
    name: str = field(metadata=APART)
    family: str
    checkpoint: str = field(metadata=APART)
    preprocess: Literal["pad", "crop", "resize", "processor"]  # processor: the checkpoint's own (family auto)
    max_length: int = field(metadata=bounds(low=16))
    learning_rate: float = field(metadata=bounds(above=0) | APART)  # default; a cell's TrainSpec has the cell's rates
    projector_learning_rate: float = field(metadata=bounds(above=0) | APART)
    # Hugging Face hub repository; its cache is searched if the folder `checkpoint` does not exist.
    repository: str | None = field(default=None, metadata=APART)
    # Folder or hub repository of the tower, for a checkpoint without one; null: the tower that the checkpoint names.
    vision_tower: str | None = field(default=None, metadata=APART)
    vocab_size: int | None = field(default=None, metadata=bounds(low=1) | LATER)  # output rows that count; null: all
    # Transparent images: drop the transparency, as the original code does, or put the image on white.
    transparency: Literal["drop", "white"] = field(default="drop", metadata=LATER)
    # Of family auto: the image settings of the checkpoint's processor; null leaves the checkpoint's own.
    min_pixels: int | None = field(default=None, metadata=bounds(low=1) | LATER)    # least area of an image
    max_pixels: int | None = field(default=None, metadata=bounds(low=1) | LATER)    # largest area of an image
    longest_edge: int | None = field(default=None, metadata=bounds(low=1) | LATER)  # of an image, pixels
    max_tiles: int | None = field(default=None, metadata=bounds(low=1) | LATER)     # that an image is cut into
    split_images: bool | None = field(default=None, metadata=LATER)                 # cut large images into tiles
    # Of family auto: the model's parts, for a type that benchmark/models/auto_parts.py does not list.
    decoder: str | None = field(default=None, metadata=LATER)
    projector: tuple[str, ...] = field(default=(), metadata=LATER)
    tower: str | None = field(default=None, metadata=LATER)
    # Sizes, which plans use; a loaded checkpoint must match them.
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
    # Strings that end an answer, in addition to the end token; they are not part of the answer.
    stop: tuple[str, ...] = field(default=(), metadata=LATER)


@dataclass(frozen=True)
class MethodSpec:
    """A fine-tuning method and its parameters."""

    id: str
    params: dict[str, Any]
    posthoc: bool = field(default=False, metadata=APART)  # made from a finished Full FT cell, without training


@dataclass(frozen=True)
class TrainSpec:
    """Training settings, with the model's learning rates filled in."""

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
    # Run each block again in the backward pass instead of keeping its activations; no number changes.
    gradient_checkpointing: bool = field(default=False, metadata=APART)
    projector: Literal["full", "frozen", "lora"] = field(default="full", metadata=LATER)
    # Of each supervised token (benchmark/training/losses.py); a setting below is of the loss that it is named after.
    loss: Literal["cross_entropy", "lwf", "dft", "asft", "eaft", "talr"] = field(
        default="cross_entropy", metadata=LATER
    )
    lwf_weight: float = field(default=1.0, metadata=bounds(low=0) | LATER)        # lambda
    lwf_temperature: float = field(default=2.0, metadata=bounds(above=0) | LATER)
    asft_weight: float = field(default=0.1, metadata=bounds(low=0) | LATER)       # of the KL divergence
    eaft_top: int = field(default=20, metadata=bounds(low=2) | LATER)             # tokens that the entropy counts
    eaft_power: float = field(default=1.0, metadata=bounds(low=0) | LATER)
    talr_floor: float = field(default=0.01, metadata=bounds(low=0, high=1) | LATER)  # least weight of a token
    # Samples of other data in every batch: of the cell's generic data, or training samples of the source sets.
    replay: Literal["none", "generic", "source"] = field(default="none", metadata=LATER)
    replay_share: float = field(default=0.1, metadata=bounds(above=0, high=1) | LATER)  # of a batch
    replay_rows: int = field(default=2048, metadata=bounds(low=1) | LATER)              # that are replayed, in all


@dataclass(frozen=True)
class EvalSpec:
    """Settings of evaluation."""

    batch_size: int = field(metadata=bounds(low=1) | APART)
    limit: int | None = field(default=None, metadata=bounds(low=1))
    split: Literal["test", "validation"] = "test"
    # Run an image once for all questions on it. Answers are the same up to rounding.
    share_images: bool = field(default=False, metadata=APART)
    # dtype of generation only; null: the cell's dtype.
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(default=None, metadata=LATER)
    examples: int = field(default=0, metadata=bounds(low=0) | LATER)  # solved questions in front of each question


@dataclass(frozen=True, kw_only=True)
class PlaceSpec:
    """Where and how a cell runs. Of these settings, only the dtype is part of the cell's identity."""

    data_root: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = field(default=2, metadata=bounds(low=1))
    checkpoint_minutes: float = field(default=10.0, metadata=bounds(low=0))   # between two saved states of a training
    checkpoint_steps: int | None = field(default=None, metadata=bounds(low=1))  # or this many steps, if earlier
    engine: Literal["single", "zero1", "zero2", "zero3", "fsdp2"] = "single"
    zero_optimization: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's section, for the zero engines
    processes: int = field(default=1, metadata=bounds(low=0))  # per machine, not for single; 0: one per visible GPU
    devices: tuple[int, ...] = ()                              # GPUs of these processes; empty: the first ones
    hostfile: str | None = None                                # DeepSpeed's, for several machines
    report_to: Literal["none", "tensorboard", "wandb"] = "none"  # where the Trainer also sends the rows of train.jsonl


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """How a command runs its cells; not part of a cell's identity. The command line sets these, conf/ does not."""

    results: Path | None = None      # folder; None: results/runs/<profile>
    jobs: int = field(default=1, metadata=bounds(low=1))  # cells at the same time
    gpus: tuple[int, ...] = field(default=(), metadata=bounds(low=0, about="device numbers, e.g. gpus=0,1"))
    hostfile: Path | None = None     # DeepSpeed's, for several machines
    gpu: str | None = None           # for a plan: cards that this machine may not have, e.g. 4090x8
    only: tuple[str, ...] = ()       # names of cells; the command leaves out all others
    checkpoints: str = ""            # the user's own checkpoints: NAME:FOLDER,NAME@MODEL:FOLDER
    gate: Literal["stop", "warn"] = "stop"  # what to do if the zero-shot check fails
    radar: Literal["points", "zero_shot", "full_ft"] = "points"  # scale of radar plots: points, or relative to a method


@dataclass(frozen=True, kw_only=True)
class CellSpec(PlaceSpec):
    """One entry of a table: a model, tuned by a method on a target, and the datasets that it is evaluated on."""

    profile: str
    model: ModelSpec
    method: MethodSpec
    target: str | None               # None: the untuned model
    seed: int
    train: TrainSpec | None          # None: no training
    datasets: tuple[DatasetSpec, ...]
    eval: EvalSpec
    generic: DatasetSpec | None = None  # data that show no source set, for a training that uses such data
    # Settings that differ from the profile's defaults, as key=value; for the cell's name only: `identity` has all.
    changed: tuple[str, ...] = field(default=(), compare=False)

    @property
    def upstream(self) -> tuple[DatasetSpec, ...]:
        """The source sets, whose mean is A^S."""
        return tuple(dataset for dataset in self.datasets if dataset.role == "upstream")

    @property
    def targets(self) -> tuple[DatasetSpec, ...]:
        """The targets, each of which gives an A^T: the cell's target, or for an untuned model all requested ones."""
        return tuple(dataset for dataset in self.datasets if dataset.role == "target")

    @functools.cached_property
    def digits(self) -> str:
        """The eight hex digits of `cell_hash`. A table asks for those of the same cells thousands of times."""
        return digest_of(identity(self))[:8]

    def dataset(self, name: str) -> DatasetSpec:
        """Return one of the cell's datasets by its id."""
        return next(dataset for dataset in self.datasets if dataset.id == name)


class TunedCell(CellSpec):
    """The type of a cell that `is_tuned` accepts: what training needs is not None. Only type checkers use it."""

    target: str
    train: TrainSpec


def is_tuned(cell: CellSpec) -> TypeIs[TunedCell]:
    """Return whether a cell trains, unlike that of an untuned model."""
    return cell.train is not None


def at_root(path: str | Path) -> Path:
    """Return a path of the configuration as an absolute one; ~ is the user's home.

    Args:
        path: relative to the repository. In an installed package, files that ship with the code are relative to it,
            all others to the working folder.
    """
    path = user_path(path)
    ships = not IS_CHECKOUT and path.parts[:1] and path.parts[0] in CODE and (ROOT / path).exists()
    return (ROOT if ships else WORK) / path


# ---------------------------------------------------------------------------------------------------------------
# Checking


class Faults:
    """Collects all faults, so that one message shows them."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Note a fault, unless it has been noted already."""
        if message not in self.messages:
            self.messages.append(message)

    def stop(self) -> None:
        """Raise if faults were noted.

        Raises:
            UserError: lists every fault on its own line.
        """
        if len(self.messages) == 1:
            raise UserError(self.messages[0])
        if self.messages:
            lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(self.messages, 1))
            raise UserError(f"{len(self.messages)} faults in the configuration:\n{lines}")


def build(cls: type[Spec], values: Mapping[str, Any], where: str, faults: Faults) -> Spec | None:
    """Make a spec from plain values, and note every wrong one.

    Args:
        cls: one of the dataclasses above.
        values: field name -> value.
        where: path of the values in the configuration, for messages ("train").
        faults: gets a message for each unknown key, missing key and wrong value.

    Returns:
        The spec; None if there was a fault.
    """
    hints, fields = _hints(cls), {item.name: item for item in dataclasses.fields(cls)}
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


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields. Python evaluates them anew at each call, and a table has 300 specs."""
    return typing.get_type_hints(cls)


def _accept(value: Any, hint: Any, limits: Mapping[str, Any], where: str, faults: Faults) -> Any:
    """Return a value as its field's type, or note why that is impossible."""
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
        # Comparisons with NaN are false, so NaN would pass every bound.
        if bound is not None and (wrong(bound) or value != value):
            wanted = f"expected {limits['about']}" if limits.get("about") else f"must be {text.format(bound)}"
            faults.add(f"{where}={value}: {wanted}.")
    return value


def seed_of(value: Any, faults: Faults) -> int:
    """Return a seed, or note that the value is not a seed."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        faults.add(f"seed={value}: a seed is a whole number from 0 to 4294967295. Use for example seeds=0,1,2.")
        return 0
    return value


# ---------------------------------------------------------------------------------------------------------------
# Canonical form and names


def plain(value: Any) -> Any:
    """Return a spec as dicts, lists and scalars, as cell.yaml holds it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def cell_of(values: Mapping[str, Any], where: str = "cell") -> CellSpec:
    """Return the cell that the values of a cell.yaml describe.

    Raises:
        UserError: the values do not describe a cell.
    """
    faults = Faults()
    cell = build(CellSpec, values, where, faults)
    faults.stop()
    assert cell is not None
    return cell


def canonical(spec: Any) -> dict[str, Any]:
    """Return the part of a spec that belongs to a cell's identity; see APART and LATER.

    Args:
        spec: one of the dataclasses above.
    """
    return {
        item.name: plain(getattr(spec, item.name)) for item in dataclasses.fields(spec)
        if not item.metadata.get("apart")
        and not (item.metadata.get("omit_default") and getattr(spec, item.name) == item.default)
    }


def shown(spec: Any) -> dict[str, Any]:
    """Return every setting of a spec, but LATER ones only where they differ from their default."""
    hidden = {item.name for item in dataclasses.fields(spec)
              if item.metadata.get("omit_default") and getattr(spec, item.name) == item.default}
    return {name: value for name, value in plain(spec).items() if name not in hidden}


def protocol(dataset: DatasetSpec) -> dict[str, Any]:
    """Return the settings that the numbers of a dataset depend on: not its printed name or its expected counts."""
    return canonical(dataset)


def input_form(model: ModelSpec) -> dict[str, Any]:
    """Return how a model takes its input. Its id is left out; the digest identifies its weights."""
    return {key: value for key, value in canonical(model).items() if key != "id"}


def training_form(train: TrainSpec | None) -> dict[str, Any] | None:
    """Return the settings that a trained model depends on."""
    return None if train is None else canonical(train)


def own_dtype(cell: CellSpec) -> Literal["float32", "bfloat16", "float16"] | None:
    """Return the dtype of a cell's answers; None if it is the cell's dtype."""
    return None if cell.eval.dtype == cell.dtype else cell.eval.dtype


def answering_dtype(cell: CellSpec) -> Literal["float32", "bfloat16", "float16"]:
    """Return the dtype of a cell's answers."""
    return own_dtype(cell) or cell.dtype


def identity(cell: CellSpec) -> dict[str, Any]:
    """Return the canonical description that names a cell's folder.

    An untuned model is one cell, whatever targets are requested, so only the protocols of source sets count for it.
    Paths, threads, devices, evaluation batches and printed names never count.
    """
    counted = (*cell.upstream, *(cell.targets if cell.train is not None else ()))
    return {
        "profile": cell.profile,
        **({"generic": protocol(cell.generic)} if cell.generic is not None else {}),
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
    """Return the eight hex digits that end a cell's name and distinguish it from all other cells."""
    return cell.digits


def samples(cell: CellSpec) -> int | None:
    """Return the samples that a cell trains on, replayed ones too; None if it does not train or rows are unknown."""
    if cell.train is None or cell.target is None:
        return None
    known = [rows for rows in (cell.train.limit, cell.dataset(cell.target).counts.get("train")) if rows]
    if not known:
        return None
    size = cell.train.batch_size
    return min(known) * cell.train.epochs * size // (size - replayed_per_batch(cell.train))


def steps_per_epoch(train: TrainSpec, rows: int) -> int:
    """Return the optimizer steps of one pass over the target's rows."""
    return -(-rows // (train.batch_size - replayed_per_batch(train)))


def replayed_per_batch(train: TrainSpec) -> int:
    """Return how many samples of a batch are replayed: the nearest number to the share, at least one if any."""
    return 0 if train.replay == "none" else max(1, round(train.replay_share * train.batch_size))


def replay_sets(cell: CellSpec) -> list[tuple[DatasetSpec, int]]:
    """Return the datasets whose training samples a cell replays, each with the number of samples that it reads."""
    assert cell.train is not None
    generic = () if cell.generic is None else (cell.generic,)
    sets = {"none": (), "generic": generic, "source": cell.upstream}[cell.train.replay]
    return [(dataset, -(-cell.train.replay_rows // len(sets))) for dataset in sets]


def sees_sources(cell: CellSpec) -> bool:
    """Return whether training samples of the source sets made a cell: its method reads them, or it replays them."""
    return cell.train is not None and (cell.train.replay == "source" or calibrates_on_sources(cell))


def calibrates_on_sources(cell: CellSpec) -> bool:
    """Return whether a cell's method reads training samples of the source sets before it trains."""
    from methods.registry import METHODS, entry

    method = cell.method.id
    if method not in METHODS and method.partition(":")[0] not in sys.modules:
        return False  # a checkpoint, or a user's class: stored cells are read without importing what made them
    try:
        return entry(method).sees_sources
    except UserError:  # the module has no such class any more
        return False


def members(cell: CellSpec) -> int:
    """Return the number of Full FT cells that a post-hoc cell is made from: the method's parameter `members`, or 1."""
    return int(cell.method.params.get("members", 1))


def source_samples(cell: CellSpec) -> int:
    """Return the training samples of each source set that a method which calibrates on them reads (`samples`)."""
    return -(-int(cell.method.params["samples"]) // max(1, len(cell.upstream)))


def cell_id(cell: CellSpec) -> str:
    """Return a short, readable and unique name, e.g. vila-coco-spider-momentum0.9-s0-1a2b3c4d."""
    return "-".join(filter(None, (head_of(cell), label(cell.changed), seed_part(cell), cell_hash(cell))))


def digits_of(name: str) -> str:
    """Return the digits that end a cell's name; another version may have used other words before them."""
    return name.rpartition("-")[2]


def is_name_of(name: str, cell: CellSpec) -> bool:
    """Return whether a folder's name is a cell's; the words between method and seed may differ."""
    return digits_of(name) == cell_hash(cell) and of_same_grid(name, cell)


def of_same_grid(name: str, cell: CellSpec) -> bool:
    """Return whether a folder's name has a cell's model, target, method and seed; the settings may differ."""
    head, seed = head_of(cell), seed_part(cell)
    rest = name.removeprefix(f"{head}-")
    return rest != name and (not seed or rest.rpartition("-")[0].rpartition("-")[2] == seed)


def changed_without(cell: CellSpec, *heads: str) -> tuple[str, ...]:
    """Return a cell's changed settings without those whose keys begin with one of `heads`."""
    return tuple(item for item in cell.changed if not item.startswith(heads))


def head_of(cell: CellSpec) -> str:
    """Return the words that begin a cell's name: model, target, method."""
    words = (cell.model.id, cell.target, cell.method.id)
    return "-".join(word.replace(":", ".").replace("/", ".") for word in words if word)[:LONGEST_HEAD]


def seed_part(cell: CellSpec) -> str:
    """Return the seed as it appears in a cell's name; empty for an untuned model."""
    return "" if cell.train is None else f"s{cell.seed}"


def label(changed: Sequence[str]) -> str:
    """Return the part of a cell's name with the settings that differ from the defaults.

    Args:
        changed: e.g. ("train.epochs=10", "method.alpha=0.4", "eval.split=validation").

    Returns:
        For example epochs10-alpha0.4-eval.split_validation. Settings beyond the longest label are counted ("and2more");
        a value that cannot be part of a file name is left out.
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
    """Return (path of the key, value, other value) where two descriptions differ; a missing value is "absent"."""
    ours, theirs = dict(flat(one)), dict(flat(other))
    return [
        (key, ours.get(key, "absent"), theirs.get(key, "absent"))
        for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)
    ]


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path of the key, value) of a nested description, e.g. (train.epochs, 5)."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
