"""What a wheel and a source distribution hold: all of what is ours, and nothing else."""

from __future__ import annotations

import subprocess
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

WHEEL = {"tensorlrf/": "tensorlrf/", "kernels/tensorlrf_kernels/": "tensorlrf_kernels/"}
"""Folder here -> folder in the wheel."""

ABOUT = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
MADE = ("PKG-INFO",)


class ReleaseError(Exception):
    """What is built is not what is to be handed out."""


def tracked(root: Path) -> set[str]:
    """The files of the commit at hand. Raises ReleaseError where others lie beside them."""
    told = _git(root, "ls-files", "-z")
    strange = _git(root, "ls-files", "-z", "--others", "--exclude-standard")
    if strange:
        raise ReleaseError(f"{sorted(strange)[:5]} are in no commit; commit or remove them")
    return told


def _git(root: Path, *command: str) -> set[str]:
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name}


def check_wheel(wheel: Path, ours: set[str]) -> None:
    """Raise ReleaseError unless it holds the files of both packages, and what tells of them."""
    name, version, *_ = wheel.name.split("-")
    about = f"{name}-{version}.dist-info/"
    wanted = {
        inside + path.removeprefix(here)
        for path in ours
        for here, inside in WHEEL.items()
        if path.startswith(here)
    } | {about + one for one in ABOUT}
    with zipfile.ZipFile(wheel) as file:
        _compare(wheel, set(file.namelist()), wanted)
        metadata = file.read(f"{about}METADATA").decode()
    for line in (f"Version: {version}", "License-Expression: Apache-2.0", "Requires-Python: >="):
        if f"\n{line}" not in metadata:
            raise ReleaseError(f"{wheel.name}: its metadata do not say {line!r}")


def check_sdist(sdist: Path, ours: set[str], included: list[str]) -> None:
    """Raise ReleaseError unless the archive holds the files that pyproject.toml includes."""
    root = sdist.name.removesuffix(".tar.gz")
    wanted = {path for path in ours if is_included(path, included)} | {*MADE, ".gitignore"}
    with tarfile.open(sdist) as file:
        names = {str(PurePosixPath(one.name).relative_to(root)) for one in file if one.isfile()}
        odd = [one.name for one in file if not (one.isfile() or one.isdir())]
    if odd:
        raise ReleaseError(f"{sdist.name} holds links: {odd[:5]}")
    _compare(sdist, names, wanted | {"pyproject.toml"})


def is_included(path: str, included: list[str]) -> bool:
    """Whether a file is one of those, or lies in a folder that is."""
    return any(path.startswith(f"{one}/") or fnmatch(path, one) for one in included)


def check_same(one: Path, other: Path) -> None:
    """Raise ReleaseError unless two wheels are the same, byte for byte."""
    if one.read_bytes() == other.read_bytes():
        return
    with zipfile.ZipFile(one) as a, zipfile.ZipFile(other) as b:
        _compare(other, set(b.namelist()), set(a.namelist()))
        differ = [name for name in a.namelist() if a.read(name) != b.read(name)]
    raise ReleaseError(f"the wheel of the source distribution is another one: {differ[:5]}")


def _compare(archive: Path, found: set[str], wanted: set[str]) -> None:
    missing, strange = sorted(wanted - found), sorted(found - wanted)
    if missing or strange:
        raise ReleaseError(
            f"{archive.name}: {len(missing)} files are missing {missing[:5]}, "
            f"{len(strange)} are none of its {strange[:5]}"
        )
