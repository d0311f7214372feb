"""Helpers that the readers share: JSON with clear errors, official split names, prompts, options as letters."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmark.core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from benchmark.data import DatasetLike

FIX = "Fetch or draw the dataset again, or point data_root to where it is."


class Absent(UserError):
    """The dataset has no such split, or it is not on disk. An audit continues without it."""


def read_json(path: Path) -> Any:
    """Parse one of a dataset's official JSON files.

    Raises:
        Absent: the file does not exist.
        UserError: the file is unreadable or truncated; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Absent(f"{path} does not exist. {FIX}") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. {FIX}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is truncated or not JSON ({error}). {FIX}") from error


def need(entry: Any, key: str, path: Path, where: str = "the file") -> Any:
    """Return entry[key].

    Args:
        entry: a JSON object.
        key: one of its official keys.
        path: the file that the entry comes from, for the message.
        where: the position in the file, for the message.

    Raises:
        UserError: the entry has no such key, or is not a JSON object.
    """
    if not isinstance(entry, Mapping):
        raise UserError(f"{path}: {where} is a {type(entry).__name__}, expected a JSON object. {FIX}")
    if key not in entry:
        raise UserError(f"{path}: {where} lacks the key {key!r}. {FIX}")
    return entry[key]


def official_names(spec: DatasetLike, split: str, default: Mapping[str, Any]) -> list[str]:
    """Return the official names of a split, from the spec if it has any, else from the reader's defaults.

    Args:
        spec: its `splits` maps train, validation, test to a name or a list of names.
        split: train, validation or test.
        default: the reader's map of the same form.

    Raises:
        Absent: the dataset has no such split.
    """
    names = dict(default) | dict(spec.splits or {})
    if names.get(split) is None:
        has = [name for name, value in names.items() if value is not None]
        raise Absent(
            f"{spec.id} has no {split} split. Choose one of {', '.join(has)}, "
            f"or set splits.{split} in its config."
        )
    value = names[split]
    return [str(name) for name in value] if isinstance(value, list | tuple) else [str(value)]


def one_name(spec: DatasetLike, split: str, default: Mapping[str, Any]) -> str:
    """Return the official name of a split that consists of one file."""
    names = official_names(spec, split, default)
    if len(names) != 1:
        raise UserError(f"{spec.id} reads one official split as {split}, got {', '.join(names)}. Name one.")
    return names[0]


class Template(Protocol):
    """What `render` needs of a dataset's spec."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...


def render(spec: Template, **fields: str) -> str:
    """Fill the spec's prompt template.

    Args:
        spec: its `prompt` is a str.format template.
        fields: values of all fields that the template may name.

    Raises:
        UserError: the template names an unknown field or cannot be parsed.
    """
    try:
        return spec.prompt.format_map(fields)
    except KeyError as error:
        hint = did_you_mean(str(error.args[0]), fields)
        raise UserError(
            f"The prompt of {spec.id} names the field {error}, which it does not have.{hint}"
        ) from None
    except (ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"The prompt of {spec.id} is not a valid template ({error}): {spec.prompt!r}. Double literal braces."
        ) from None


def commonest(answers: Sequence[str]) -> str:
    """Return the most frequent answer; ties go to the first."""
    return Counter(answers).most_common(1)[0][0]


def letter(index: int) -> str:
    """Return A for 0, B for 1, ..."""
    return string.ascii_uppercase[index]


def option_lines(options: Sequence[str]) -> str:
    """Return the options as lines 'A. first', 'B. second', ..."""
    return "\n".join(f"{letter(index)}. {option}" for index, option in enumerate(options))


def answer_format(spec: DatasetLike, index: int, options: Sequence[str]) -> str:
    """Return the correct option in the form of `options.target_format` (default '{letter}').

    Raises:
        UserError: the template is invalid, or names a field other than {letter} and {answer}.
    """
    template = spec.options.get("target_format", "{letter}")
    try:
        return template.format(letter=letter(index), answer=options[index])
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"target_format {template!r} of {spec.id} is not a valid template ({error}). "
            "It may name {letter} and {answer}."
        ) from None


def choice(entry: Any, path: Path, where: str) -> tuple[tuple[str, ...], int]:
    """Return the options of a multiple-choice problem and the index of the correct one.

    Raises:
        UserError: a key is missing or the index is out of range.
    """
    given = need(entry, "choices", path, where)
    # Numbers are valid options; a string would be read as a list of letters.
    plain = isinstance(given, list) and all(isinstance(o, str | int | float) and not isinstance(o, bool) for o in given)
    if not plain:
        raise UserError(f"{path}: {where} has choices {given!r}, expected a list of strings or numbers. {FIX}")
    options, index = tuple(map(str, given)), need(entry, "answer", path, where)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(options):
        raise UserError(f"{path}: {where} has answer {index!r} but {len(options)} choices. {FIX}")
    return options, index
