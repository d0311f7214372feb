"""Strict readers for untrusted files: every fault is one message with the file, the row and the reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmark.core.errors import UserError
from benchmark.data.layout import FIX as MOVE
from benchmark.data.layout import Absent

FIX = "Correct the file, or fetch it again."
REQUIRED = object()


def read(path: Path) -> Any:
    """Parse a JSON file; no object in it may repeat a key.

    Raises:
        UserError: the file cannot be read, is not UTF-8 or not JSON, or an object repeats a key.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_unique(path))
    except ValueError as error:
        raise UserError(f"{path} is truncated or not JSON ({error}). {FIX}") from None
    except RecursionError:
        raise UserError(f"{path} is not JSON of a dataset (nested too deeply). {FIX}") from None


def read_lines(path: Path) -> list[tuple[str, Any]]:
    """Parse a file of JSON lines; blank lines are skipped.

    Returns:
        (where, parsed line) for each line; `where` is "line 3".

    Raises:
        UserError: as in `read`; the message names the line.
    """
    rows = []
    # Not splitlines: a string may contain U+2028.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append((f"line {number}", json.loads(line, object_pairs_hook=_unique(path))))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is truncated or not JSON ({error}). {FIX}") from None
    return rows


def read_text(path: Path) -> str:
    """Return a file's text without a byte order mark.

    Raises:
        UserError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise Absent(f"{path} does not exist. {MOVE}") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. {FIX}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#x}). {FIX}") from None


def _unique(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{path}: the key {twice!r} occurs twice in one object. {FIX}")
        return entry

    return build


def mapping(value: Any, path: Path, where: str) -> Mapping[str, Any]:
    """Return a value that must be a JSON object."""
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: {where} is {_kind(value)}, expected an object. {FIX}")
    return value


def rows(value: Any, path: Path, where: str) -> list[Any]:
    """Return a value that must be a list."""
    if not isinstance(value, list):
        raise UserError(f"{path}: {where} is {_kind(value)}, expected a list. {FIX}")
    return value


def text(
    entry: Any, key: str, path: Path, where: str, default: Any = REQUIRED, blank: bool = False, null: bool = False
) -> Any:
    """Return a string field. If there is a default, it replaces a null or missing value, and "" is allowed too.

    `blank` allows an empty string although the key is required: an annotator may have left the answer empty. `null`
    allows a null although the key is required.
    """
    value = _get(entry, key, path, where, default)
    if value is None and null:
        return None
    if value is default or (value is None and default is not REQUIRED):
        return default
    if not isinstance(value, str):
        raise UserError(f"{path}: {where} has {key}={_kind(value)}, expected text. {FIX}")
    if not value.strip() and default is REQUIRED and not blank:
        raise UserError(f"{path}: {where} has an empty {key}. {FIX}")
    return value


def identifier(entry: Any, key: str, path: Path, where: str) -> str:
    """Return an id as a string; files write the same id as a number or as a string."""
    value = _get(entry, key, path, where)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UserError(f"{path}: {where} has {key}={_kind(value)}, expected an id. {FIX}")
    name = str(value)
    if "/" in name or "\\" in name or name in (".", "..") or "\0" in name:
        raise UserError(f"{path}: {where} has {key}={name!r}: an id that is a path is refused. {FIX}")
    return name


def number(entry: Any, key: str, path: Path, where: str) -> int:
    """Return a whole number; it may be written as a string."""
    value = identifier(entry, key, path, where)
    if not value.isdecimal() or not value.isascii():
        raise UserError(f"{path}: {where} has {key}={value!r}, expected a whole number. {FIX}")
    return int(value)


def texts(entry: Any, key: str, path: Path, where: str, least: int = 1) -> list[str]:
    """Return a list of at least `least` strings."""
    found = rows(_get(entry, key, path, where), path, f"{key} of {where}")
    wrong = [item for item in found if not isinstance(item, str)]  # null is not allowed either
    if wrong:
        raise UserError(f"{path}: {key} of {where} holds {_kind(wrong[0])}, expected strings. {FIX}")
    if len(found) < least:
        raise UserError(f"{path}: {key} of {where} has {len(found)} entries, expected at least {least}. {FIX}")
    return list(found)


def distinct(ids: Iterable[str], path: Path, what: str) -> None:
    """Raise UserError if an id occurs twice."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{path}: {what} {name} occurs twice. {FIX}")
        seen.add(name)


def _get(entry: Any, key: str, path: Path, where: str, default: Any = REQUIRED) -> Any:
    entry = mapping(entry, path, where)
    if key not in entry:
        if default is REQUIRED:
            raise UserError(f"{path}: {where} lacks the key {key!r}. {FIX}")
        return default
    return entry[key]


def _kind(value: Any) -> str:
    """Describe a value for a message: its type and, if it is short, the value."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    shown = repr(value)
    if value is None:
        return "null"
    return f"{names.get(type(value), 'a number')} {shown if len(shown) <= 40 else ''}".rstrip()
