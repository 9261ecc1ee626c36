"""What a release is held to: one version, all files in it, and checks that see a fault."""

from __future__ import annotations

import re
import subprocess
import tarfile
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

import tensorlrf
from release import contents, make
from release.bill import with_root
from release.contents import ReleaseError

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def top_level() -> list[str]:
    """What lies in the root that is not made there."""
    if (ROOT / ".git").exists():
        told = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
        return sorted({line.partition("/")[0] for line in told.stdout.splitlines()})
    return sorted(path.name for path in ROOT.iterdir() if path.name != "PKG-INFO")


# ---- one version, and what belongs to it -------------------------------------------------------


def test_the_version_is_one() -> None:
    assert make.version_of(ROOT) == tensorlrf.__version__ == CITATION["version"]


def test_the_citation_says_what_the_format_asks_for() -> None:
    """Citation File Format 1.2.0: these four, and no key that it does not have."""
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= CITATION.keys()
    more = {"type", "abstract", "version", "date-released", "license", "keywords", "doi", "url"}
    assert CITATION.keys() <= {"cff-version", "message", "title", "authors", *more}
    assert all(one.keys() <= {"name", "family-names", "given-names"} for one in CITATION["authors"])
    assert CITATION["license"] == PROJECT["project"]["license"]
    assert isinstance(CITATION["version"], str)


def test_the_source_distribution_has_all_that_the_checkout_has() -> None:
    left_out = {name for name in top_level() if name.startswith(".")} | {"pyproject.toml"}
    named = make.included()
    missing = [x for x in top_level() if not any(fnmatch(x, one) for one in named)]
    assert set(missing) <= left_out  # hatchling adds pyproject.toml by itself


def test_the_makefile_and_the_tests_find_their_files_in_it() -> None:
    named = make.included()
    text = (ROOT / "Makefile").read_text("utf-8")
    for name in {*re.findall(r"requirements[-\w]*\.(?:txt|lock)", text)}:
        assert any(fnmatch(name, one) for one in named), name
        assert (ROOT / name).is_file()


def test_extras_that_pages_name_exist() -> None:
    known = {*PROJECT["project"]["optional-dependencies"]}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tensorlrf/**/*.py")]
    for path in pages:
        text = path.read_text("utf-8")
        for found in re.findall(r"tensorlrf\[([\w,]+)\]|(?:[Ee]xtra )`+(\w+)`+", text):
            for extra in "".join(found).split(","):
                assert extra in known, f"{path}: {extra}"


def test_the_build_tools_are_pinned() -> None:
    lines = (ROOT / "requirements-release.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    assert {"build", "twine", "cyclonedx-bom", "hatchling"} <= {x.partition("==")[0] for x in pins}


# ---- what `make release` refuses ---------------------------------------------------------------

ENTRY = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-31\n\n### Added\n\n- This.\n"


def test_a_version_needs_an_entry() -> None:
    make.check_entry(ENTRY, "1.2.3")
    for text, version, word in (
        (ENTRY, "1.2", "no heading"),
        (ENTRY, "1x2.3", "no heading"),
        (ENTRY.replace(" - 2026-01-31", ""), "1.2.3", "YYYY-MM-DD"),
        (ENTRY.replace("sed]\n", "sed]\n\n- That.\n"), "1.2.3", "under"),
    ):
        with pytest.raises(ReleaseError, match=word):
            make.check_entry(text, version)


OURS = {
    "tensorlrf/__init__.py", "tensorlrf/py.typed", "kernels/tensorlrf_kernels/a/kernel.py",
    "tests/test_a.py", "Makefile", ".ci/run",
}  # fmt: skip
ABOUT = b"Name: tensorlrf\nVersion: 1\nLicense-Expression: Apache-2.0\nRequires-Python: >=3.11\n"


def wheel(folder: Path, change: dict[str, bytes | None], name: str = "a") -> Path:
    """One that is right, but for a change: name -> what it holds, None where it is missing."""
    files: dict[str, bytes | None] = {
        "tensorlrf/__init__.py": b"", "tensorlrf/py.typed": b"",
        "tensorlrf_kernels/a/kernel.py": b"",
        **{f"tensorlrf-1.dist-info/{one}": b"" for one in contents.ABOUT},
        "tensorlrf-1.dist-info/METADATA": ABOUT, **change,
    }  # fmt: skip
    (folder / name).mkdir(exist_ok=True)
    path = folder / name / "tensorlrf-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for inside, data in files.items():
            if data is not None:
                file.writestr(inside, data)
    return path


def test_a_wheel_has_both_packages_and_nothing_else(tmp_path: Path) -> None:
    contents.check_wheel(wheel(tmp_path, {}), OURS)
    for change in (
        {"tensorlrf/py.typed": None},
        {"tensorlrf_kernels/a/kernel.py": None},
        {"tests/test_a.py": b""},
        {"tensorlrf/__pycache__/__init__.pyc": b""},
        {"tensorlrf-1.dist-info/licenses/LICENSE": None},
        {"tensorlrf-1.dist-info/METADATA": ABOUT.replace(b"Version: 1", b"Version: 2")},
    ):
        with pytest.raises(ReleaseError):
            contents.check_wheel(wheel(tmp_path, change), OURS)


def test_two_wheels_are_one(tmp_path: Path) -> None:
    one = wheel(tmp_path, {})
    contents.check_same(one, one)
    other = wheel(tmp_path, {"tensorlrf/py.typed": b"x"}, "b")
    with pytest.raises(ReleaseError, match=r"tensorlrf/py\.typed"):
        contents.check_same(one, other)


def test_a_source_distribution_has_what_is_included(tmp_path: Path) -> None:
    path, named = tmp_path / "tensorlrf-1.tar.gz", ["tensorlrf", "kernels", "Make*"]
    there = [x for x in OURS if contents.is_included(x, named)]
    assert sorted({*OURS} - {*there}) == [".ci/run", "tests/test_a.py"]

    def written(names: list[str]) -> None:
        with tarfile.open(path, "w:gz") as file:
            for name in [*names, "PKG-INFO", ".gitignore", "pyproject.toml"]:
                file.addfile(tarfile.TarInfo(f"tensorlrf-1/{name}"))

    written(there)
    contents.check_sdist(path, OURS, named)
    for wrong in (there[1:], [*there, "tests/test_a.py"]):
        written(wrong)
        with pytest.raises(ReleaseError, match=r"\b1 (files )?are"):
            contents.check_sdist(path, OURS, named)


def test_files_of_no_commit_are_refused(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("")
    with pytest.raises(ReleaseError, match="'a'"):
        contents.tracked(tmp_path)
    git("add", "a")
    assert contents.tracked(tmp_path) == {"a"}


def test_a_bill_is_about_tensorlrf_and_what_it_needs() -> None:
    def part(name: str, version: str) -> dict[str, str]:
        return {"name": name, "version": version, "bom-ref": name}

    parts = [part("pip", "24"), part("tensorlrf", "1"), part("torch", "2.13")]
    links = [{"ref": "pip"}, {"ref": "tensorlrf", "dependsOn": ["torch", "pip"]}, {"ref": "torch"}]
    bill = with_root({"components": parts, "dependencies": links, "specVersion": "1.6"}, "1")
    assert bill["metadata"]["component"] == parts[1]
    assert bill["components"] == parts[2:]
    assert bill["dependencies"][0]["dependsOn"] == ["torch"]
    with pytest.raises(ReleaseError, match="version 2"):
        with_root({"components": parts, "dependencies": links}, "2")
