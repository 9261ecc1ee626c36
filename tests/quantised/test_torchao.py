"""torchao acts on factored layers, in a process of its own: transformers must not find torchao."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from tensorlrf.errors import MissingExtraError
from tests.processes import PYTHONPATH, python

FOLDER = Path(sys.prefix) / "quant"
"""`make .venv/quant` fills it."""

LAWS = Path(__file__).with_name("laws_of_torchao.py")


def test_without_torchao_the_import_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(
        MissingExtraError, match=r"needs torchao: pip install 'tensorlrf\[torchao\]"
    ):
        importlib.import_module("tensorlrf.torchao")


@pytest.mark.slow
def test_laws() -> None:
    assert FOLDER.is_dir(), "make .venv/quant"
    path = os.pathsep.join([str(FOLDER), PYTHONPATH])
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", LAWS, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "23 passed" in done.stdout
