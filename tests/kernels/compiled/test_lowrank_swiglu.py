"""The kernels of lowrank_swiglu compiled for chips that are not here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels._aot import compile_call
from tensorlrf_kernels.chips import KNOWN
from tensorlrf_kernels.launches import Call, Problem
from tensorlrf_kernels.lowrank_linear.launch import backward as linear_backward
from tensorlrf_kernels.lowrank_swiglu import fused
from tensorlrf_kernels.lowrank_swiglu.launch import DTYPES, backward, forward
from tensorlrf_kernels.lowrank_swiglu.reference import Projection
from tests.kernels.compiled.fitting import assert_fits

pytestmark = pytest.mark.aot

ROWS = {"decode": (16, 128), "prefill": (8192,), "backward": (8192,)}
RANKS = {"decode": (32, 64, 256, 512), "prefill": (16, 32, 64, 128), "backward": (16, 32, 64)}
SHAPES = {"plain": (4096, 4096), "full": (14336, 4096)}  # N, K


def calls_of(kernel: str, problem: Problem, chip: str, full: bool) -> list[Call]:
    """The launches for the problem with both biases and every gradient, or without biases."""
    M, N, K, R, dtype, _ = problem

    def empty(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of)

    x, bias = empty(M, K), empty(N) if full else None
    gate, up = (Projection(empty(R, K), empty(N, R), bias) for _ in range(2))
    choose = backward if kernel == "backward" else forward
    config = choose(problem, KNOWN[chip])
    assert config is not None
    assert config.kernel == kernel
    if kernel != "backward":
        return fused.forward_calls(config, x, gate, up, keep=full)[0]
    turned = linear_backward(fused.turned_problem(problem, 2 * R), KNOWN[chip])
    assert turned is not None
    t, needed = empty(M, 2 * R, of=fused.kept_dtype(dtype)), [True] * 5 + [full] * 2
    return fused.backward_calls(config, turned, empty(M, N), x, t, gate, up, needed)[0]


@pytest.mark.parametrize("kernel", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chip", KNOWN)
def test_fits_the_chip(chip: str, dtype: torch.dtype, kernel: str) -> None:
    rows = ROWS[kernel][0]
    calls = calls_of(kernel, Problem(rows, 4096, 4096, 64, dtype), chip, full=True)
    # The second launch of the backward pass is lowrank_linear's, and compiled in its tests.
    assert_fits(calls[:1], KNOWN[chip])


@pytest.mark.parametrize("kernel", ROWS)
def test_sizes_that_the_compiler_knows(kernel: str) -> None:
    """A size or stride of one is a constant of the code, where others are arguments."""
    rows = 200 if kernel == "prefill" else 1
    calls = calls_of(kernel, Problem(rows, 1, 1, 1, torch.bfloat16), "NVIDIA H200", full=True)
    for call in calls:
        assert compile_call(call, KNOWN["NVIDIA H200"]).spilled == 0


@pytest.mark.slow
@pytest.mark.parametrize("terms", SHAPES)
@pytest.mark.parametrize(("kernel", "rank"), [(k, r) for k, ranks in RANKS.items() for r in ranks])
@pytest.mark.parametrize("chip", KNOWN)
def test_every_heuristic_launch_fits(
    chip: str, kind: tuple[torch.dtype, bool], kernel: str, rank: int, terms: str
) -> None:
    for rows in ROWS[kernel]:
        problem = Problem(rows, *SHAPES[terms], rank, *kind)
        assert_fits(calls_of(kernel, problem, chip, full=terms == "full"), KNOWN[chip])
