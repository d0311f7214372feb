"""Atomic writes and content digests."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from benchmark.core.errors import UserError

PART = ".part"  # end of the name of a file that is being written
SUMS = "SHA256SUMS"
LOCK_POLL = 0.05  # seconds between two tries to lock a file


def user_path(path: str | Path) -> Path:
    """Return a path that a user wrote, with ~ and ~name as their home folders, whoever's shell did not do it.

    Raises:
        UserError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: nobody's home folder is known by that name. Write the path from its root.") from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part.

    Args:
        path: destination; its folder is created.
        content: text (written as UTF-8) or bytes.

    Raises:
        UserError: the folder cannot be written (read-only, full, permission denied).
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary file lives in the same folder because rename is atomic only within a file system.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if not isinstance(error, OSError):  # ctrl-C or a signal
            raise
        raise UserError(
            f"Cannot write {path}: {error.strerror}. "
            "Choose a writable folder with free space (RESULTS=dir for results)."
        ) from error


@contextlib.contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """Give a new folder to fill and to rename at the end; what is still there under its name afterwards is deleted.

    Args:
        path: beside the folder that it will become, since a rename is atomic only within a file system.

    Yields:
        The path; its parents exist, it does not.
    """
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path, seconds: float = 0.0) -> None:
    """Delete what killed processes left of files that they were writing below a folder.

    Args:
        folder: may be missing.
        seconds: only files older than this, where other processes may be writing now.
    """
    for path in folder.rglob(f".*{PART}"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime <= time.time() - seconds:
                path.unlink()


def lock(file: IO[Any], seconds: float = math.inf, waiting: Callable[[], None] = lambda: None) -> None:
    """Wait until no other process holds a lock on an open file, and hold it until the file is closed.

    Args:
        file: opened for writing; processes that inherit it hold the lock too.
        seconds: the most to wait.
        waiting: called once if another process holds the lock.

    Raises:
        UserError: its file system has no locks (flock), as some network mounts; or the time is over.
    """
    end, told = time.monotonic() + seconds, False
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(
                    f"Another process has held {file.name} for {seconds:.0f} s. End it (fuser {file.name} names it), "
                    "then run the same command again."
                ) from None
        except OSError as error:
            raise UserError(
                f"The file system of {file.name} cannot lock files (flock: {error.strerror}). Choose a folder on "
                "another one: results=DIR for results, data_root=DIR for data; or mount it with locks."
            ) from error
        if not told:
            waiting()
            told = True
        time.sleep(LOCK_POLL)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk and not only in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces, the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON as hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_sums(root: Path, names: Iterable[str]) -> None:
    """Write the digests of files below a folder to its SHA256SUMS, which `sha256sum -c` reads too.

    Args:
        root: the folder.
        names: paths relative to it.
    """
    write_atomic(root / SUMS, "".join(f"{sha256_file(root / name)}  {name}\n" for name in sorted(names)))


def read_sums(path: Path) -> dict[str, str]:
    """Return path -> digest of a SHA256SUMS file.

    Raises:
        UserError: a line is no digest with a path below the folder.
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if not gap or not re.fullmatch(r"[0-9a-f]{64}", digest) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path}, line {number} is no digest of a file in this folder.")
        found[name] = digest
    return found
