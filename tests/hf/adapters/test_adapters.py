"""Adapters of peft, in processes that find it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.processes import PYTHONPATH, ROOT, python

pytestmark = pytest.mark.slow

FOLDER = Path(sys.prefix) / "hf"
"""`make .venv/hf` fills it."""

LAWS = ("merging", "targets", "files", "training", "values")


@pytest.mark.parametrize(
    "laws", [LAWS, ("examples", "-k", "minilm"), ("examples", "-k", "smollm2")], ids=" ".join
)
def test_adapters(laws: tuple[str, ...]) -> None:
    assert (FOLDER / "peft").is_dir(), "make .venv/hf"
    path = ":".join([str(FOLDER), PYTHONPATH, str(ROOT / "examples")])
    here = Path(__file__).parent
    asked = [here / f"laws_of_{one}.py" if one in (*LAWS, "examples") else one for one in laws]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *asked, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
