"""What a command was given: overrides, options and words."""

from __future__ import annotations

from collections.abc import Sequence

from benchmark.cli.usage import OPTIONS
from benchmark.core.errors import UserError, did_you_mean


def overrides_of(arguments: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Return the overrides among arguments, with `--jobs 2` as jobs=2.

    Raises:
        UserError: an unknown option, or one without its value.
    """
    overrides, rest = [], list(arguments)
    while rest:
        item = rest.pop(0)
        name, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("-"):
            overrides.append(item)
        elif name in OPTIONS:
            if not equals and not rest:
                raise UserError(f"{item} needs a value, e.g. {name}=2.")
            overrides.append(f"{name}={value if equals else rest.pop(0)}")
        elif name not in flags:
            raise UserError(f"Unknown option {item!r}.{did_you_mean(name, [*OPTIONS, *flags])}")
    return overrides


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (overrides, the rest)."""
    overrides = [item for item in arguments if "=" in item and not item.startswith("-")]
    return overrides, [item for item in arguments if item not in overrides]


def refuse_beside(command: str, overrides: Sequence[str], keys: Sequence[str], why: str) -> None:
    """Refuse keys that a command reads, but not beside the words that it was given.

    Raises:
        UserError: names them.
    """
    if unread := [item for item in overrides if item.partition("=")[0] in keys]:
        raise UserError(f"{command} does not read {', '.join(unread)}: {why}. Leave it out.")
