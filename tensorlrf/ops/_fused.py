"""The path "fused": which formats have a kernel, and how it would be launched."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from tensorlrf.errors import UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.ops._check import check_path
from tensorlrf.ops.structured import form_of
from tensorlrf_kernels.chips import Chip
from tensorlrf_kernels.geometry import MOST_TAPS
from tensorlrf_kernels.launches import HAS_TRITON, LaunchConfig, Problem, Workload


def fuses(factors: Factors) -> bool:
    """Whether there is a kernel for the layer that has these factors: of a linear one on two
    matrices, or on a structured format of sizes that its kernel takes; of a convolution in two axes
    on CP, low rank, and Tucker with a factor behind the core."""
    order, form = len(factors.shape), form_of(factors)
    if order == 2 and form is not None:
        # A layer keeps its paths when its dtype changes, so any will do.
        return form.problem is not None and any(
            form.problem(factors, rows, torch.bfloat16, False) is not None for rows in (1, 8192)
        )
    if isinstance(factors, TuckerFactors):
        return bool(factors.modes) if order == 2 else order == 4 and 0 in factors.modes
    return order in (2, 4) and isinstance(factors, (LowRank, CPFactors))


def fused_here(factors: Factors, has: Callable[[Factors], bool] = fuses) -> tuple[str, ...]:
    """The path, where the layer `has` a kernel, and an NVIDIA GPU and Triton to run it."""
    return ("fused",) if has(factors) and not _lacking(factors) else ()


def check_layer_path(
    path: str,
    paths: tuple[str, ...],
    factors: Factors,
    has: Callable[[Factors], bool] = fuses,
) -> None:
    """The path is one of `paths`; of a kernel that the layer `has`, and that cannot run here, the
    error says why."""
    if path == "fused" and path not in paths and has(factors):
        raise UnsupportedError(
            f"path='fused' is a GPU kernel, and {_lacking(factors)}, or choose 'chain'"
        )
    check_path(path, paths)


def _lacking(factors: Factors) -> str:
    if factors.device.type != "cuda":
        return f"the factors are on {factors.device}; move them to an NVIDIA GPU with .to('cuda')"
    return "" if HAS_TRITON else "Triton cannot be imported; install the triton of this torch"


def fused_problem(
    factors: Factors, rows: int, *, tf32: bool = False
) -> tuple[str, Workload] | None:
    """The op, and what it is to compute, for a layer on `factors` with M output rows; None where
    no kernel is meant for these. Of Tucker convolutions, what is behind the first 1 x 1."""
    shape, dtype = factors.shape, factors.dtype
    form = form_of(factors)
    if len(shape) == 2 and form is not None:
        return None if form.problem is None else form.problem(factors, rows, dtype, tf32)
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
