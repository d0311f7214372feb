"""Settings `key=value` of the commands that measure and so read no configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmark.core.errors import UserError, did_you_mean


def read_settings(command: str, defaults: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """Return the defaults with what the user gave in their place.

    Args:
        command: as the user knows it, for messages.
        defaults: every setting.
        overrides: of the command line.

    Raises:
        UserError: not key=value, or no setting of the command.
    """
    given = dict(defaults)
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or key not in given:
            raise UserError(f"{command} {item}: no such setting.{did_you_mean(key, given)}")
        given[key] = value
    return given


def names_of(text: str) -> list[str]:
    """Return the names of a comma list."""
    return [name.strip() for name in text.split(",") if name.strip()]
