"""Random factors of layers for the tests of ops, and the rounding they may show."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.factors import (
    BlastFactors,
    BlockLowRank,
    CPFactors,
    Factors,
    KroneckerSum,
    LowRank,
    MonarchFactors,
    TRFactors,
    TTFactors,
    TTMatrix,
    TuckerFactors,
)
from tests.draws import seeded

CONV_FORMATS = (
    "lowrank", "cp", "tucker2", "tucker_out", "tucker_in", "tucker4", "tucker_kernel", "kron", "tt"
)  # fmt: skip
LINEAR_FORMATS = ("lowrank", "cp", "tucker2", "tucker_out", "tucker_in")
MODES = {
    "tucker2": (0, 1),
    "tucker_out": (0,),
    "tucker_in": (1,),
    "tucker4": (0, 1, 2, 3),
    "tucker_kernel": (2, 3),
}


def sample(
    format: str, shape: tuple[int, ...], rank: int, dtype: torch.dtype = torch.float64
) -> Factors:
    """Factors of a weight of `shape`; Tucker ranks are cut to the size of the mode."""
    if format == "lowrank":
        n = math.prod(shape[1:])
        return LowRank(
            seeded(shape[0], rank, seed=1, dtype=dtype),
            seeded(rank, n, seed=2, dtype=dtype),
            shape,
        )
    if format == "cp":
        factors = tuple(seeded(n, rank, seed=k, dtype=dtype) for k, n in enumerate(shape))
        return CPFactors(seeded(rank, seed=9, dtype=dtype), factors)
    if format == "kron":
        (m1, n1), (m, n, *kernel) = [_divisor(n) for n in shape[:2]], shape
        return KroneckerSum(
            seeded(rank, m1, n1, seed=1, dtype=dtype),
            seeded(rank, m // m1, n // n1, *kernel, seed=2, dtype=dtype),
        )
    if format == "tt":
        modes = (0, *range(len(shape) - 1, 0, -1))
        ranks = (1, *(min(rank, n) for n in shape[1:]), 1)
        sizes = [(ranks[k], shape[mode], ranks[k + 1]) for k, mode in enumerate(modes)]
        cores = tuple(seeded(*size, seed=k, dtype=dtype) for k, size in enumerate(sizes))
        return TTFactors(cores, modes)
    modes = MODES[format]
    core = [min(rank, n) if k in modes else n for k, n in enumerate(shape)]
    factors = tuple(seeded(shape[k], core[k], seed=k, dtype=dtype) for k in modes)
    return TuckerFactors(seeded(*core, seed=9, dtype=dtype), factors, modes)


def _divisor(n: int) -> int:
    """The largest one up to the root of n."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d * d <= n)


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


def structured(
    format: str, sizes: tuple[int, ...], rank: int, dtype: torch.dtype = torch.float64
) -> Factors:
    """Factors of a matrix, made of four sizes: which ones mean what depends on the format."""
    a, b, c, d = sizes
    if format == "kron":
        return KroneckerSum(
            seeded(rank, a, b, seed=1, dtype=dtype), seeded(rank, c, d, seed=2, dtype=dtype)
        )
    if format.startswith("tt"):
        ranks = (1, rank, rank + 1, 1)
        trains = [(ranks[k], *((a, b), (c, d), (b, c))[k], ranks[k + 1]) for k in range(3)]
        cores = tuple(seeded(*size, seed=k, dtype=dtype) for k, size in enumerate(trains))
        padded = format == "tt_padded" and a * c * b > 1 and b * d * c > 1
        return TTMatrix(cores, (a * c * b - 1, b * d * c - 1) if padded else ())
    if format == "tr":
        ranks = (rank, rank + 1, 2, 1, rank)
        cores = tuple(
            seeded(ranks[k], n, ranks[k + 1], seed=k, dtype=dtype) for k, n in enumerate(sizes)
        )
        return TRFactors(cores, (a * b, c * d))
    if format == "monarch":
        left, right = seeded(a, b, c, rank, seed=1), seeded(c, a, rank, d, seed=2)
        return MonarchFactors(left.to(dtype), right.to(dtype))
    if format == "blast":
        parts = seeded(a, b, rank, seed=1), seeded(c, rank, d, seed=2), seeded(a, c, rank, seed=3)
        return BlastFactors(*(part.to(dtype) for part in parts))
    return _blocks(format, sizes, rank, dtype)


def _blocks(format: str, sizes: tuple[int, ...], rank: int, dtype: torch.dtype) -> BlockLowRank:
    """ "grid": even blocks of all ranks up to `rank`; "ragged": the last ones smaller; "tree": a
    dense one, one of low rank, and two levels of four."""
    p, mb, q, nb = sizes
    contents: list[tuple[int, int, Tensor | tuple[Tensor, Tensor]]] = []

    def low(row: int, column: int, rows: int, columns: int, seed: int) -> None:
        r = min(seed % (rank + 1), rows, columns)
        panels = seeded(rows, r, seed=seed), seeded(r, columns, seed=seed + 1000)
        contents.append((row, column, (panels[0].to(dtype), panels[1].to(dtype))))

    if format == "tree":
        m, n = 4 * mb, 4 * nb
        contents.append((0, 0, seeded(2 * mb, 2 * nb, seed=1, dtype=dtype)))
        low(0, 2 * nb, 2 * mb, 2 * nb, 2)
        low(2 * mb, 0, 2 * mb, 2 * nb, 3)
        for k in range(4):
            low(2 * mb + k // 2 * mb, 2 * nb + k % 2 * nb, mb, nb, 4 + k)
        return BlockLowRank.pack(contents, (m, n))
    m, n = p * mb, q * nb
    if format == "ragged":
        m, n = m - mb // 2, n - nb // 2
    for i in range(0, m, mb):
        for j in range(0, n, nb):
            low(i, j, min(mb, m - i), min(nb, n - j), 7 * i + j)
    return BlockLowRank.pack(contents, (m, n))


STRUCTURED_FORMATS = (
    "kron", "tt", "tt_padded", "tr", "grid", "ragged", "tree", "monarch", "blast"
)  # fmt: skip
