"""The pairs of shapes of which a weight can be a Kronecker product, and which of them to try.

A pair ((m1, n1), (m2, n2)) with m1 m2 = m and n1 n2 = n turns a weight (m, n, *kernel) into a
matrix (m1 n1, m2 n2 taps), in which kron(a, b) is vec(a) vec(b)^T (Van Loan & Pitsianis 1993,
section 3). Its singular values say how well a sum of so many terms does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import keep_within
from tensorlrf.decomposition.rank import Rank, matrix_rank
from tensorlrf.errors import RankError, ShapeError

Pair = tuple[tuple[int, int], tuple[int, int]]

LOPSIDED = 4.0
"""A term may have this many times the parameters of the cheapest pair's; a longer one is rarely
worth it, and its matrix is so narrow that few terms are all that there are."""

LIKE = 1.25
"""The same where the rank is a number of terms, which must then cost about as much."""

TRIED = 4
"""How many pairs are decomposed in full, the most promising ones and the cheapest one."""

SAMPLE = (256, 2048)
"""Rows and columns of the rearranged matrix that an estimate looks at."""


def pairs_of(m: int, n: int) -> list[Pair]:
    """All ((m1, n1), (m2, n2)) of an (m, n, *kernel) weight, the cheapest terms first."""
    pairs = [((a, b), (m // a, n // b)) for a in divisors(m) for b in divisors(n)]
    return sorted(pairs, key=lambda pair: (_spread(pair), abs(pair[0][0] - pair[0][1]), pair))


def proper_pairs(m: int, n: int) -> list[Pair]:
    """The pairs that make a Kronecker product of their own, the cheapest terms first.

    Where some have no side of length one, these; else those that are neither a multiple of the
    weight (1 x 1 by m x n) nor an outer product (m x 1 by 1 x n), whose sum is a low-rank matrix.
    """
    pairs = pairs_of(m, n)
    full = [pair for pair in pairs if 1 not in (*pair[0], *pair[1])]
    return full or [pair for pair in pairs if not _trivial(pair)]


def has_proper_pairs(m: int, n: int) -> bool:
    """Whether there are `proper_pairs`, at any size and without listing them: a side that is
    neither prime nor one can be shared out."""
    return is_composite(m) or is_composite(n)


def check_shapes(shapes: Any, m: int, n: int) -> Pair:
    """`shapes` as a pair of ints. Raises ShapeError where it is none of an (m, n) weight's."""
    try:
        (m1, n1), (m2, n2) = shapes
        given = [int(i) for i in (m1, n1, m2, n2) if i == int(i) and i > 0]
    except (TypeError, ValueError, OverflowError):
        given = []
    if len(given) == 4 and given[0] * given[2] == m and given[1] * given[3] == n:
        return (given[0], given[1]), (given[2], given[3])
    listed = proper_pairs(m, n) or pairs_of(m, n)
    more = f" and {len(listed) - 6} more" if len(listed) > 6 else ""
    raise ShapeError(
        f"shapes={shapes!r} must be ((m1, n1), (m2, n2)) with m1 m2 = {m} and n1 n2 = {n}, such as "
        f"{', '.join(map(str, listed[:6]))}{more}"
    )


