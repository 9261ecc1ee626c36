"""requirements.lock is complete, fits what is asked for, and says where nothing comes from."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
TORCH = "torch"


def entries() -> list[str]:
    """Each package with its hashes, as one line."""
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


@cache
def locked() -> dict[str, Requirement]:
    """Name -> the version that is for this Python and system."""
    found = [Requirement(line.partition("--hash")[0].strip()) for line in entries()]
    here = [one for one in found if one.marker is None or one.marker.evaluate()]
    by_name = {canonicalize_name(one.name): one for one in here}
    assert len(by_name) == len(here)
    return by_name


def version(name: str) -> str:
    (pin,) = locked()[canonicalize_name(name)].specifier
    assert pin.operator == "=="
    return pin.version


def wanted() -> list[Requirement]:
    """By pyproject.toml: to run, to build, to develop."""
    values = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = values["project"]
    texts = [
        *project["dependencies"],
        *values["build-system"]["requires"],
        *(one for of in ("dev", "tensorly", "plot", "hf", "recipe", "bench") for one in
          project["optional-dependencies"][of]),
    ]  # fmt: skip
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("one", [r for r in wanted() if r.name != TORCH], ids=str)
def test_what_pyproject_asks_for_is_there(one: Requirement) -> None:
    assert version(one.name) in one.specifier


def test_the_pins_of_the_environment_are_those_of_the_lock() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for pin in pins:
        if pin.name != TORCH:
            assert version(pin.name) in pin.specifier, pin
    assert TORCH in {pin.name for pin in pins}
    assert TORCH not in locked()


def test_every_package_has_hashes_and_no_place_that_it_comes_from() -> None:
    for entry in entries():
        assert re.fullmatch(r"[^ ]+==[^ ]+( ; .*?)?( +--hash=sha256:[0-9a-f]{64})+ *", entry), entry
    assert "://" not in LOCK
    assert "index" not in LOCK


def needs(name: str) -> list[str]:
    """What an installed package brings here, without extras."""
    try:
        told = [Requirement(text) for text in distribution(name).requires or []]
    except PackageNotFoundError:
        return []
    return [
        str(canonicalize_name(one.name))
        for one in told
        if one.marker is None or one.marker.evaluate({"extra": ""})
    ]


def test_nothing_is_missing_but_torch_and_what_it_brings() -> None:
    behind, left = {TORCH}, [TORCH]
    while left:
        new = [name for name in needs(left.pop()) if name not in behind]
        behind |= set(new)
        left += new
    for name in locked():
        for other in needs(name):
            assert other in locked() or other in behind, (name, other)
