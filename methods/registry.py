"""The table of methods, and those that installed packages add; importing it imports no torch."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from benchmark.core.errors import UserError, did_you_mean
from benchmark.core.project import shipped

if TYPE_CHECKING:
    from methods.base import Method


CONF = shipped("conf") / "method"
GROUP = "spiderbench.methods"  # entry points by which another package adds methods: ID = "module:Class"


@dataclass(frozen=True)
class MethodEntry:
    """One method.

    Attributes:
        cls: "module:Class"; empty for zero-shot, which evaluates the base checkpoint as it is.
        name: as printed in tables.
        reference: where it was proposed.
        kind: "none" (no training), "training" (trains the weights), "adapter" (trains added tensors in their place),
            or "posthoc" (transforms a finished Full FT run).
        refuses: engines on which it cannot train as configured; listed here because plans do not import its module.
        sees_sources: whether it reads training samples of the source sets.
        sees_generic: whether it reads data that show no source set (`generic=`).
        starts_as_base: whether the model still computes what the base does when training starts.
    """

    cls: str
    name: str
    reference: str
    kind: Literal["none", "training", "adapter", "posthoc"]
    refuses: tuple[str, ...] = ()
    sees_sources: bool = False
    sees_generic: bool = False
    starts_as_base: bool = True


NRCA = "as in the code of Huang et al., NRCA, ICML 2025"
SHARDED = ("zero1", "zero2", "zero3", "fsdp2")
# The paper's rows in the order of its tables, then the variants. An id stands for its class with the parameters in
# conf/method/<id>.yaml.
METHODS: dict[str, MethodEntry] = {
    # Zero-shot has no class: the cell has no training stage, and generation reads the base checkpoint.
    "zero_shot": MethodEntry("", "Zero-shot", "the base checkpoint", "none"),
    "full_ft": MethodEntry("methods.full_ft:FullFT", "Full FT", "De Boer et al., 2005", "training"),
    "l2_reg": MethodEntry("methods.l2_reg:L2Reg", "L2-Reg", "Kirkpatrick et al., PNAS 2017", "training"),
    "grafting": MethodEntry(
        "methods.grafting:Grafting", "Grafting", "Panigrahi et al., ICML 2023", "training"
    ),
    "half_ft": MethodEntry("methods.half_ft:HalfFT", "Half FT", "Hui et al., arXiv 2404.18466", "training"),
    "dare": MethodEntry("methods.dare:Dare", "DARE", "Yu et al., ICML 2024", "posthoc"),
    "tailor": MethodEntry("methods.tailor:Tailor", "Tailor", "Zhu et al., ICML 2024", "posthoc"),
    "spider": MethodEntry("methods.spider:Spider", "SPIDER", "Huang et al., ICML 2025", "training"),
    # Penalties
    "l2_reg_mean": MethodEntry("methods.l2_reg:L2Reg", "L2-Reg, mean of means", NRCA, "training"),
    "l2_reg_two_step": MethodEntry("methods.l2_reg:L2Reg", "L2-Reg, mean, two steps", NRCA, "training", SHARDED),
    "l2_reg_scaled": MethodEntry("methods.l2_reg:L2Reg", "L2-Reg, scaled by size", "SpiderBench", "training"),
    "grafting_mean": MethodEntry("methods.grafting:Grafting", "Grafting, mean of means", NRCA, "training"),
    "grafting_two_step": MethodEntry(
        "methods.grafting:Grafting", "Grafting, mean, two steps", NRCA, "training", SHARDED
    ),
    "grafting_scaled": MethodEntry(
        "methods.grafting:Grafting", "Grafting, scaled by size", "SpiderBench", "training"
    ),
    "ewc": MethodEntry("methods.ewc:Ewc", "EWC", "Kirkpatrick et al., PNAS 2017", "training", sees_generic=True),
    "grafting_mask": MethodEntry(
        "methods.grafting_mask:GraftingMask", "Grafting, learned mask", "Panigrahi et al., ICML 2023", "posthoc"
    ),
    # Halves, and the paper's Table 3
    "half_ft_step": MethodEntry(
        "methods.half_ft:HalfFT", "Half FT, drawn every step", "Huang et al., ICML 2025, App. B", "training"
    ),
    "half_ft_elements": MethodEntry(
        "methods.select:Select", "Rand_gamma", "Huang et al., ICML 2025, Table 3", "training"
    ),
    "spider_magnitude": MethodEntry(
        "methods.select:Select", "I_gamma", "Huang et al., ICML 2025, Table 3", "training"
    ),
    "spider_gradient": MethodEntry(
        "methods.select:Select", "G_gamma", "Huang et al., ICML 2025, Table 3", "training"
    ),
    # SPIDER
    "spider_idm": MethodEntry(
        "methods.spider:Spider",
        "SPIDER, IDM only (G > I)",
        "Huang et al., ICML 2025, Tables 3 and 4",
        "training",
    ),
    "spider_code": MethodEntry(
        "methods.spider:Spider", "SPIDER, sum of gradients", "released code, WenkeHuang/SPIDER", "training"
    ),
    "spider_lag": MethodEntry(
        "methods.spider:Spider", "SPIDER, sum, one step late", "released code, WenkeHuang/SPIDER", "training"
    ),
    "spider_posthoc": MethodEntry(
        "methods.spider_posthoc:SpiderPosthoc", "SPIDER, masked once at the end", "SpiderBench", "posthoc"
    ),
    "spider_instant": MethodEntry("methods.spider:Spider", "SPIDER, no momentum", "SpiderBench", "training"),
    "spider_abs": MethodEntry("methods.spider:Spider", "SPIDER, mean of |g|", "SpiderBench", "training"),
    "spider_global": MethodEntry(
        "methods.spider:Spider", "SPIDER, ranks per group", "SpiderBench", "training", ("zero3",)
    ),
    # Post-hoc methods
    "dare_drop_only": MethodEntry("methods.dare:Dare", "DARE, drop only", "Yu et al., ICML 2024", "posthoc"),
    "dare_magnitude": MethodEntry("methods.dare:Dare", "Magnitude trim", "Yu et al., ICML 2024", "posthoc"),
    "tailor_official": MethodEntry(
        "methods.tailor:Tailor", "Tailor, released code", "didizhu-zju/Model-Tailor", "posthoc"
    ),
    "tailor_no_compensation": MethodEntry(
        "methods.tailor:Tailor", "Tailor, mask only", "SpiderBench", "posthoc"
    ),
    "tailor_change_sensitivity": MethodEntry(
        "methods.tailor:Tailor", "Tailor, sensitivity of the change", "SpiderBench", "posthoc"
    ),
    "tailor_keep_projector": MethodEntry(
        "methods.tailor:Tailor", "Tailor, projector kept", "SpiderBench", "posthoc"
    ),
    "wise_ft": MethodEntry("methods.wise_ft:WiseFT", "WiSE-FT", "Wortsman et al., CVPR 2022", "posthoc"),
    "wise_ft_tensors": MethodEntry(
        "methods.wise_ft_tensors:WiseFTTensors", "WiSE-FT, alpha per tensor", "AlphaWiSE; SpiderBench", "posthoc",
        sees_generic=True,
    ),
    "soup": MethodEntry("methods.soup:Soup", "Model soup over seeds", "Wortsman et al., ICML 2022", "posthoc"),
    "ties": MethodEntry("methods.ties:Ties", "TIES over seeds", "Yadav et al., NeurIPS 2023", "posthoc"),
    "fisher": MethodEntry(
        "methods.fisher:Fisher", "Fisher merging", "Matena and Raffel, NeurIPS 2022", "posthoc", sees_generic=True
    ),
    "lines": MethodEntry("methods.lines:Lines", "LiNeS", "Wang et al., ICLR 2025", "posthoc"),
    "intruder": MethodEntry(
        "methods.intruder:Intruder", "Intruder reduction", "Shuttleworth et al., arXiv 2410.21228", "posthoc"
    ),
    # Sparse training by gradients or magnitudes: SPIDER's control group
    "gps": MethodEntry("methods.sparse:Gps", "GPS", "Zhang et al., CVPR 2024", "training"),
    "spu": MethodEntry("methods.sparse:Spu", "SPU", "Zhang et al., CVPR 2024", "training"),
    "gmt": MethodEntry("methods.sparse:Gmt", "GMT", "Li et al., AAAI 2025", "training"),
    "mofo": MethodEntry("methods.sparse:Mofo", "MoFO", "Chen et al., TMLR 2025", "training"),
    "model_dowser": MethodEntry(
        "methods.model_dowser:ModelDowser", "Model-Dowser", "Hwang et al., ICML 2026", "training", sees_generic=True
    ),
    "largest_weights": MethodEntry("methods.sparse:LargestWeights", "Largest weights", "SpiderBench", "training"),
    # Adapters of the peft library
    "lora": MethodEntry("methods.peft:Lora", "LoRA", "Hu et al., ICLR 2022", "adapter"),
    "rslora": MethodEntry("methods.peft:Lora", "rsLoRA", "Kalajdzievski, arXiv 2312.03732", "adapter"),
    "dora": MethodEntry("methods.peft:Lora", "DoRA", "Liu et al., ICML 2024", "adapter"),
    "pissa": MethodEntry("methods.peft:Lora", "PiSSA", "Meng et al., NeurIPS 2024", "adapter"),
    "olora": MethodEntry("methods.peft:Lora", "OLoRA", "Buyukakyuz, arXiv 2406.01775", "adapter"),
    "mica": MethodEntry("methods.peft:Lora", "MiCA", "arXiv 2604.01694", "adapter"),
    "corda": MethodEntry(
        "methods.peft:Corda", "CorDA, knowledge preserved", "Yang et al., NeurIPS 2024", "adapter", sees_sources=True
    ),
    "vera": MethodEntry("methods.peft:Vera", "VeRA", "Kopiczko et al., ICLR 2024", "adapter"),
    "oft": MethodEntry("methods.peft:Oft", "OFT", "Qiu et al., NeurIPS 2023", "adapter"),
    "boft": MethodEntry("methods.peft:Boft", "BOFT", "Liu et al., ICLR 2024", "adapter"),
    "osf": MethodEntry("methods.peft:Osf", "OSF", "Nayak et al., arXiv 2504.07097", "adapter"),
    "ia3": MethodEntry("methods.peft:Ia3", "IA3", "Liu et al., NeurIPS 2022", "adapter"),
    "shira": MethodEntry("methods.peft:Shira", "SHiRA, random", "Bhardwaj et al., NeurIPS 2024", "adapter"),
    "shira_magnitude": MethodEntry(
        "methods.peft:Shira", "SHiRA, magnitude", "Bhardwaj et al., NeurIPS 2024", "adapter"
    ),
    "shira_gradient": MethodEntry("methods.peft:Shira", "SHiRA, gradient", "Bhardwaj et al., NeurIPS 2024", "adapter"),
    "supertuning": MethodEntry("methods.peft:Supertuning", "Super-Tuning, top", "arXiv 2607.09287", "adapter"),
    "supertuning_bottom": MethodEntry(
        "methods.peft:Supertuning", "Super-Tuning, bottom", "arXiv 2607.09287", "adapter"
    ),
    "ln_tuning": MethodEntry("methods.peft:LnTuning", "LN tuning", "Zhao et al., ICLR 2024", "adapter"),
    # Adapters of our own, on the library's LoRA
    "milora": MethodEntry("methods.subspaces:MiLora", "MiLoRA", "Wang et al., NAACL 2025", "adapter"),
    "lora_null": MethodEntry(
        "methods.subspaces:LoraNull", "LoRA-Null", "Tang et al., AAAI 2026", "adapter", sees_sources=True
    ),
    "oplora": MethodEntry("methods.subspaces:OpLora", "OPLoRA", "Xiong and Xie, AAAI 2026", "adapter"),
    "lorasculpt": MethodEntry(
        "methods.lorasculpt:LoraSculpt", "LoRASculpt", "Liang et al., CVPR 2025", "adapter", ("zero3",)
    ),
    "lorasculpt_code": MethodEntry(
        "methods.lorasculpt:LoraSculpt", "LoRASculpt, released code", "released code, LiangJian24/LoRASculpt",
        "adapter", ("zero3",),
    ),
    # Adapters that stay in the model
    "houlsby": MethodEntry("methods.houlsby:Houlsby", "Houlsby adapters", "Houlsby et al., ICML 2019", "adapter"),
    "prefix": MethodEntry(
        "methods.prefix:Prefix", "Prefix tuning", "Li and Liang, ACL 2021", "adapter", ("zero3",), starts_as_base=False
    ),
    "prompt_tuning": MethodEntry(
        "methods.prompt_tuning:PromptTuning", "Prompt tuning", "Lester et al., EMNLP 2021", "adapter", ("zero3",),
        starts_as_base=False,
    ),
}


@functools.cache
def _offers() -> Mapping[str, tuple[metadata.EntryPoint, ...]]:
    """Return id -> the entry points of installed packages that add a method of this id."""
    offers: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for point in metadata.entry_points(group=GROUP):
        offers[point.name] = (*offers.get(point.name, ()), point)
    return offers


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


def list_methods() -> dict[str, MethodEntry]:
    """Return every method by its id: those of this package, then those that other installed packages add.

    Another package adds a method by an entry point of the group `spiderbench.methods`: ID = "module:Class". Its class
    inherits from `methods.base.Method`.

    Returns:
        Id -> entry with name, reference and kind ("none", "training", "adapter" or "posthoc").

    Raises:
        UserError: an id is used twice, or a package's class cannot be used.
    """
    return {name: entry(name) for name in (*METHODS, *sorted(_offers().keys() - METHODS.keys()))}


def entry(method: str) -> MethodEntry:
    """Return the entry of a method.

    Args:
        method: an id of METHODS or of an installed package, or "module:Class" of a user's own method (this imports the
            module; its table name is the class attribute `title`, else the class name).

    Raises:
        UserError: unknown id, an id that is used twice, or a class that cannot be used.
    """
    offers = _offers().get(method, ())
    if len(offers) + (method in METHODS) > 1:
        packages = " and ".join([*["SpiderBench"] * (method in METHODS), *map(_package, offers)])
        raise UserError(f"The method {method!r} is in {packages}. Uninstall one of them, or use module:Class.")
    if method in METHODS:
        return METHODS[method]
    if offers:
        try:
            return entry(offers[0].value)
        except UserError as error:
            raise UserError(
                f"The package {_package(offers[0])} adds the method {method!r} as {offers[0].value}, which cannot be "
                f"used: {error} Correct or uninstall that package."
            ) from error
    if ":" not in method:
        hint = did_you_mean(method, [*METHODS, *_offers()])
        raise UserError(f"Unknown method {method!r}.{hint} Your own: module:Class or ./file.py:Class.")
    cls = load_class(method)
    title = getattr(cls, "title", cls.__name__)
    return MethodEntry(
        method, title, method, _kind(cls), sees_generic=getattr(cls, "measures_on", "") == "generic",
        sees_sources=getattr(cls, "calibrates_on", "") == "sources",
    )


def _kind(cls: type[Method]) -> Literal["training", "adapter", "posthoc"]:
    """Return the kind of a user's own method."""
    from methods.adapter import AdapterMethod

    return "posthoc" if cls.posthoc else "adapter" if issubclass(cls, AdapterMethod) else "training"


