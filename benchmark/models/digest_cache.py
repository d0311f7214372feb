"""Digests of checkpoint folders. Those of large files are cached beside the user's other caches."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.core.errors import UserError
from benchmark.core.files import digest_of, sha256_file, user_path, write_atomic
from benchmark.models import checkpoint_files

LARGE = 2**24  # bytes; smaller files are read every time


def cache_file() -> Path:
    """Return the file of the cache (in SPIDERBENCH_CACHE, XDG_CACHE_HOME or ~/.cache).

    Raises:
        UserError: the user has no home folder, as in some containers.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(os.environ.get("SPIDERBENCH_CACHE") or Path(home) / "spiderbench") / "digests.json"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; a large one is read once per (path, size, mtime_ns)."""
    known = known_digest(path)
    if known is None:
        known = sha256_file(path)
        # Only a cache: if it cannot be written, the file is read again next time.
        with contextlib.suppress(UserError):
            write_atomic(cache_file(), json.dumps({**_read(), _key(path): known}, indent=0, sort_keys=True))
    return known


def known_digest(path: Path) -> str | None:
    """Return the SHA-256 of a small file, or of a large file if it is cached; otherwise None."""
    if path.stat().st_size < LARGE:
        return sha256_file(path)
    return _read().get(_key(path))


def checkpoint_digest(folders: Sequence[Path], of: Callable[[Path], str | None] = file_digest) -> str | None:
    """Return the digest of a checkpoint in one or more folders.

    Args:
        folders: e.g. the checkpoint's and its vision tower's.
        of: returns the digest of a file; if it returns None for a file, so does this function.

    Raises:
        UserError: a folder does not exist or has no checkpoint files, or it is unclear which weights to load.
    """
    digests = []
    for folder in folders:
        total = hashlib.sha256()
        files = checkpoint_files.loaded_files(folder)
        if not files:
            raise UserError(
                f"Checkpoint folder {folder} does not exist or is empty. Fetch the checkpoint again, or correct "
                f"model.checkpoint.{checkpoint_files.states_hint(folder)}"
            )
        for path in files:
            digest = of(path)
            if digest is None:
                return None
            total.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
        digests.append(total.hexdigest())
    return digests[0] if len(digests) == 1 else digest_of(digests)


def _read() -> dict[str, str]:
    try:
        known = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError):
        return {}
    return known if isinstance(known, dict) else {}


def _key(path: Path) -> str:
    state = path.stat()
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
