"""A package of the page on adding a format works as it stands there, beside this one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`(\w+\.py)`[^\n]*\n\n```python\n(.*?)```", PAGE, re.S | re.M))


def lines_of_code(source: str) -> int:
    return sum(bool(line.strip()) for line in source.splitlines())


def test_factors_and_a_form_are_few_lines() -> None:
    assert lines_of_code(FILES["trilinear.py"]) < 65
    assert lines_of_code(FILES["sampled.py"]) < 45


def test_a_format_of_another_package_gets_all_that_ours_have(tmp_path: Path) -> None:
    """Its own test says what: the laws of factors, layers, export, costs, compress, files and the
    command line. In a process of its own, since a format stays registered."""
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
    installed = tmp_path / "sampled-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: sampled\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[tensorlrf.methods]\nsampled = sampled\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels")))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "--rootdir", tmp_path, "test_trilinear.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) > 20
