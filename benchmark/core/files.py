"""Atomic writes, file locks and content digests."""

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

PART = ".part"  # suffix of a file that is being written
SUMS = "SHA256SUMS"
LOCK_POLL = 0.05  # seconds between two attempts to lock a file


def user_path(path: str | Path) -> Path:
    """Return a path that a user wrote, with ~ and ~name expanded to home folders; a shell does not always do that.

    Raises:
        UserError: the home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: the home folder is unknown. Write the whole path, from /.") from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part of it.

    Args:
        path: the file; its folder is created.
        content: text (written as UTF-8) or bytes.

    Raises:
        UserError: the folder cannot be written: it is read-only, full, or not ours.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary file is in the same folder, because a rename is atomic only within a file system.
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
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write {path}: {error.strerror}. Choose a writable folder with free space (RESULTS=dir for results)."
    )


def link_or_copy(source: Path, path: Path) -> None:
    """Put a file that nobody changes in place somewhere else too: as a link, or a copy where that is not possible.

    Args:
        source: the file.
        path: its second place, in an existing folder.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


@contextlib.contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """Yield a path for a new folder, to be filled and then renamed. A folder that was not renamed is deleted.

    Args:
        path: beside the final folder, because a rename is atomic only within a file system.

    Yields:
        The path. Its parent exists; the folder itself does not.
    """
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path, seconds: float = 0.0) -> None:
    """Delete the unfinished files that killed processes left below a folder.

    Args:
        folder: may not exist.
        seconds: delete only files older than this, because other processes may be writing newer ones.
    """
    for path in folder.rglob(f".*{PART}"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime <= time.time() - seconds:
                path.unlink()


def lock(file: IO[Any], seconds: float = math.inf, waiting: Callable[[], None] = lambda: None) -> None:
    """Wait until no other process holds a lock on an open file, and hold it until the file is closed.

    Args:
        file: open for writing; processes that inherit it hold the lock too.
        seconds: longest wait.
        waiting: called once if another process holds the lock.

    Raises:
        UserError: the file system has no locks (flock), as on some network mounts; or the time is over.
    """
    end, announced = time.monotonic() + seconds, False
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
                "another one (results=DIR for results, data_root=DIR for data), or mount it with locks."
            ) from error
        if not announced:
            waiting()
            announced = True
        time.sleep(LOCK_POLL)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on disk."""
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
    """Return JSON with sorted keys and no spaces: the form that digests hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON as hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_sums(root: Path, names: Iterable[str]) -> None:
    """Write the digests of files to SHA256SUMS in their folder; `sha256sum -c` can read it.

    Args:
        root: the folder.
        names: paths relative to it.
    """
    write_atomic(root / SUMS, "".join(f"{sha256_file(root / name)}  {name}\n" for name in sorted(names)))


def read_sums(path: Path) -> dict[str, str]:
    """Return path -> digest of a SHA256SUMS file.

    Raises:
        UserError: a line is not a digest and a path below the folder.
    """
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        digest, gap, name = line.partition("  ")
        if not gap or not re.fullmatch(r"[0-9a-f]{64}", digest) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path}, line {number} is not a digest of a file in this folder. Restore the file.")
        sums[name] = digest
    return sums
