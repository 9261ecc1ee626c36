"""Which kernel runs the path "fused" of a layer, and how it would be launched."""

from __future__ import annotations

import importlib

from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf_kernels._chip import Chip
from tensorlrf_kernels._conv import MOST_TAPS
from tensorlrf_kernels._launch import LaunchConfig, Problem


def fused_problem(factors: Factors, rows: int, *, tf32: bool = False) -> tuple[str, Problem] | None:
    """The op, and what it is to compute, for a layer on `factors` with M output rows; None where
    no kernel is meant for these. Of Tucker convolutions, what is behind the first 1 x 1."""
    shape, dtype = factors.shape, factors.dtype
    if len(shape) == 2:
        out, inp = shape
        return "lowrank_linear", Problem(rows, out, inp, linear_rank(factors), dtype, tf32)
    if len(shape) != 4 or max(shape[2:]) > MOST_TAPS:
        return None
    out, inp, kh, kw = shape
    if isinstance(factors, CPFactors):
        return "cp_conv2d", Problem(rows, out, inp, factors.rank, dtype, tf32)
    if isinstance(factors, LowRank):
        return "tucker_conv2d", Problem(rows, out, inp * kh * kw, factors.rank, dtype, tf32)
    if isinstance(factors, TuckerFactors) and 0 in factors.modes:
        r_out, r_in = factors.core.shape[:2]
        return "tucker_conv2d", Problem(rows, out, r_in * kh * kw, r_out, dtype, tf32)
    return None


def fused_launch(
    factors: Factors, rows: int, chip: Chip, *, tf32: bool = False
) -> LaunchConfig | None:
    """How the kernel would be launched on the chip; None where the chain runs in its place."""
    found = fused_problem(factors, rows, tf32=tf32)
    if found is None:
        return None
    op, problem = found
    launches = importlib.import_module(f"tensorlrf_kernels.{op}.launch")
    config: LaunchConfig | None = launches.forward(problem, chip)
    return config


def linear_rank(factors: Factors) -> int:
    """The rank between the two matrices that a linear layer on these factors multiplies by."""
    rank = factors.rank
    return rank if isinstance(rank, int) else min(rank, default=0)
