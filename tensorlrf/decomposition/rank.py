"""From what a user calls a rank to whole numbers.

A rank is an int; a tuple where the format has several; a float in (0, 1], the share of the dense
parameters that the factors may have (an upper bound, down to rank one); or "same", the share 1.
Some decompositions take "auto" too, an analytic estimate from the tensor (see `_evbmf`), and
resolve it before they come here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.methods import names, registered
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors.arrays import as_dense

LARGEST = 2**63 - 1
"""No tensor has a size above."""

MOST_TERMS = 1 << 16
"""Of a CP model, whose least-squares systems then take 32 GiB each."""

FEW_TERMS = 64
"""Of a CP model, which may be more than the tensor has entries."""

Rank = int | float | Literal["same", "auto"] | Sequence[int]


def check_rank_or_error(
    rank: Rank | None, error: float | None, dtype: torch.dtype | None = None
) -> tuple[Rank | None, float | None]:
    """The arguments `rank` and `error` as plain numbers: exactly one is given.

    Parameters
    ----------
    rank : int, tuple, float or str, optional
    error : float, optional
        In [0, 1). Nor is it below the rounding of the dtype in which a tensor of `dtype` is
        decomposed: there all of the tensor would be kept, its rounding errors too. 0 says that this
        is what is meant.
    dtype : dtype, optional
        Of the tensor.

    Returns
    -------
    tuple
        (rank, error), one of them None.

    Raises
    ------
    ArgumentError
        Where both or neither are given, and for an error that cannot be.

    Examples
    --------
    >>> from tensorlrf.decomposition.rank import check_rank_or_error
    >>> check_rank_or_error(None, 0.1)
    (None, 0.1)
    """
    rank, error = plain(rank, "rank"), plain(error, "error")
    for count in rank if isinstance(rank, (list, tuple)) else (rank,):
        if isinstance(count, int) and abs(count) > LARGEST:
            power = f"2^{abs(count).bit_length() - 1}"
            size = f"{power} or more" if count > 0 else f"-{power} or less"
            several = "" if count is rank else "a sequence with "
            raise RankError(
                f"rank={several}{size} is beyond 2^63, where sizes of tensors end; use a count "
                "that fits the tensor"
            )
    if (rank is None) == (error is None):
        given = "neither" if rank is None else f"rank={rank!r} and error={error!r}"
        raise ArgumentError(f"give rank or error, one of the two; got {given}")
    if error is None:
        return rank, None
    if isinstance(error, bool) or not isinstance(error, (int, float)) or not 0 <= error < 1:
        raise ArgumentError(
            f"error={error!r} must be a relative error in [0, 1), such as 0.05 for five per cent"
        )
    if dtype is None or error == 0:
        return None, error
    work = working_dtype(dtype)
    rounding = torch.finfo(work).eps
    if error < rounding:
        wider = "" if work == torch.float64 else ", pass a float64 tensor"
        raise ArgumentError(
            f"error={error!r} is below {rounding:.2g}, the rounding of {str(work)[6:]}; ask for "
            f"{rounding:.2g} or more{wider}, or for error=0 to keep all that rounding leaves"
        )
    return None, error


def plain(value: Any, name: str) -> Any:
    """A tensor or an array of one number or a few as Python has them; all else as it is.

    Raises ArgumentError for more than one axis, or where there is no value.
    """
    if not isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value
    if isinstance(value, Tensor):
        value = as_dense(value, name)
    if value.ndim > 1:
        raise ArgumentError(
            f"{name} is a {type(value).__name__} of shape {tuple(value.shape)}; pass a number, or "
            "a tuple where the format has several"
        )
    found = value.tolist()
    return tuple(found) if isinstance(found, list) else found


def matrix_rank(rank: Rank, m: int, n: int) -> int:
    """The rank of an (m, n) matrix.

    Parameters
    ----------
    rank : int, float or str
        An int; a share, which counts r (m + n) parameters against m n; or "same".
    m, n : int

    Returns
    -------
    int

    Raises
    ------
    RankError
        For a rank below one or above min(m, n), and for what is none.

    Examples
    --------
    >>> from tensorlrf.decomposition.rank import matrix_rank
    >>> matrix_rank(0.5, 64, 64), matrix_rank(7, 64, 64)
    (16, 7)
    """
    share = _share(rank)
    if share is not None:
        return max(1, min(m, n, whole(share * m * n / (m + n))))
    r = _one_int(rank)
    if r > min(m, n):
        raise RankError(
            f"rank={r} is above min(m, n) = {min(m, n)} of the {m} x {n} matrix; "
            f"use at most {min(m, n)}"
        )
    return r


def rank_of_size(rank: Rank, m: int, n: int, dense: int, size_at: Callable[[int], int]) -> int:
    """The rank of an (m, n) matrix whose share counts what is stored, in bytes or numbers.

    Parameters
    ----------
    rank : int, float or str
        An int; a share of the weight; or "same".
    m, n : int
    dense : int
        Of the weight, likewise counted.
    size_at : Callable
        From a rank to what is stored, rising with it.

    Returns
    -------
    int

    Raises
    ------
    RankError
        For a rank below one or above min(m, n), and for what is none.
    """
    share = _share(rank)
    if share is None:
        return matrix_rank(rank, m, n)
    most = min(m, n)
    within = bisect_right(range(1, most + 1), share * dense * (1 + 1e-12), key=size_at)
    return max(1, within)


def beside(rank: Rank, m: int, n: int, numbers: int, what: str) -> int:
    """The rank of an (m, n) matrix beside a part that has so many numbers.

    Parameters
    ----------
    rank : int, float or str
        An int; a share of m n parameters that both have together; or "same".
    m, n : int
    numbers : int
        Of the other part.
    what : str
        That part, in words.

    Returns
    -------
    int

    Raises
    ------
    RankError
        For a rank below one or above min(m, n), for what is none, and for a share that leaves
        nothing for a rank.
    """
    share = _share(rank)
    if share is None:
        return matrix_rank(rank, m, n)
    r = whole((share * m * n - numbers) / (m + n))
    if r < 1:
        least = (numbers + m + n) / (m * n)
        raise RankError(
            f"rank={rank!r} is a share below that of {what} and rank one, {least:.3g} of the "
            "parameters; give more, or a sparser part"
        )
    return min(r, m, n)


def cp_rank(rank: Rank, shape: Sequence[int]) -> int:
    """The number of rank-one terms; a share counts r (sum n_k + 1) against prod n_k.

    A CP rank may exceed every dimension (Kruskal 1989). What is refused is more terms than the
    tensor has entries, but for a few, and more than there is room for.
    """
    share = _share(rank)
    if share is not None:
        return max(1, whole(share * math.prod(shape) / (sum(shape) + 1)))
    r, entries = _one_int(rank), math.prod(shape)
    exact = entries // max(shape)
    if r > max(FEW_TERMS, entries):
        raise RankError(
            f"rank={r} is above {entries}, the entries of the tensor, each of which is a term of "
            f"rank one; use at most {exact}, at which a model is exact"
        )
    if r > MOST_TERMS:
        raise RankError(
            f"rank={r} makes least-squares systems of {r} x {r}, {8 * r * r / 2**30:,.0f} GiB "
            f"each; use at most {min(exact, MOST_TERMS)}"
        )
    return r


def tucker_ranks(rank: Rank, shape: Sequence[int], modes: Sequence[int]) -> tuple[int, ...]:
    """One rank for each of `modes`; a share shrinks all modes by one common fraction."""
    sizes = [shape[k] for k in modes]
    share = _share(rank)
    if share is not None:
        return _tucker_share(share, shape, modes)
    if isinstance(rank, Sequence) and not isinstance(rank, str):
        ranks = ints(rank)
        if len(ranks) != len(sizes):
            raise RankError(
                f"rank={tuple(rank)} has {len(ranks)} entries for {len(sizes)} factored modes "
                f"{tuple(modes)}; give one a mode"
            )
    else:
        ranks = (_one_int(rank),) * len(sizes)
    for r, k, n in zip(ranks, modes, sizes, strict=True):
        if r > n:
            raise RankError(
                f"rank={rank!r} asks for rank {r} along mode {k}, which has size {n}; "
                f"use at most {n} there"
            )
    return ranks


def whole(count: float) -> int:
    """Down to a whole number, but for the rounding of one that is meant to be whole."""
    return math.floor(count * (1 + 1e-12))


def tucker_params(shape: Sequence[int], modes: Sequence[int], ranks: Sequence[int]) -> int:
    """Parameters of a (partial) Tucker format: the core and one matrix for each of `modes`."""
    core = list(shape)
    for k, r in zip(modes, ranks, strict=True):
        core[k] = r
    return math.prod(core) + sum(shape[k] * r for k, r in zip(modes, ranks, strict=True))


def tucker_fractions(shape: Sequence[int], modes: Sequence[int]) -> list[float]:
    """The fractions of the sizes of `modes` at which the ranks of all of them change, ascending."""
    return sorted({i / shape[k] for k in modes for i in range(1, shape[k] + 1)})


def ranks_at(fraction: float, shape: Sequence[int], modes: Sequence[int]) -> tuple[int, ...]:
    """Ranks of `modes` that are one fraction of their sizes, one at least."""
    # The nudge keeps floor(i / n * n) from falling to i - 1.
    return tuple(max(1, math.floor(fraction * (1 + 1e-12) * shape[k])) for k in modes)


def _tucker_share(share: float, shape: Sequence[int], modes: Sequence[int]) -> tuple[int, ...]:
    budget, fractions = share * math.prod(shape), [0.0, *tucker_fractions(shape, modes)]

    def params(fraction: float) -> int:
        return tucker_params(shape, modes, ranks_at(fraction, shape, modes))

    within = bisect_right(fractions, budget, key=params)
    return ranks_at(fractions[max(0, within - 1)], shape, modes)


def as_share(rank: Rank) -> float | None:
    """The share that a rank stands for, or None where it is a count.

    Parameters
    ----------
    rank : int, float or str

    Returns
    -------
    float or None

    Raises
    ------
    RankError
        For a share outside (0, 1], and a word that is none.
    """
    return _share(rank)


def _share(rank: Rank) -> float | None:
    """The share that `rank` stands for, or None where it is a count."""
    if isinstance(rank, str):
        if rank == "same":
            return 1.0
        if rank == "auto":
            *first, last = (name for name in names() if registered(name).estimates)
            raise RankError(
                f"rank='auto', the analytic estimate, is not known here: {', '.join(first)} and "
                f"{last} take it, of one tensor at a time; use an int, a share in (0, 1] or 'same'"
            )
        raise RankError(
            f"rank={rank!r} is unknown; use an int, a tuple, a share in (0, 1] or 'same'"
        )
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise RankError(
                f"rank={rank!r} is a float, so a share of the parameters, which lies in (0, 1]; "
                "for a count pass an int"
            )
        return rank
    return None


def as_tuple_of_ints(rank: Any) -> int | tuple[int, ...]:
    """One int of at least one, or a tuple of such. Raises RankError for what is none."""
    rank = plain(rank, "rank")
    return ints(tuple(rank)) if isinstance(rank, (tuple, list)) else _one_int(rank)


def ints(rank: Sequence[object]) -> tuple[int, ...]:
    """Several ranks, each at least one."""
    return tuple(_one_int(r, f"rank={tuple(rank)}: entry {k}, {r!r},") for k, r in enumerate(rank))


def _one_int(rank: object, name: str = "") -> int:
    rank = plain(rank, "rank")
    index = getattr(rank, "__index__", None)
    if index is None or isinstance(rank, bool):
        raise RankError(f"{name or f'rank={rank!r}'} must be one int here")
    r = int(index())
    if r < 1:
        raise RankError(f"{name or f'rank={r}'} must be at least 1")
    return r