def candidates(shape: Sequence[int], rank: Rank | None) -> list[Pair]:
    """The pairs worth an estimate for a weight of this shape, the cheapest terms first.

    Raises ShapeError where there is none but trivial ones, RankError where none has so many terms.
    """
    m, n, *kernel = shape
    taps = math.prod(kernel)
    pairs = proper_pairs(m, n)
    if not pairs:
        wider = tuple(-(-side // 8) * 8 for side in (m, n))
        raise ShapeError(
            f"a weight with {m} x {n} channels is no Kronecker product but a trivial one, since "
            "neither of its sides has divisors to share out; use svd, which serves every shape, or "
            f"pad the layer, to {wider[0]} x {wider[1]} for example"
        )
    pairs.sort(key=lambda pair: sum(sides(pair, taps)))
    counted = not isinstance(rank, (float, str)) and rank is not None
    if counted:
        most = max(min(sides(pair, taps)) for pair in pairs)
        pairs = [pair for pair in pairs if terms(rank, pair, taps, strict=False) is not None]
        if not pairs:
            raise RankError(
                f"rank={rank!r} is above {most}, the most terms that any pair has; "
                f"use at most {most}"
            )
    cheapest = sum(sides(pairs[0], taps))
    within = (LIKE if counted else LOPSIDED) * cheapest
    if isinstance(rank, float):
        within = min(within, max(cheapest, rank * math.prod(shape)))
    return [pair for pair in pairs if sum(sides(pair, taps)) <= within]


def terms(rank: Rank | None, pair: Pair, taps: int, *, strict: bool = True) -> int | None:
    """The number of terms that `rank` is for a pair; None where it is more than there are.

    Raises RankError instead where `strict`, and for what is no rank.
    """
    if rank is None:
        return None
    p, q = sides(pair, taps)
    index = getattr(rank, "__index__", None)
    if index is not None and index() > min(p, q):
        if strict:
            raise RankError(
                f"rank={rank} is above {min(p, q)}, the terms that make up any weight with "
                f"shapes={pair}; use at most {min(p, q)}"
            )
        return None
    return matrix_rank(rank, p, q)


def sides(pair: Pair, taps: int) -> tuple[int, int]:
    """The rows and columns of the rearranged matrix; together, the parameters of a term."""
    return math.prod(pair[0]), math.prod(pair[1]) * taps


def rearranged(tensor: Tensor, pair: Pair, batch_dims: int = 0) -> Tensor:
    """A weight (*batch, m, n, *kernel) as (*batch, m1 n1, m2 n2 taps)."""
    (m1, n1), (m2, n2) = pair
    batch = tensor.shape[:batch_dims]
    split = tensor.reshape(*batch, m1, m2, n1, n2, -1).transpose(batch_dims + 1, batch_dims + 2)
    return split.reshape(*batch, m1 * n1, -1)


def shortlist(
    weights: Tensor, rank: Rank | None, error: float, generator: torch.Generator
) -> list[Pair]:
    """The pairs to decompose in full: the `TRIED` that promise most, the cheapest among them.

    `weights` (b, m, n, taps), of which all places get one pair. For a rank, by the energy that it
    leaves out; for an error, by the parameters that it takes.
    """
    _, m, n, taps = weights.shape
    pairs = candidates((m, n, taps), rank)
    if len(pairs) <= TRIED:
        return pairs
    some = weights[:: -(-weights.shape[0] // 4)]
    promise = [estimate(some, pair, rank, error, generator) for pair in pairs]
    order = sorted(range(len(pairs)), key=promise.__getitem__)
    return [pairs[k] for k in dict.fromkeys([*order[: TRIED - 1], 0, *order])][:TRIED]


def estimate(
    weights: Tensor, pair: Pair, rank: Rank | None, error: float, generator: torch.Generator
) -> float:
    """A guess of the share of the energy that `rank` leaves out, or of the parameters for `error`.

    From some rows and columns of the rearranged matrix, drawn at random, with the number of terms
    reduced as the rows are; exact where the matrix is no larger than `SAMPLE`.
    """
    _, m, n, taps = weights.shape
    p, q = sides(pair, taps)
    (_, n1), (_, n2) = pair
    rows, columns = SAMPLE if p <= q else SAMPLE[::-1]
    left, right = _drawn(p, rows, generator), _drawn(q, columns, generator)
    i1, j1 = left // n1, left % n1
    i2, j2, tap = right // (n2 * taps), right // taps % n2, right % taps
    index = (i1 * (m // pair[0][0]) * n + j1 * n2)[:, None] + (i2 * n + j2)  # of (m, n)
    sample = weights.reshape(weights.shape[0], -1)[:, index * taps + tap]  # (b, rows, columns)
    short = sample if p <= q else sample.mT
    values: Tensor = torch.linalg.eigvalsh(short @ short.mT)  # (b, rows), ascending
    energies = values.clamp(min=0).flip(-1).to(torch.float64).sum(0)
    total = float(energies.sum())
    reduced = energies.numel() / min(p, q)
    if rank is None:
        fewest = keep_within(error**2 * total)(energies)
        return math.ceil(fewest / reduced) * (p + q)
    s = terms(rank, pair, taps) or 1
    kept = min(energies.numel(), max(min(s, 4), round(s * reduced)))
    lost = float(energies[kept:].sum())
    return lost / total if total > 0 else 0.0


def divisors(n: int) -> list[int]:
    """The divisors of n, ascending."""
    low = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return low + [n // d for d in reversed(low) if d * d != n]


def is_composite(n: int) -> bool:
    """Whether n has divisors beside one and itself.

    By strong probable primes to the first 13 prime bases, of which none below 3.3e24 is composite
    (Sorenson & Webster 2017).
    """
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if n < 4 or n in bases:
        return False
    if any(n % p == 0 for p in bases):
        return True
    halvings = (n - 1 & 1 - n).bit_length() - 1
    odd = n - 1 >> halvings
    return not all(
        pow(p, odd, n) == 1 or n - 1 in (pow(p, odd << k, n) for k in range(halvings))
        for p in bases
    )


def _drawn(n: int, most: int, generator: torch.Generator) -> Tensor:
    """Up to `most` numbers below n, all of them if that is enough."""
    device = generator.device
    if n <= most:
        return torch.arange(n, device=device)
    return torch.randint(n, (most,), generator=generator, device=device).sort()[0]


def _spread(pair: Pair) -> int:
    return math.prod(pair[0]) + math.prod(pair[1])


def _trivial(pair: Pair) -> bool:
    """Whether a factor is 1 x 1, or one is a column and the other a row."""
    (m1, n1), (m2, n2) = pair
    return m1 == n1 == 1 or m2 == n2 == 1 or m1 == n2 == 1 or n1 == m2 == 1
