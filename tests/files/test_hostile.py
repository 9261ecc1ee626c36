"""What a file says may be anything: it is taken, or one of our errors says what is wrong."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tensorlrf import io
from tensorlrf.cli._inspect import _report
from tensorlrf.compression.checkpoint._file import load, save
from tensorlrf.compression.checkpoint._inspect import inspect
from tensorlrf.compression.checkpoint.header import KEY
from tensorlrf.decomposition import blr, cp, kron, monarch, svd, tr, tt_matrix, tucker
from tensorlrf.errors import TensorlrfError
from tensorlrf.factors import Batch, Factors
from tests.compression.checkpoint.saved import blank, compressed
from tests.files.mutants import mutants

SEEDS = range(6)


@functools.cache
def factors() -> dict[str, Factors]:
    """One of most formats."""
    g = torch.Generator().manual_seed(0)
    matrix, kernel = torch.randn(12, 8, generator=g), torch.randn(6, 4, 3, 3, generator=g)
    return {
        "svd": svd(matrix, 2), "cp": cp(kernel, 2, random_state=0), "tucker": tucker(kernel, 2),
        "kron": kron(matrix, 2), "tt": tt_matrix(matrix, 2), "tr": tr(kernel, 2, random_state=0),
        "blr": blr(matrix, 0.5), "monarch": monarch(matrix, 1),
        "batch": Batch.stack([svd(matrix, 2), svd(matrix + 1, 2)]),
    }  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_changed_files_of_factors(seed: int, tmp_path: Path) -> None:
    io.save_factors_dict(factors(), tmp_path / "f")
    data, refused = (tmp_path / "f").read_bytes(), 0
    for mutant in mutants(data, io.KEY, seed, 60):
        (tmp_path / "m").write_bytes(mutant)
        try:
            for f in io.load_factors_dict(tmp_path / "m").values():
                repr(f)
        except TensorlrfError:  # and nothing else
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("seed", SEEDS)
def test_changed_files_of_models(seed: int, tmp_path: Path) -> None:
    save(compressed(), tmp_path / "f")
    data, refused = (tmp_path / "f").read_bytes(), 0
    for mutant in mutants(data, KEY, seed, 40):
        (tmp_path / "m").write_bytes(mutant)
        with contextlib.suppress(TensorlrfError):
            str(inspect(tmp_path / "m"))
        try:
            load(tmp_path / "m", blank())
        except TensorlrfError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("seed", SEEDS)
def test_inspect_verify_refuses_what_load_refuses(seed: int, tmp_path: Path) -> None:
    """A damaged file of either kind; of one that is whole but says something else, load says more,
    for it knows the model."""
    draw = random.Random(seed)
    save(compressed(), tmp_path / "model")
    io.save_factors_dict(factors(), tmp_path / "factors")
    kinds: dict[str, Callable[[Path], Any]] = {
        "model": lambda path: load(path, blank()),
        "factors": io.read,
    }
    for name, read in kinds.items():
        data = (tmp_path / name).read_bytes()
        for _ in range(12):
            at = draw.randrange(len(data))
            bit = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
            for mutant in (bit, data[:at], data[:at] + data[at + 1 :], data + data[:1]):
                (tmp_path / name).write_bytes(mutant)
                with pytest.raises(TensorlrfError):
                    _report(tmp_path / name, verify=True)
                with pytest.raises(TensorlrfError):
                    read(tmp_path / name)
        (tmp_path / name).write_bytes(data)
        str(_report(tmp_path / name, verify=True))
