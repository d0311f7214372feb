"""Report what this machine has and what is missing. Uses only the standard library, to run before installation."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from benchmark.core.hosts import usable_cores
from benchmark.core.machine import available_gb
from benchmark.core.project import ROOT, WORK

MEMORY_GB, DISK_GB, CORES = 5.0, 2.0, 2


def ranges(pyproject: Path = ROOT / "pyproject.toml") -> dict[str, str]:
    """Return package -> version range of the project's dependencies."""
    import tomllib

    if pyproject.is_file():
        listed = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    else:  # an installed package
        listed = [item for item in metadata.requires("spiderbench") or [] if "extra ==" not in item]
    parts = (re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", item) for item in listed)
    return {part[1]: part[2] for part in parts if part}


def numbers(version: str) -> tuple[int, ...]:
    """Return a version's release numbers: 2.13.0+cpu gives (2, 13), without trailing zeros."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    found = [int(part) for part in release[0].split(".")] if release else []
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def satisfies(version: str, wanted: str) -> bool:
    """Return whether a version is in a range like '>=2.11', '<0.22' or '==6.4.0' (parts joined by commas)."""
    for part in filter(None, wanted.split(",")):
        sign, bound = re.match(r"(>=|==|<)(.*)", part.strip()).groups()  # type: ignore[union-attr]
        found, limit = numbers(version), numbers(bound)
        if not {">=": found >= limit, "==": found == limit, "<": found < limit}[sign]:
            return False
    return True


def package_faults() -> list[str]:
    """Return a sentence for every dependency that is missing or out of range."""
    faults = []
    if sys.version_info < (3, 11):  # noqa: UP036 (this file also runs under a Python that is too old)
        faults.append(f"Python {platform.python_version()}, but 3.11 or newer is needed")
        return faults
    for package, wanted in ranges().items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            faults.append(f"{package} is missing, {package}{wanted} is needed")
            continue
        if not satisfies(version, wanted):
            faults.append(f"{package} {version} is installed, {package}{wanted} is needed")
    return faults


def machine() -> tuple[list[str], list[str]]:
    """Return (facts, warnings) about Java, processors, memory and disk."""
    facts, warnings = [], []
    try:
        from eval.java import find_java

        facts.append(f"java      {find_java()}")
    except Exception as error:  # eval.java may lack its own imports here
        warnings.append(f"No Java ({error}): captions cannot be scored")
    cores = usable_cores()
    facts.append(f"cores     {cores}")
    if cores < CORES:
        warnings.append(f"{cores} core: the times in the README are for {CORES}, expect longer ones")
    memory = available_gb()
    if memory is not None:
        facts.append(f"memory    {memory:.1f} GB available")
        if memory < MEMORY_GB:
            warnings.append(
                f"{memory:.1f} GB of memory available, {MEMORY_GB:.0f} GB needed: close other programs, or set jobs=1"
            )
    disk = shutil.disk_usage(WORK).free / 1e9
    facts.append(f"disk      {disk:.1f} GB free")
    if disk < DISK_GB:
        warnings.append(
            f"{disk:.1f} GB free on disk, but {DISK_GB:.0f} GB are needed: free some, or set results= to another disk"
        )
    return facts, warnings


def main(arguments: list[str]) -> int:
    """Print what this machine has and what is missing.

    Args:
        arguments: --packages checks only the packages and prints only faults (for make PYTHON=...); overrides such as
            profile=paper gpus=8 also check what that profile needs.

    Returns:
        Exit code: 0, or 2 if a requirement is missing.
    """
    faults = package_faults()
    if "--packages" in arguments:
        for fault in faults:
            print(f"error: {sys.executable}: {fault}", file=sys.stderr)
        if faults:
            print("Install what is missing (constraints.txt has versions that work), or leave PYTHON out: "
                  "make then installs its own environment.", file=sys.stderr)
        return 2 if faults else 0
    print(f"python    {platform.python_version()} ({sys.executable})")
    if not faults:
        for package, wanted in ranges().items():
            print(f"package   {package} {metadata.version(package)} ({wanted.strip()})")
    facts, warnings = machine()
    overrides = [item for item in arguments if "=" in item]
    if overrides and not faults:
        from benchmark.config.request import request
        from benchmark.profiling.profile_check import check

        if any(item.startswith(("model=", "models=")) for item in overrides):
            overrides.append("method=zero_shot")  # a grid needs a method; any method serves
        gpus = [item.partition("=")[2] for item in overrides if item.startswith("gpus=")]
        listed = gpus[-1].split(",") if gpus else []
        count = int(listed[0]) if len(listed) == 1 and listed[0].isdigit() else len(listed)
        more, faults = check(request(overrides, grid=False), count)
        facts += more
    print("\n".join(facts))
    for fault in faults:
        print(f"MISSING   {fault}")
    for warning in warnings:
        print(f"WARNING   {warning}")
    if package_faults():
        print("make installs the packages into .venv; elsewhere: pip install with the versions of constraints.txt.")
    print("Something is missing." if faults else "Everything that is needed is there.")
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
