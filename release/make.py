"""Wheel, source distribution and bill of materials in dist/, built twice and tried: `make release`.

Nothing is uploaded. Each step says what it found; the first that fails ends the run, and dist/ is
what it was.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from release.bill import write_bill
from release.contents import ReleaseError, check_same, check_sdist, check_wheel, tracked
from release.empty import Empty

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unreleased", action="store_true", help="of a version that has no entry")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    given = parser.parse_args()
    try:
        make(given.out, unreleased=given.unreleased)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        print(f"error: {command} ended with {error.returncode}", file=sys.stderr)
        print(error.stdout or "", error.stderr or "", sep="", file=sys.stderr)
        return 2
    return 0


def make(out: Path, *, unreleased: bool) -> None:
    version = version_of(ROOT)
    if not unreleased:
        check_entry((ROOT / "CHANGELOG.md").read_text("utf-8"), version)
    ours = tracked(ROOT)
    with tempfile.TemporaryDirectory(prefix="tensorlrf-release-") as folder:
        made = Path(folder) / "made"
        wheel, sdist = build(ROOT, made)
        check_wheel(wheel, ours)
        check_sdist(sdist, ours, included())
        say(f"{wheel.name}: {wheel.stat().st_size:,} bytes, {sdist.name}: {sdist.stat().st_size:,}")
        again = from_sdist(sdist, Path(folder) / "again")
        check_same(wheel, again)
        say("the source distribution builds the same wheel, byte for byte")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
        say("twine finds nothing")
        empty = Empty(Path(folder) / "empty", ROOT)
        empty.install(wheel)
        say(f"in an empty environment with it: {', '.join(empty.packages())}")
        for line in empty.try_out(version):
            say(line)
        bill = made / f"tensorlrf-{version}.cdx.json"
        say(f"{bill.name}: {write_bill(empty.python, version, bill)} components")
        out.mkdir(exist_ok=True)
        for old in out.glob("tensorlrf-*"):
            old.unlink()
        for path in sorted(made.iterdir()):
            shutil.copyfile(path, out / path.name)
    say(f"written to {out}: {', '.join(sorted(one.name for one in out.glob('tensorlrf-*')))}")


def version_of(root: Path) -> str:
    """As the package says it."""
    text = (root / "tensorlrf" / "__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise ReleaseError("tensorlrf/__init__.py has no __version__")
    return found[1]


def check_entry(changelog: str, version: str) -> None:
    """Raise ReleaseError unless the version has an entry with its day, and all is in it."""
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(heading, changelog, re.MULTILINE):
        raise ReleaseError(
            f"CHANGELOG.md has no heading '## [{version}] - YYYY-MM-DD'; write what is under "
            "[Unreleased] there, or try without: make release UNRELEASED=1"
        )
    waiting = changelog.partition("## [Unreleased]\n")[2].partition("\n## ")[0]
    if waiting.strip():
        raise ReleaseError(f"CHANGELOG.md has changes under [Unreleased]; are they of {version}?")


def included() -> list[str]:
    """The files and folders of a source distribution, by pyproject.toml."""
    values = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named: list[str] = values["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    return named


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """(wheel, source distribution), by the build tools of this environment."""
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "-o", out, source)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def from_sdist(sdist: Path, out: Path) -> Path:
    """The wheel that it builds, in a folder with nothing else of ours."""
    shutil.unpack_archive(sdist, out, filter="data")
    (source,) = out.iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "-o", out / "dist", source)
    (wheel,) = (out / "dist").glob("*.whl")
    return wheel


def run(*command: object) -> None:
    """Raises CalledProcessError with what it said."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [*map(str, command)]
    subprocess.run(words, env=environment, capture_output=True, text=True, check=True)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
