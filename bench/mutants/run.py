"""Mutants against the tests that reach them, each in a copy of the tree."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.mutants import reach
from bench.mutants.moved import Moved
from bench.mutants.mutant import PACKAGES, ROOT, Fault

COPIED = (
    *PACKAGES,
    *("tests", "bench", "examples", "docs", "pyproject.toml", "Makefile", ".gitignore", "LICENSE"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
)
START = 60.0
"""Seconds that a run may compute beside its tests: for imports, mostly."""
WAIT = 5.0
"""Times these seconds pass before a run that does not compute is ended: it may have been paused, or
have had no core for itself."""
MEMORY = 6 * 2**30
"""Bytes of data that a run may hold: a fault may ask for any number."""
LAST = "tests/golden/"
"""Texts of what the library does notice nearly all: they come after the tests that say why."""
KINDS = "not gpu and not aot and not slow"
NOT_FOUND = 4
"""What pytest returns where a test is not there, or its file cannot be imported."""


class Outcome(NamedTuple):
    """What became of a mutant: "killed", "survived", "not reached" or "gone", of how many tests,
    and what killed it: the first test that failed, or how the run ended."""

    result: str
    tests: int = 0
    killer: str = ""


def copy_tree(target: Path, root: Path = ROOT) -> Path:
    """What tests need of the repository."""
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        given = root / name
        if given.is_dir():
            shutil.copytree(given, target / name, ignore=ignored)
        elif given.exists():
            shutil.copy(given, target / name)
    return target


def nearest(tests: list[str], seconds: dict[str, float], fault: Moved, most: float) -> list[str]:
    """Those that take `most` seconds together, the likely killers first: of the file that mirrors
    the fault's own, of its folder, laws, of its package, of others, golden ones last. Among them
    the files come in turn and quick tests first. A single one at least."""
    turns: dict[str, int] = {}
    own, folder, package = mirrored(fault.path)

    def order(test: str) -> tuple[int, int, float]:
        file, _, name = test.partition("::")
        turns[file] = turns.get(file, 0) + 1
        near = (
            f"/test_{own}.py" in file,
            file.startswith(folder),
            "test_laws" in file or "Law" in name,
            file.startswith(package),
            not file.startswith(LAST),
        )
        return (*near, True).index(True), turns[file], seconds[test]

    chosen: list[str] = []
    spent = 0.0
    for test in sorted(sorted(tests, key=seconds.__getitem__), key=order):
        if chosen and spent + seconds[test] > most:
            continue
        chosen.append(test)
        spent += seconds[test]
    return chosen


def mirrored(path: str) -> tuple[str, str, str]:
    """(what the test file of a source file is called after, folder of tests, package of tests)."""
    inside = path.split("/")[1:]
    if path.startswith("kernels/"):
        op = inside[1] if len(inside) > 2 else Path(inside[-1]).stem
        return op, "tests/kernels/", "tests/kernels/"
    own = Path(inside[-1]).stem.lstrip("_")
    folder, package = (
        "/".join(["tests", *inside[:-1], ""]),
        "/".join(["tests", *inside[:-1][:1], ""]),
    )
    return own, folder if inside[:-1] else f"tests/test_{own}.py", package


def outcome(fault: Fault, tests: list[str], seconds: float, tree: Path) -> Outcome:
    """Of a tree that is as it was afterwards."""
    place = fault.find(tree)
    if place is None:
        return Outcome("gone")
    if not tests:
        return Outcome("not reached")
    text = place[0].read_text()
    fault.apply(tree)
    try:
        killer = killer_among(tests, 4 * seconds + START, tree)
    finally:
        place[0].write_text(text)
    return Outcome("survived" if killer is None else "killed", len(tests), killer or "")


def killer_among(tests: list[str], limit: float, tree: Path) -> str | None:
    """The first of these tests that fails in that tree, or how the run ended otherwise, after more
    than `limit` seconds of computing, say; None where all pass.

    A test that is not in its file (a fault changed the cases of a test) kills nothing. Raises
    LookupError where the file is not there: the tests have moved since they were mapped.
    """
    code, said = _pytest(tests, limit, tree)
    if code == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, flags=re.M)
    if failed is not None:
        return failed.group(1)
    if code != NOT_FOUND:
        return f"exit code {code}" if code else "timeout"
    missing = re.findall(r"^ERROR: not found: (.+)$", said, flags=re.M)
    found = [test for test in tests if str(tree / test) not in missing]
    if not missing or len(found) == len(tests):
        raise LookupError(said)
    return killer_among(found, limit, tree) if found else None


def _pytest(tests: list[str], limit: float, tree: Path) -> tuple[int | None, str]:
    """The exit code, None where it took too long, and what was said."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "-p", "no:cacheprovider"]
        command += ["--hypothesis-seed=0", "--basetemp", f"{folder}/t", *tests]
        said = Path(folder) / "said"  # no pipe: what a test has started may hold it open
        with said.open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=tree,
                env=environment(tree, Path(folder)),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(_bounded, math.ceil(limit)),
            )
            try:
                ended = process.wait(WAIT * limit)
                code = None if ended == -signal.SIGXCPU else ended
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        return code, said.read_text(errors="replace")


def run_tests(tree: Path, notes: Path, tests: list[str]) -> None:
    """Run the tests of a tree with probes; what they reached is added to `notes`."""
    shutil.copy(reach.__file__, tree / f"{reach.PROBE}.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", "-p", reach.PROBE, "-m", KINDS]
        command += ["--hypothesis-seed=0", *tests]
        own = {**environment(tree, Path(folder)), "REACHED": str(notes)}
        subprocess.run(command, cwd=tree, env=own, check=False, preexec_fn=_as_in_front)


def environment(tree: Path, folder: Path) -> dict[str, str]:
    """For tests of that tree, that leave what they leave in `folder`."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "kernels"))),
        "PYTHONDONTWRITEBYTECODE": "1",  # a file is changed twice within a second
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1",
        "TMPDIR": str(folder),
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder),
    }


def _as_in_front() -> None:
    """Ctrl-C works, which some tests send themselves, even where this runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _bounded(seconds: int) -> None:
    _as_in_front()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))


def _end(process: subprocess.Popen[bytes]) -> None:
    """With whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
