"""Published cells: three parquet tables that are read like the folders of a run.

A run keeps a folder per cell, because a run resumes from files. A published folder keeps the same content in
`cells.parquet`, `items.parquet` and `logs.parquet`. `CellPath` presents their rows as files, so code that reads a
cell's folder reads both.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import yaml

from benchmark.core.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA = 1  # version of the three tables
SPEC, KEY = "cell.yaml", "key"
# File of a cell -> column of cells.parquet that holds its text unchanged.
FILES = {
    "scores.json": "scores", "provenance.json": "provenance", KEY: "key", "weights.json": "weights",
    "footprint.json": "footprint", "drift.json": "drift",
}
OPTIONAL = ("drift",)  # columns that tables have only if a cell has the file
LOG = "train.jsonl"
# Folder -> suffix of a dataset's item scores and answers; both are columns of items.parquet.
SETS = {"items": ".jsonl.gz", "answers": ".jsonl"}
# Columns that each table must have; cells and logs have more.
COLUMNS = {
    "cells": ("cell", "spec", *(column for column in FILES.values() if column not in OPTIONAL)),
    "items": ("cell", "dataset", "item_id", "group", "type", "score", "answer"),
    "logs": ("cell",),
}
# The first columns of logs.parquet, where they exist.
LOGGED = ("cell", "step", "loss", "learning_rate", "grad_norm")
_VERSION = b"spiderbench_schema"
_FIX = "Restore it (git checkout), or publish again."


def path_of(root: Path) -> Path:
    """Return where the cells of a results folder are: in its tables if it is published, else in `cells`."""
    cells = Path(root) / "cells"
    return CellPath(cells) if any(os.path.isfile(file_of(root, name)) for name in COLUMNS) else cells


def file_of(root: Path, name: str) -> Path:
    """Return the file of a table: cells, items or logs."""
    return Path(root) / f"{name}.parquet"


def check(root: Path) -> None:
    """Refuse tables that are incomplete, damaged or have another version.

    Raises:
        UserError: names the file and the fault.
    """
    for name in COLUMNS:
        _open(root, name)
    _ = _tables(root).cells


def frame(root: Path, name: str) -> pd.DataFrame:
    """Return a table of a published folder as a data frame.

    Args:
        root: the folder.
        name: cells, items or logs.

    Raises:
        UserError: see `check`.
    """
    return _read(root, name).to_pandas()


def write(root: Path, cells: pd.DataFrame, items: pd.DataFrame, logs: Sequence[Mapping[str, Any]]) -> None:
    """Write the three tables; equal content gives equal bytes.

    Args:
        root: an existing folder.
        cells: see `benchmark.results.Results.cells`.
        items: see `benchmark.results.Results.items`; the items of a cell's dataset stand together. The file has those
            of a dataset item by item instead: most cells answer an item alike, so that it takes half the space.
        logs: rows of training logs, each with the key cell; rows may have different keys.

    Raises:
        UserError: a log has a value that is not a number.
    """
    import pyarrow as pa

    # Not by a data frame, which has one value for "not logged" and for a number that is not finite.
    known = dict.fromkeys(key for row in logs for key in row)
    names = list(dict.fromkeys([*COLUMNS["logs"], *(name for name in LOGGED if name in known), *known]))
    try:
        columns = {name: pa.array([row.get(name) for row in logs], pa.string() if name == "cell" else None)
                   for name in names}
    except (TypeError, pa.ArrowException) as error:
        reason = str(error)[:160]
        raise UserError(f"A training log has a value that is not a number: {reason}. Run that cell again.") from error
    tables = {
        "cells": pa.Table.from_pandas(cells, preserve_index=False),
        "items": pa.Table.from_pandas(_item_by_item(items), preserve_index=False),
        "logs": pa.table(columns | {"cell": columns["cell"].dictionary_encode()}),
    }
    for name, table in tables.items():
        _write(file_of(root, name), table)


def _item_by_item(items: pd.DataFrame) -> pd.DataFrame:
    """Return the rows sorted by dataset and by place in it, each place with all its cells."""
    place = items.groupby(["cell", "dataset"], observed=True, sort=False).cumcount()
    return items.assign(place=place).sort_values(["dataset", "place"], kind="stable").drop(columns="place")


def _cell_by_cell(items: pa.Table) -> pa.Table:
    """Return the rows of each cell together, in the order that they have."""
    import numpy as np

    cells = items["cell"].dictionary_encode().combine_chunks().indices
    return items.take(np.argsort(cells.to_numpy(zero_copy_only=False), kind="stable"))


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _VERSION: str(SCHEMA).encode()})
    pq.write_table(table, path, compression="zstd", compression_level=9, write_page_checksum=True)


# ---------------------------------------------------------------------------------------------------------------
# One cell, read like a folder


# Python 3.11 knows no other base: the class of this system's paths is chosen when one is made.
class CellPath(type(Path())):  # type: ignore[misc]
    """A read-only path below `cells` of a published folder; rows of the tables appear as its files.

    It has the parts of `pathlib.Path` that readers of a cell's folder use: names, `/`, is_file, is_dir, exists,
    iterdir, glob and read_text. Item scores and answers are not text: `items` returns them.
    """

    @property
    def _place(self) -> tuple[Path, tuple[str, ...]]:
        """The published folder, and the parts of this path below its `cells`."""
        at = len(self.parts) - self.parts[::-1].index("cells")
        return Path(*self.parts[: at - 1]), self.parts[at:]

    def _content(self) -> str | None:
        """Return the text of a file of a cell; None if the file does not exist."""
        root, parts = self._place
        tables = _tables(root)
        if len(parts) != 2 or parts[0] not in tables.cells:
            return None
        cell, name = parts
        if name == SPEC:
            return yaml.safe_dump(self.parent.spec(), sort_keys=False, allow_unicode=True)
        if name == LOG:
            rows = tables.log(cell)
            return "".join(json.dumps(row) + "\n" for row in rows) if rows else None
        return tables.cells[cell].get(FILES.get(name, ""))

    def spec(self) -> Any:
        """Return the content of this cell's cell.yaml.

        Raises:
            OSError, ValueError: the column is empty, or not JSON.
        """
        root, parts = self._place
        text = _tables(root).cells.get(parts[0], {}).get("spec")
        if not isinstance(text, str):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self / SPEC))
        return json.loads(text)

    def items(self, dataset: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return some columns of the items of a dataset of this cell, a tuple per item.

        Args:
            dataset: its id.
            columns: some of item_id, group, type, score and answer.

        Raises:
            OSError: the cell has no items of this dataset.
        """
        root, parts = self._place
        return _tables(root).of_dataset(parts[0], dataset, columns)

    def is_file(self, **_: Any) -> bool:
        """Return whether this is a file of a cell."""
        root, parts = self._place
        tables = _tables(root)
        if len(parts) == 3:
            name = parts[2].removesuffix(SETS.get(parts[1], "/"))
            return name != parts[2] and (parts[0], name) in tables.spans
        if len(parts) != 2 or parts[0] not in tables.cells:
            return False
        if parts[1] == LOG:
            return parts[0] in tables.logged
        return parts[1] == SPEC or tables.cells[parts[0]].get(FILES.get(parts[1], "")) is not None

    def is_dir(self, **_: Any) -> bool:
        """Return whether this is the folder of all cells, of a cell, or of its answers or item scores."""
        root, parts = self._place
        return not parts or (parts[0] in _tables(root).cells and parts[1:] in {(), *((name,) for name in SETS)})

    def exists(self, **_: Any) -> bool:
        """Return whether this is a file or a folder."""
        return self.is_file() or self.is_dir()

    def stat(self, **options: Any) -> os.stat_result:
        """Return the state of the folder of all cells, which changes when they are published again."""
        root, parts = self._place
        return file_of(root, "cells").stat(**options) if not parts else super().stat(**options)

    def iterdir(self) -> Iterator[CellPath]:
        """Yield the files and folders in a folder."""
        root, parts = self._place
        tables = _tables(root)
        if not parts:
            names: Any = tables.cells
        elif len(parts) == 1:
            names = [name for name in (SPEC, *FILES, LOG, *SETS) if (self / name).exists()]
        else:
            names = [f"{dataset}{SETS[parts[1]]}" for cell, dataset in tables.spans if cell == parts[0]]
        return (self / name for name in names)

    def glob(self, pattern: str, **_: Any) -> Iterator[CellPath]:
        """Yield the paths below this one that match a relative pattern (without **)."""
        found = [self]
        for part in PurePath(pattern).parts:
            if set(part) & set("*?["):
                found = [path for one in found if one.is_dir() for path in one.iterdir()
                         if fnmatch.fnmatchcase(path.name, part)]
            else:
                found = [one / part for one in found if (one / part).exists()]
        return iter(found)

    def read_text(self, *_: Any, **__: Any) -> str:
        """Return the text of a file.

        Raises:
            OSError: the file does not exist.
        """
        text = self._content()
        if not isinstance(text, str):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return text

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Refuse: only `publish` writes published results.

        Raises:
            OSError: always.
        """
        raise OSError(errno.EROFS, "only publish writes to a published folder", str(self))


# ---------------------------------------------------------------------------------------------------------------
# The tables


@dataclass(frozen=True)
class _Tables:
    """The tables of a published folder; each is read when it is first needed."""

    root: Path

    @cached_property
    def cells(self) -> dict[str, dict[str, Any]]:
        """Name of a cell -> its first row."""
        rows: dict[str, dict[str, Any]] = {}
        there = [name for name in OPTIONAL if name in _open(self.root, "cells").schema_arrow.names]
        for row in _read(self.root, "cells", [*COLUMNS["cells"], *there]).to_pylist():
            name = row["cell"]
            if not isinstance(name, str) or PurePath(name).name != name:
                raise UserError(f"{file_of(self.root, 'cells')} is damaged: {name!r} is not the name of a cell. {_FIX}")
            rows.setdefault(name, row)
        return rows

    @cached_property
    def _items(self) -> pa.Table:
        return _read(self.root, "items", COLUMNS["items"])

    @cached_property
    def spans(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Cell and dataset -> first and last + 1 of its rows in items.parquet."""
        found = _runs(self._items.select(["cell", "dataset"]))
        return {(cell, dataset): span for (cell, dataset), span in found}

    def of_dataset(self, cell: str, dataset: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return some columns of the items of a cell's dataset, a tuple per item."""
        if (cell, dataset) not in self.spans:
            raise FileNotFoundError(errno.ENOENT, f"items.parquet has no items of {dataset}", cell)
        start, stop = self.spans[cell, dataset]
        rows = self._items.slice(start, stop - start)
        return list(zip(*(rows[name].to_pylist() for name in columns), strict=True))

    @cached_property
    def _logs(self) -> pa.Table:
        return _read(self.root, "logs")

    @cached_property
    def logged(self) -> dict[str, tuple[int, int]]:
        """Cell -> first and last + 1 of its rows in logs.parquet."""
        return {cell: span for (cell,), span in _runs(self._logs.select(["cell"]))}

    def log(self, cell: str) -> list[dict[str, Any]]:
        """Return the rows of a cell's training log, each with the keys that were logged."""
        if cell not in self.logged:
            return []
        start, stop = self.logged[cell]
        table = self._logs.slice(start, stop - start).drop_columns(["cell"])
        table = table.select([name for name in table.column_names if table[name].null_count < len(table)])
        return [{key: value for key, value in row.items() if value is not None} for row in table.to_pylist()]


def _tables(root: Path) -> _Tables:
    """Return the tables of a folder; they are read again when a file has changed."""
    def state(path: Path) -> tuple[int, ...]:
        try:
            found = path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns

    return _cached(root, tuple(state(file_of(root, name)) for name in COLUMNS))


@functools.lru_cache(maxsize=4)
def _cached(root: Path, _: tuple[tuple[int, ...], ...]) -> _Tables:
    return _Tables(root)


def _runs(table: pa.Table) -> list[tuple[tuple[Any, ...], tuple[int, int]]]:
    """Return the values of each sequence of equal rows, with its first row and last + 1."""
    if not len(table):
        return []
    import numpy as np

    codes = [column.dictionary_encode().combine_chunks() for column in table.columns]
    ids = [column.indices.to_numpy(zero_copy_only=False) for column in codes]
    ends = np.flatnonzero(np.any([one[1:] != one[:-1] for one in ids], axis=0)) + 1
    starts = [0, *ends.tolist()]
    values = [column.dictionary.to_pylist() for column in codes]
    return [
        (tuple(names[one[start]] for names, one in zip(values, ids, strict=True)), (start, stop))
        for start, stop in zip(starts, [*starts[1:], len(table)], strict=True)
    ]


def _open(root: Path, name: str) -> Any:
    """Open a table and check its version and columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = file_of(root, name)
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        names, about = file.schema_arrow.names, file.schema_arrow.metadata or {}
    except FileNotFoundError:
        every = ", ".join(f"{one}.parquet" for one in COLUMNS)
        raise UserError(f"{path} is missing. A published folder has {every}. {_FIX}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    version = about.get(_VERSION, b"").decode(errors="replace")
    if version != str(SCHEMA):
        raise UserError(
            f"{path} has results of schema version {version[:20] or '(none)'}, this program reads and writes version "
            f"{SCHEMA}. Use the program that wrote it, or choose another folder with RESULTS=dir."
        )
    if lost := [column for column in COLUMNS[name] if column not in names]:
        raise UserError(f"{path} is damaged: it has no column {', '.join(lost)}. {_FIX}")
    for field in file.schema_arrow:
        if not _has_kind(name, field):
            raise UserError(f"{path} is damaged: its column {field.name} holds {field.type}. {_FIX}")
    return file


def _has_kind(name: str, field: pa.Field) -> bool:
    """Return whether a column has the expected type, text or numbers; all its values may be missing."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if types.is_null(kind):
        return True
    if field.name == "score" or name == "logs" and field.name != "cell":
        return types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)
    return field.name not in (*COLUMNS[name], *OPTIONAL) or types.is_string(kind) or types.is_large_string(kind)


def _read(root: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    import pyarrow as pa

    file = _open(root, name)
    try:
        table = file.read(columns=None if columns is None else list(columns))
        table.validate(full=True)
        return _cell_by_cell(table) if name == "items" else table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(file_of(root, name), error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"Cannot read {path}: {' '.join(str(error).split())[:160]}. {_FIX}")
