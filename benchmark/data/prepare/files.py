"""The user's files: an index by name, safe unpacking of archives, and a search for images by path."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from benchmark.core.errors import UserError
from benchmark.core.files import digest_of, unfinished_folder
from benchmark.data.record import SUFFIXES

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Place:
    """A folder that the user named.

    Attributes:
        path: where it is.
        own: whether it holds a single dataset, so that every image below it belongs to that dataset.
    """

    path: Path
    own: bool = False


class Index:
    """An index by name of all files below some folders. Hidden files are skipped.

    Args:
        places: the folders.
        pattern: matches the path of an image of the dataset, from the name of a shared folder on.

    Raises:
        UserError: a folder does not exist.
    """

    def __init__(self, places: Sequence[Place], pattern: str = "") -> None:
        self.places = list(places)
        self._names: dict[str, list[Path]] = defaultdict(list)
        self._images: dict[str, list[Path]] = defaultdict(list)
        self.archives: list[Path] = []
        hint = re.compile(pattern, re.IGNORECASE)
        for place in places:
            if not place.path.is_dir():
                raise UserError(f"The folder {place.path} does not exist. Correct --from.")
            for path in _walk(place.path):
                self._names[path.name].append(path)
                if path.name.lower().endswith(ARCHIVES):
                    self.archives.append(path)
                elif path.suffix.lower() in SUFFIXES:
                    inside = f"{place.path.name}/{path.relative_to(place.path).as_posix()}"
                    if place.own or hint.search(inside):
                        self._images[_image_key(path)].append(path)

    def file(self, name: str, accept: Callable[[Path], bool] = lambda path: True) -> Path | None:
        """Return the file of this name, or None.

        Args:
            name: file name.
            accept: selects among several files of this name.

        Raises:
            UserError: several files with different content remain. Copies count as one file, for example an archive's
                member beside its unpacked copy.
        """
        found = sorted({path.resolve(): path for path in self._names.get(name, ()) if accept(path)}.values())
        if len(found) > 1 and not all(_same(found[0], other) for other in found[1:]):
            raise UserError(
                f"{len(found)} files are called {name}: {', '.join(map(str, found[:3]))}. Name one folder, "
                "e.g. --from okvqa=DIR."
            )
        return found[0] if found else None

    def like(self, pattern: str, accept: Callable[[Path], bool] = lambda path: True) -> Path | None:
        """Return the one file whose whole name matches a regular expression, or None.

        Args:
            pattern: regular expression for the name; case is ignored.
            accept: selects among several files with such names.

        Raises:
            UserError: several files match.
        """
        names = sorted(
            name for name, paths in self._names.items()
            if re.fullmatch(pattern, name, re.IGNORECASE) and any(map(accept, paths))
        )
        if len(names) > 1:
            raise UserError(f"Several files match: {', '.join(names[:5])}. Give a folder with one of them.")
        return self.file(names[0], accept) if names else None

    def image(self, path: Path) -> Path | None:
        """Return the user's file for an image, by its stem (image.png: by its folder). Other suffixes are accepted.

        Raises:
            UserError: several different files match.
        """
        found = sorted({other.resolve(): other for other in self._images.get(_image_key(path), ())}.values())
        if len(found) > 1:
            # A set may keep one id in several folders (train2014/5.jpg, val2014/5.jpg): the folder decides.
            near = [other for other in found if other.parent.name == path.parent.name] or found
            same = [other for other in near if other.suffix.lower() == path.suffix.lower()] or near
            if len(same) > 1 and len({other.stat().st_size for other in same}) > 1:
                raise UserError(
                    f"{len(same)} different files match {path.parent.name}/{path.name}: "
                    f"{', '.join(map(str, same[:3]))}. Name one folder, e.g. --from gqa=DIR."
                )
            found = same
        return found[0] if found else None


def _image_key(path: Path) -> str:
    """Return what identifies an image: its stem and, for image.png, also the folders above it."""
    if path.stem == "image":
        parts = path.parts
        return "/".join((*[part for part in parts[-4:-2] if part in ("train", "val", "test")], parts[-2]))
    return path.stem


def _same(one: Path, other: Path) -> bool:
    """Return whether two files have the same content. An unreadable file is reported later, where it is read."""
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, sorted by name."""
    for root, folders, names in os.walk(folder, followlinks=True):
        real = Path(root).resolve()
        folders[:] = sorted(
            name for name in folders
            # A link to a parent folder would be walked forever.
            if not name.startswith(".") and not (
                os.path.islink(link := os.path.join(root, name)) and real.is_relative_to(Path(link).resolve())
            )
        )
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


# ---------------------------------------------------------------------------------------------------------------
# Archives


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive once into a folder of unpacked archives. An interrupted unpacking starts again.

    Args:
        archive: .zip, .tar, .tar.gz or .tgz; it is not changed.
        folder: where the unpacked archives are kept.

    Returns:
        The folder with its content.

    Raises:
        UserError: the archive is damaged, a member would leave the folder or is not a plain file or folder, or there is
            too little disk space.
    """
    state = archive.stat()
    name = digest_of([str(archive.resolve()), state.st_size, state.st_mtime_ns])[:12]
    target = folder / f"{archive.name.split('.')[0]}-{name}"
    if target.is_dir():
        return target
    try:
        with unfinished_folder(folder / f".{target.name}.{os.getpid()}") as partial:
            partial.mkdir()
            (_unzip if archive.name.lower().endswith(".zip") else _untar)(archive, partial)
            partial.rename(target)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be read as an archive ({error}). Fetch it again.") from None
    except OSError as error:
        raise UserError(f"Cannot unpack {archive} into {folder}: {error.strerror or error}. Free some space.") from None
    return target


def _inside(archive: Path, name: str) -> str:
    """Return a member's path with forward slashes (Windows writes backslashes); refuse one outside the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", name) or "\0" in name:
        raise UserError(f"{archive} holds the member {name!r}, which would leave its folder. It is not unpacked.")
    return name.replace("\\", "/")


def _room(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{archive} needs {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free.")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            member.filename = _inside(archive, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{archive} holds the link {member.filename!r}. It is not unpacked.")
        _room(archive, folder, sum(member.file_size for member in members))
        file.extractall(folder, members)


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        # Python before 3.11.4 has no filters; the members are checked below in any case.
        file.extraction_filter = getattr(tarfile, "data_filter", None)
        members = file.getmembers()
        for member in members:
            member.name = _inside(archive, member.name)
            if not (member.isfile() or member.isdir()):
                raise UserError(f"{archive} holds {member.name!r}, neither a file nor a folder. It is not unpacked.")
        _room(archive, folder, sum(member.size for member in members))
        file.extractall(folder, members)
