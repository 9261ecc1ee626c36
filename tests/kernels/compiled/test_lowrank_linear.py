"""The kernels of lowrank_linear compiled for chips that are not here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels._aot import compile_call
from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.launches import Call, Problem
from tensorlrf_kernels.lowrank_linear import fused
from tensorlrf_kernels.lowrank_linear.launch import DTYPES, backward, forward
from tests.kernels.compiled.fitting import assert_fits

pytestmark = pytest.mark.aot

ROWS = {"decode": (16, 64, 128), "prefill": (8192,), "backward": (8192,)}
RANKS = {
    "decode": (32, 64, 256, 512),
    "prefill": (16, 32, 64, 128, 256),
    "backward": (16, 32, 64, 128),
}


def calls_of(kernel: str, problem: Problem, chip: str, full: bool) -> list[Call]:
    """The launches for the problem with every term and gradient, or with none."""
    M, N, K, R, dtype, _ = problem

    def empty(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of)

    x, right, left, dy = empty(M, K), empty(R, K), empty(N, R), empty(M, N)
    bias, residual = (empty(N), empty(M, N)) if full else (None, None)
    activation = "gelu" if full else None
    choose = backward if kernel == "backward" else forward
    config = choose(problem, KNOWN[chip])
    assert config is not None
    assert config.kernel == kernel
    if kernel == "backward":
        t = empty(M, R, of=fused.kept_dtype(dtype))
        terms = (right, left, bias, residual, activation, [True, True, True, full, full])
        return fused.backward_calls(config, config, dy, x, t, *terms)[0]
    return fused.forward_calls(config, x, right, left, bias, residual, activation, keep=full)[0]


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str, dtype: torch.dtype, kernel: str) -> None:
    rows = ROWS[kernel][0]
    calls = calls_of(kernel, Problem(rows, 4096, 4096, 64, dtype), chip, full=False)
    assert_fits(calls, KNOWN[chip])


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (7, 333, 1001, 33), (1000, 257, 129, 100)])
def test_odd_sizes_compile(sizes: tuple[int, int, int, int]) -> None:
    """Sizes and strides of one are constants to the compiler, and odd ones are no multiples."""
    chip = KNOWN["NVIDIA H200"]
    problem = Problem(*sizes, torch.float16)
    for kernel in ("decode" if sizes[0] <= 128 else "prefill", "backward"):
        for call in calls_of(kernel, problem, chip.name, full=True):
            assert compile_call(call, chip).shared_memory <= chip.shared_memory


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])
@pytest.mark.parametrize(("kernel", "rank"), [(k, r) for k, ranks in RANKS.items() for r in ranks])
@pytest.mark.parametrize("chip", KNOWN)
def test_every_heuristic_launch_fits(
    chip: str, kind: tuple[torch.dtype, bool], kernel: str, rank: int, full: bool
) -> None:
    for rows in ROWS[kernel]:
        calls = calls_of(kernel, Problem(rows, 4096, 4096, rank, *kind), chip, full)
        assert_fits(calls, KNOWN[chip])
