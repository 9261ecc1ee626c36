"""Random factors of layers for the tests of ops, and the rounding they may show."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors

CONV_FORMATS = ("lowrank", "cp", "tucker2", "tucker_out", "tucker_in", "tucker4", "tucker_kernel")
LINEAR_FORMATS = ("lowrank", "cp", "tucker2", "tucker_out", "tucker_in")
MODES = {
    "tucker2": (0, 1),
    "tucker_out": (0,),
    "tucker_in": (1,),
    "tucker4": (0, 1, 2, 3),
    "tucker_kernel": (2, 3),
}


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)


def sample(
    format: str, shape: tuple[int, ...], rank: int, dtype: torch.dtype = torch.float64
) -> Factors:
    """Factors of a weight of `shape`; Tucker ranks are cut to the size of the mode."""
    if format == "lowrank":
        n = math.prod(shape[1:])
        return LowRank(
            normal(shape[0], rank, seed=1, dtype=dtype),
            normal(rank, n, seed=2, dtype=dtype),
            shape,
        )
    if format == "cp":
        factors = tuple(normal(n, rank, seed=k, dtype=dtype) for k, n in enumerate(shape))
        return CPFactors(normal(rank, seed=9, dtype=dtype), factors)
    modes = MODES[format]
    core = [min(rank, n) if k in modes else n for k, n in enumerate(shape)]
    factors = tuple(normal(shape[k], core[k], seed=k, dtype=dtype) for k in modes)
    return TuckerFactors(normal(*core, seed=9, dtype=dtype), factors, modes)


def assert_rounding(
    y: Tensor, factors: Factors, x: Tensor, bias: Tensor | None, run: Callable[..., Tensor]
) -> None:
    """y differs from run(x, weight, bias) by no more than its sums may round.

    A sum of n products of floats is within n eps of itself, in units of the same sum over absolute
    values (Higham 2002, section 3.1); n adds up along the chain of factors.
    """
    wide = factors.to(torch.float64)
    bias64 = None if bias is None else bias.double()
    expected = run(x.double(), wide.to_dense(), bias64)
    assert y.shape == expected.shape
    assert y.dtype == x.dtype
    absolute = run(
        x.double().abs(),
        wide.map(torch.abs).to_dense(),
        None if bias64 is None else bias64.abs(),
    )
    n = math.prod(factors.shape[1:]) + sum(max(t.shape) for t in factors.tensors().values()) + 8
    bound = n * torch.finfo(x.dtype).eps * absolute
    assert bool(((y.double() - expected).abs() <= bound).all())