def load_class(path: str) -> type[Method]:
    """Import "module:Class".

    Raises:
        UserError: the module cannot be imported or has no such class, or the class is not a Method or saves its
            state without loading it.
    """
    from methods.base import Method
    from methods.state import half_defined

    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing a user's file can fail in any way
        raise UserError(
            f"Cannot import method module {module_name!r}: {type(error).__name__}: {error}. "
            "Write ./file.py:Class, or module:Class with the module's folder on PYTHONPATH."
        ) from error
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        classes = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
        ]
        raise UserError(
            f"{module_name} has no method class {class_name!r}.{did_you_mean(class_name, classes)} "
            "A method inherits from methods.base.Method."
        )
    if not is_dataclass(cls.Params):
        raise UserError(f"{path}: Params must be a frozen dataclass, it is {cls.Params!r}.")
    if fault := half_defined(cls):
        raise UserError(f"{path}: {fault}")
    return cls


@functools.cache
def configured(method: str) -> dict[str, Any]:
    """Return the parameters in a method's configuration file; none for a user's own method."""
    if method not in METHODS:
        return {}
    return yaml.safe_load((CONF / f"{method}.yaml").read_text(encoding="utf-8"))["params"]


def defaults(path: str) -> dict[str, Any]:
    """Return the default of each parameter of a user's own method that the command line can set.

    Args:
        path: "module:Class".

    Returns:
        Numbers, texts and truth values by name; None for a parameter without a default.

    Raises:
        UserError: see `load_class`.
    """
    values = {
        field.name: None if field.default is MISSING else field.default for field in fields(load_class(path).Params)
    }
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str | None)}


