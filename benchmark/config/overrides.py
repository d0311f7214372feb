"""The command line's texts: Hydra's override syntax, read and written."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from benchmark.core.errors import UserError
from benchmark.core.files import user_path
from benchmark.spec import Faults

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MOST = 10_000    # values of one key, and combinations of the values of all keys
LONGEST = 10_000  # characters of an override
RAW = ("results", "hostfile", "checkpoints", "only")  # Hydra does not parse them: paths may hold commas and brackets
PATHS = ("data_root", "model.checkpoint", "model.vision_tower")


def parse(overrides: Sequence[str], faults: Faults) -> dict[str, list[Any]]:
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
            text = f"{key}={re.sub('(?<![^,])~[^,]*', lambda path: hydra_value(str(home(path[0], faults))), raw)}"
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


def without(overrides: Sequence[str], keys: Container[str]) -> list[str]:
    """Return the overrides whose key is not one of `keys`."""
    return [item for item in overrides if item.partition("=")[0] not in keys]


def home(path: Any, faults: Faults) -> Path:
    """Return a path with ~ expanded; a shell does not expand it in the middle of a word."""
    try:
        return user_path(str(path))
    except UserError as error:
        faults.add(str(error))
        return Path(str(path))


def flat(values: Iterable[Any]) -> list[Any]:
    """Return the values of a comma list, with lists among them flattened."""
    return list(itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in values))


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
