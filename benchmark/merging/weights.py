"""The tensors of a checkpoint folder: listed from the headers of its files, read and written one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmark.core.errors import UserError
from benchmark.core.files import sync
from benchmark.merging.names import loaded_names
from benchmark.models.checkpoint_files import FIX, PARTS, promised, safetensors_files

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Entry:
    """One stored tensor: its file, its name there, its safetensors dtype and its shape."""

    file: Path
    stored: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether the tensor holds weights that can be computed with: not whole numbers, not eight-bit floats."""
        return self.dtype in FLOATS

    def read(self) -> Tensor:
        """Return the tensor. The file is opened for this tensor alone, so no other one stays in memory."""
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.stored)


class Weights:
    """The weights of a checkpoint.

    Args:
        folder: a Hugging Face checkpoint (one safetensors file, or shards with an index), or VILA's folder of parts.

    Attributes:
        folder: see above.
        entries: name in the loaded model (`loaded_names`) -> stored tensor.

    Raises:
        UserError: no safetensors, pickled weights, an adapter, a missing, truncated or incomplete shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stored: dict[Path, list[tuple[str, Entry]]] = {}
        parts = [part for part in PARTS if (folder / part).is_dir()] if (folder / PARTS[0]).is_dir() else [""]
        for part in parts:
            prefix = f"{part}." if part else ""
            for path in safetensors_files(folder / part):
                entries = _entries(path)
                if lost := sorted({*promised(path)} - {entry.stored for entry in entries}):
                    raise UserError(f"Checkpoint file {path} lacks {lost[0]}, which its index names. {FIX}")
                stored[path] = [(prefix + entry.stored, entry) for entry in entries]
        names = loaded_names(folder, (name for entries in stored.values() for name, _ in entries))
        self.entries: dict[str, Entry] = {}
        self._files: dict[Path, list[str]] = {}
        for path, file_entries in stored.items():
            for name, entry in file_entries:
                if names[name] in self.entries:
                    raise UserError(f"Checkpoint {folder} holds {names[name]} twice, in {path} too. {FIX}")
                self.entries[names[name]] = entry
            self._files[path] = [names[name] for name, _ in file_entries]

    @property
    def nbytes(self) -> int:
        """Size of the weight files."""
        return sum(path.stat().st_size for path in self._files)

    def write_like(self, target: Path, tensor_of: Callable[[str], Tensor]) -> None:
        """Write files with the names, headers and order of these, and with other values.

        Args:
            target: folder of the new checkpoint.
            tensor_of: name in the loaded model -> tensor of the stored shape and dtype. It is called once per tensor,
                and each result is written before the next call.
        """
        for path, names in self._files.items():
            new = target / path.relative_to(self.folder)
            new.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "rb") as old, open(new, "wb") as file:
                length = old.read(8)
                header = old.read(int.from_bytes(length, "little"))
                file.write(length + header)
                offsets = json.loads(header)
                for name in names:
                    tensor, entry = tensor_of(name), self.entries[name]
                    begin, end = offsets[entry.stored]["data_offsets"]
                    assert (tuple(tensor.shape), tensor.nbytes) == (entry.shape, end - begin), name
                    file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            sync(new)


def _entries(path: Path) -> list[Entry]:
    """Return the tensors of a file in the order of their bytes."""
    with safe_open(path, framework="pt") as file:
        pieces = [(name, file.get_slice(name)) for name in file.offset_keys()]
        return [Entry(path, name, piece.get_dtype(), tuple(piece.get_shape())) for name, piece in pieces]
