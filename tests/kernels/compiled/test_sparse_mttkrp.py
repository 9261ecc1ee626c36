"""The kernels of sparse_mttkrp compiled for chips that are not here."""

from __future__ import annotations

import pytest
import torch

from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.sparse_mttkrp import fused
from tensorlrf_kernels.sparse_mttkrp.launch import DTYPES, forward
from tests.kernels.compiled.fitting import assert_fits

pytestmark = pytest.mark.aot

CPU = torch.device("cpu")
# Rows, columns and nonzeros (few, since a trial allocates them).
PROBLEMS = ((2000, 16, 10**5), (10**5, 16, 10**5), (100, 64, 10**4), (100, 100, 10**4), (7, 3, 50))


def check(chip: str, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, columns, nnz = sizes
    problem = Problem(rows, columns, nnz, columns, dtype)
    config = forward(problem, KNOWN[chip])
    assert config is not None
    # No products of tiles.
    assert_fits(fused.trial("forward", config, problem, CPU), KNOWN[chip], ())


@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str) -> None:
    check(chip, PROBLEMS[0], torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_every_heuristic_launch_fits(chip: str, dtype: torch.dtype) -> None:
    for sizes in PROBLEMS:
        check(chip, sizes, dtype)
