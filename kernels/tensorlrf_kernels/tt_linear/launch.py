"""How a TT-matrix is run: where it is cut, and whether the halves suit the Kronecker kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tensorlrf_kernels.kron_linear.launch import KronProblem

# How many times as long a multiply-add takes in products of single cores, which are too thin for
# the libraries: 1.6 times fewer took over twice as long on a CPU (bench/results/cpu/tt_linear.md).
THIN = 2
Size = tuple[int, int, int, int]
"""(r, m, n, r') of a core (r, m, n, r')."""


def kron_problem(
    sizes: Sequence[Size], cut: int, rows: int, dtype: torch.dtype, tf32: bool = False
) -> KronProblem:
    """The Kronecker sum that a train is when it is cut before core `cut`: as many terms as the rank
    there, with the merged cores of each half as factors."""
    (m1, n1), (m2, n2) = half(sizes[:cut]), half(sizes[cut:])
    return KronProblem(rows, m1, n1, m2, n2, sizes[cut][0], dtype, tf32)


def served_cut(
    sizes: Sequence[Size], rows: int, dtype: torch.dtype, tf32: bool = False
) -> int | None:
    """The cut whose halves the Kronecker kernel serves with the fewest multiply-adds; None where
    it serves none."""
    problems = [kron_problem(sizes, cut, rows, dtype, tf32) for cut in range(1, len(sizes))]
    works: list[float] = [kron_work(p) if p.served else math.inf for p in problems]
    least = min([*works, math.inf])
    return None if least == math.inf else 1 + works.index(least)


def cheaper_cut(sizes: Sequence[Size], rows: int, chain: int) -> int | None:
    """The cut by which the halves, merged and multiplied as library products, take the fewest
    multiply-adds; None where one product a core, which takes `chain` a row, takes far fewer."""
    # One row in any dtype: what is compared is the same for all.
    cuts = range(1, len(sizes))
    works = [rows * kron_work(kron_problem(sizes, cut, 1, torch.float32)) for cut in cuts]
    works = [work + merge_work(sizes, cut) for cut, work in zip(cuts, works, strict=True)]
    if not works or min(works) >= THIN * rows * chain:
        return None
    return 1 + works.index(min(works))


def merge_work(sizes: Sequence[Size], cut: int) -> int:
    """Multiply-adds of merging the cores of each half."""
    work = 0
    for cores in (sizes[:cut], sizes[cut:]):
        r, m, n, _ = cores[0]
        for inner, more_m, more_n, after in cores[1:]:
            work += r * m * n * inner * more_m * more_n * after
            m, n = m * more_m, n * more_n
    return work


def kron_work(problem: KronProblem) -> int:
    """Multiply-adds of a row, in the cheaper of the two orders."""
    _, m1, n1, m2, n2, terms, *_ = problem
    return int(terms * min(n1 * m2 * (n2 + m1), m1 * n2 * (n1 + m2)))


def half(sizes: Sequence[Size]) -> tuple[int, int]:
    """Rows and columns of the product of these cores."""
    return math.prod([m for _, m, _, _ in sizes]), math.prod([n for _, _, n, _ in sizes])
