"""Which way to a truncated singular value decomposition, by a cost model that was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

WIDTH = 24
"""Vectors of a block with which a product runs at two thirds of the speed that many reach."""

USUAL = 12
"""Products with a block as wide as the rank that a flat spectrum takes; others take half."""

# Measured on one core of an AMD EPYC with MKL. What matters is how they compare.
PEAK = {torch.float64: 45e9, torch.float32: 95e9}
"""Operations a second of a product of matrices; one of `HALF` rows reaches half of it."""
HALF = 13
QR = 25e9
CALLS = 2e-4
"""Seconds for what a product takes whatever its size."""

# Seconds a cubed and a squared side.
EIGH = 2.2e-10, 4.2e-8
EIGENVALUES = 8e-11, 2.2e-8
SVD = 5e-10, 7e-8


@dataclass(frozen=True)
class Choice:
    """How an (m, n) matrix is cut at rank r.

    solver    "exact", "eigh" or "krylov"
    width     of the blocks of the Krylov space
    sketch    width of its first ones, by which it is seen whether wide ones are of use
    products  with the matrix that cost as much as the exact way
    """

    solver: str
    width: int = 0
    products: int = 0
    sketch: int = 0

    def __str__(self) -> str:
        if self.solver != "krylov":
            return self.solver
        return f"krylov, blocks of {self.width}, while less than {self.products} products are left"


def exact_solver(dtype: torch.dtype) -> str:
    """The SVD itself for float64, whose Gram would lose half of its digits; that Gram for less."""
    return "exact" if dtype == torch.float64 else "eigh"


def choose(
    shape: tuple[int, int], r: int, dtype: torch.dtype, threads: int = 1, *, forced: bool = False
) -> Choice:
    """The way that should take least for the r leading directions of a matrix of `shape` (m, n).

    `dtype` is the working one, float32 or float64. How many products a Krylov space takes depends
    on the spectrum, and shows only on the way: it is chosen where as many as a flat one takes would
    cost no more than the exact way; `forced`, wherever the matrix has room for it.
    """
    # Of a value that as many directions share as a block has vectors, it holds one badly.
    sketch = width = _quads(r + 4)
    if r > WIDTH:
        # Narrow blocks find as much with less work, and what they miss is looked for afterwards.
        sketch, width = _quads(r), max(WIDTH, _quads(r / 3))
    if r + reserve(r) + 4 * width > min(shape):
        return Choice(exact_solver(dtype))
    each = product_seconds(shape, r, width, dtype, threads)
    products = int(exact_seconds(shape, dtype, threads) / each)
    if products * width < USUAL * r and not forced:
        return Choice(exact_solver(dtype))
    return Choice("krylov", width, products, sketch)


def _quads(r: float) -> int:
    return 4 * math.ceil(r / 4)


def reserve(r: int) -> int:
    """How many directions beyond rank r a space holds before it is judged."""
    return max(12, r // 4)


def exact_seconds(shape: tuple[int, int], dtype: torch.dtype, threads: int = 1) -> float:
    """Of the whole spectrum: by the SVD for float64, else by a Gram in float64."""
    short, long = min(shape), max(shape)
    rate = PEAK[torch.float64] * _speedup(threads)
    if dtype == torch.float64:
        return _of_side(SVD, short, threads) + 6.0 * short**2 * (long - short) / rate
    return 2.0 * short**2 * long / rate + _of_side(EIGH, short, threads)


def product_seconds(
    shape: tuple[int, int], r: int, width: int, dtype: torch.dtype, threads: int = 1
) -> float:
    """Of a product with a block, and of making that orthogonal to what is held half way and judging
    it."""
    m, n = shape
    rate = PEAK[dtype] * _speedup(threads) * width / (width + HALF)
    side, held = (m + n) / 2, USUAL * r // 4
    products = (2.0 * m * n + 8.0 * side * held) * width / rate
    return products + 4.0 * side * width**2 / QR + _of_side(EIGENVALUES, held, 1) + CALLS


def _of_side(seconds: tuple[float, float], side: int, threads: int) -> float:
    # Half of a reduction to tridiagonal form is bound by memory.
    return (seconds[0] * side**3 + seconds[1] * side**2) / float(threads**0.3)


def _speedup(threads: int) -> float:
    return float(threads**0.9)