def make_params(method: str, params: dict[str, Any]) -> Any:
    """Build a method's parameters. Missing ones come from its configuration file, else from its dataclass.

    Args:
        method: id or "module:Class".
        params: values by name.

    Returns:
        The frozen dataclass, or None for a method without a class.

    Raises:
        UserError: lists all unknown names and wrong types; or a value is out of range.
    """
    cls = load_class(entry(method).cls).Params if entry(method).cls else None
    return checked(method, cls, {**configured(method), **params})


def checked(method: str, cls: type | None, params: Mapping[str, Any]) -> Any:
    """Build a dataclass of parameters from values that a user gave.

    Args:
        method: its name, for messages.
        cls: the dataclass; None for a method without parameters.
        params: values by name.

    Raises:
        UserError: see `make_params`.
    """
    types = get_type_hints(cls) if cls else {}
    valid = {field.name: types[field.name] for field in fields(cls)} if cls else {}
    faults, values = [], {}
    for name, value in params.items():
        if name not in valid:
            hint = did_you_mean(name, valid) if valid else " It has none."
            faults.append(f"Method {method} has no parameter {name!r}.{hint}")
            continue
        kind = valid[name]
        number = isinstance(value, int) and not isinstance(value, bool) and kind is float
        if kind in (bool, int, float, str) and type(value) is not kind and not number:
            faults.append(f"Method {method}: {name}={value!r} must be {kind.__name__}.")
            continue
        if kind is float and not (abs(value) <= sys.float_info.max):  # or an integer too large for a float
            faults.append(f"Method {method}: {name}={value!r} must be a finite number.")
            continue
        if get_origin(kind) is Literal and value not in get_args(kind):
            faults.append(
                f"Method {method}: {name}={value!r} is unknown.{did_you_mean(str(value), get_args(kind))}"
            )
            continue
        values[name] = float(value) if number else value
    if faults:
        raise UserError(" ".join(faults))
    try:
        return cls(**values) if cls else None
    except (TypeError, ValueError) as error:
        raise UserError(f"Method {method}: {error}") from error


def refusal(method: str, params: dict[str, Any], engine: str) -> str | None:
    """Return why a method cannot train on an engine, and what to do instead; None if it can.

    Args:
        method: an id of METHODS that trains, or "module:Class".
        params: hyper-parameters by name.
        engine: a name in conf/engine.

    Raises:
        UserError: see `build`.
    """
    return build(method, params, seed=0).refuses(engine)


def build(method: str, params: dict[str, Any], seed: int) -> Method:
    """Return a new method object.

    Args:
        method: an id of METHODS, or "module:Class".
        params: hyper-parameters by name; missing ones take their configured values.
        seed: of the run; everything random in a method depends on it.

    Raises:
        UserError: unknown method or parameter (with the nearest valid name), value of a wrong type or out
            of range, or a method that trains nothing.
    """
    built = make_params(method, params)
    if not entry(method).cls:
        raise UserError(f"{method} evaluates the base checkpoint as it is; it has no training stage.")
    return load_class(entry(method).cls)(built, seed)
