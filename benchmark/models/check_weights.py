"""Check a checkpoint's files before they are loaded: finite numbers, and sizes that fit the configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.core.errors import UserError
from benchmark.models.checkpoint_files import WEIGHTS, loaded_files

# dtype of safetensors -> (unsigned type of the same width, exponent bits). All bits set means infinity or NaN.
FLOATS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0000000000000), "F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
CHUNK = 2**24   # numbers checked at a time
# Sizes that become dimensions of tensors: at most ROOM times the largest dimension in the files.
WIDTHS = ("hidden_size", "intermediate_size", "projection_dim")
ROOM = 4
LIMITS = {"vocab_size": 2**22, "image_size": 2**13, "patch_size": 2**13, "max_position_embeddings": 2**24}
COUNTS = ("num_attention_heads", "num_key_value_heads", "num_channels")


def check(folder: Path) -> None:
    """Check every weight file and configuration of a checkpoint that loading reads.

    Args:
        folder: a checkpoint; its parts may be in sub-folders.

    Raises:
        UserError: it is unclear which weights to load. Or the message names damaged files, tensors that are not finite
            floating-point numbers, and sizes that no tensor has: a model of such sizes would fill the memory before its
            shapes could be compared.
    """
    faults, shapes = [], []
    files = loaded_files(folder)
    for path in files:
        if path.suffix not in WEIGHTS:
            continue
        try:
            for name, shape, fault in _pickled(path) if path.suffix == ".bin" else _safetensors(path):
                shapes.append(shape)
                if fault:
                    faults.append(f"{path}: {name} {fault}")
        except (OSError, ValueError, RecursionError) as error:
            faults.append(f"{path} is truncated or corrupt ({error})")
        except UserError as error:
            faults.append(str(error))
    for path in files if shapes else []:
        if path.name == "config.json":
            faults += _sizes(path, shapes)
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{'; '.join(faults[:5])}{more}. Fetch the checkpoint again, or correct model.checkpoint.")


def _safetensors(path: Path) -> Iterator[tuple[str, list[int], str | None]]:
    """Yield (name, shape, fault) of each tensor."""
    for name, dtype, shape, values in _tensors(path):
        yield name, shape, _fault(dtype, name, values)


def _pickled(path: Path) -> Iterator[tuple[str, list[int], str | None]]:
    """Yield (name, shape, fault) of each tensor of a pickled file (LLaVA's own layout)."""
    from benchmark.models.llava_original import tensors_of

    for name, tensor in tensors_of(path):
        bad = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        yield name, list(tensor.shape), f"has {bad} numbers that are not finite" if bad else None


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int], np.ndarray]]:
    """Yield (name, dtype, shape, bytes) of each tensor, after safetensors has checked the header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + size) if path.stat().st_size > 8 + size else np.empty(0, np.uint8)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        yield name, entry["dtype"], entry["shape"], data[begin:end]


def _fault(dtype: str, name: str, values: np.ndarray) -> str | None:
    """Return the fault of a tensor, or None. Counters and position ids may be whole numbers."""
    if dtype not in FLOATS:
        weight = name.endswith(("weight", "bias"))
        return f"has the dtype {dtype}, but only {', '.join(FLOATS)} can be read" if weight else None
    kind, exponent = FLOATS[dtype]
    # A tensor may begin at any byte, so its numbers may not be aligned: copy each chunk.
    width = np.dtype(kind).itemsize
    for start in range(0, len(values), CHUNK * width):
        numbers = np.frombuffer(values[start : start + CHUNK * width].tobytes(), kind)
        bad = int(((numbers & kind(exponent)) == exponent).sum())
        if bad:
            return f"has {bad} numbers that are not finite"
    return None


def _sizes(path: Path, shapes: list[list[int]]) -> list[str]:
    """Return the sizes of a configuration that no model of these tensors can have."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []  # the loader reports it
    largest = max((size for shape in shapes for size in shape), default=1)
    limits = {**dict.fromkeys(WIDTHS, ROOM * largest), **LIMITS, **dict.fromkeys(COUNTS, largest)}
    limits["num_hidden_layers"] = len(shapes)
    return [
        f"{path}: {key}={value!r}, expected a whole number from 1 to {limits[key]}"
        for key, value in _settings(config)
        if key in limits and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limits[key])
    ]


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of a configuration and its nested ones, without empty values and lists."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _settings(value)
            if value is not None and not isinstance(value, dict | list):
                yield key, value
