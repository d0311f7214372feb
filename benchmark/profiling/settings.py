"""`key=value` settings of the measuring commands, which read no configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmark.core.errors import UserError, did_you_mean


def read_settings(command: str, defaults: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """Return the defaults with the user's overrides applied.

    Args:
        command: its name, for messages.
        defaults: every setting with its default.
        overrides: from the command line.

    Raises:
        UserError: an override is not key=value, or names an unknown setting.
    """
    given = dict(defaults)
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or key not in given:
            raise UserError(f"{command} {item}: no such setting.{did_you_mean(key, given)}")
        given[key] = value
    return given


def names_of(text: str) -> list[str]:
    """Split a comma-separated list of names."""
    return [name.strip() for name in text.split(",") if name.strip()]
