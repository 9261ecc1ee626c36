"""Random factors of layers, and the rounding that their outputs may show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tensorlrf.factors import (
    BlastFactors,
    BlockLowRank,
    BlockTerm,
    CPFactors,
    Factors,
    Grouped,
    KroneckerSum,
    LowRank,
    MonarchFactors,
    TRFactors,
    TTFactors,
    TTMatrix,
    TuckerFactors,
)
from tests.draws import seeded

FORMATS = ("lowrank", "cp", "tucker", "tucker_partial", "kron", "tt")
MATRIX_FORMATS = ("tr", "blr", "tree", "monarch", "blast")
"""Of matrices alone."""
TUCKER_MODES: dict[str, Callable[[int], Sequence[int]]] = {
    "tucker": range,
    "tucker_partial": lambda order: range(order // 2),
    "tucker2": lambda _: (0, 1),
    "tucker_out": lambda _: (0,),
    "tucker_in": lambda _: (1,),
    "tucker_kernel": lambda order: range(2, order),
}
"""A name -> of the number of modes, those that have a factor."""
LINEAR_FORMATS = ("lowrank", "cp", "tucker2", "tucker_out", "tucker_in")
CONV_FORMATS = (*LINEAR_FORMATS, "tucker", "tucker_kernel", "kron", "tt", "block_term")


def random_factors(
    format: str,
    shape: tuple[int, ...],
    rank: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Factors:
    """Factors of a weight of `shape`; a Tucker leaves modes whole, or cuts ranks to their sizes."""
    draws = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=draws, dtype=dtype)

    if format == "lowrank":
        return LowRank(randn(shape[0], rank), randn(rank, math.prod(shape[1:])), shape)
    if format == "cp":
        return CPFactors(randn(rank), tuple(randn(n, rank) for n in shape))
    if format == "block_term":
        pair = [min(rank, n) for n in shape[:2]]
        sides = tuple(randn(2, n, r) for n, r in zip(shape[:2], pair, strict=True))
        return BlockTerm(randn(2, *pair, *shape[2:]), sides, (0, 1))
    if format == "kron":
        m1, n1 = (next(d for d in (2, 3, 1) if n % d == 0) for n in shape[:2])
        b = randn(rank, shape[0] // m1, shape[1] // n1, *shape[2:])
        return KroneckerSum(randn(rank, m1, n1), b)
    if format == "tt" and len(shape) > 2:
        modes = (0, *range(len(shape) - 1, 0, -1))
        sizes = [shape[k] for k in modes]
        ends = [1, *[rank] * (len(shape) - 1), 1]
        return TTFactors(tuple(randn(ends[k], n, ends[k + 1]) for k, n in enumerate(sizes)), modes)
    if format == "tt":  # padded to even sizes
        m, n = (-(-size // 2) for size in shape)
        cores = randn(1, 2, 1, rank), randn(rank, m, 2, rank), randn(rank, 1, n, 1)
        return TTMatrix(cores, shape)
    if format in MATRIX_FORMATS:
        return _matrix_factors(format, shape, rank, randn)
    modes = TUCKER_MODES[format](len(shape))
    core = [min(rank, n) if k in modes else n for k, n in enumerate(shape)]
    factors = tuple(randn(shape[k], core[k]) for k in modes)
    return TuckerFactors(randn(*core), factors, tuple(modes))


def _matrix_factors(
    format: str, shape: tuple[int, ...], rank: int, randn: Callable[..., Tensor]
) -> Factors:
    m, n = shape
    if format == "tr":
        cores = randn(rank, 1, rank), randn(rank, m, rank), randn(rank, n, 1), randn(1, 1, rank)
        return TRFactors(cores, shape)
    halves = -(-m // 2), -(-n // 2)
    if format == "monarch":
        return MonarchFactors(randn(2, halves[0], 2, rank), randn(2, 2, rank, halves[1]), shape)
    if format == "blast":
        parts = randn(2, halves[0], rank), randn(2, rank, halves[1]), randn(2, 2, rank)
        return BlastFactors(*parts, shape)
    contents: list[tuple[int, int, Tensor | tuple[Tensor, Tensor]]] = []
    if format == "tree":
        contents.append((0, 0, randn(halves[0], n)))
    for row in (0, halves[0]):
        for column in (0, halves[1]):
            if format == "tree" and row == 0:
                continue
            rows = min(halves[0], m - row)
            columns = min(halves[1], n - column)
            contents.append((row, column, (randn(rows, 1), randn(1, columns))))
    return BlockLowRank.pack(contents, shape)


def random_grouped(
    format: str,
    shape: tuple[int, ...],
    groups: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    rank: int = 2,
) -> Factors:
    """Factors of a weight of `shape`, of each of its groups apart where there are more than one."""
    if groups == 1:
        return random_factors(format, shape, rank, seed, dtype)
    one = (shape[0] // groups, *shape[1:])
    seeds = [100 * k + seed for k in range(groups)]
    return Grouped.stack([random_factors(format, one, rank, k, dtype) for k in seeds])


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
