"""Stages, each of which is fitted to what those before it leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_callback, check_moments
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg.parts._alternate import Callback, by_turns, served
from tensorlrf.decomposition.methods import factors_of, find, method, registered
from tensorlrf.decomposition.rank import Rank, as_share, check_rank_or_error, ints, matrix_rank
from tensorlrf.errors import ArgumentError, RankError
from tensorlrf.factors import Composite, Factors, Quantized
from tensorlrf.factors.leaves.codes import CODES

STAGES = ("svd", "svd")

State = tuple[Factors, ...]


@method(
    "staged",
    gives=Composite,
    on={"tensor", "linear"},
    law="plain stages equal one SVD of the summed rank",
    measured="staged",
)
def fit_staged(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    stages: Sequence[str] = STAGES,
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int = 1,
    tol: float | None = None,
    callback: Callback | None = None,
) -> Fit[Composite]:
    """A sum of stages, each of which is fitted to what those before it leave ("SVDLoRA").

    Stages of the plain SVD alone EQUAL one SVD of the summed rank, since the best matrix of rank s
    for what one of rank r leaves has the next s singular vectors: they gain nothing. Stages pay
    where they differ: in few bits, where a later one makes good what an earlier one lost in
    rounding, or of formats that see different things.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n)
    rank : int, float, tuple or str, optional
        An int, the sum of the ranks of all stages, shared out evenly; a share of the parameters in
        (0, 1], shared out likewise, or "same"; or a rank for each stage, as it takes it. No stage
        is below its smallest. Or instead
    error : float, optional
        The smallest sum of ranks whose relative error is at most this.
    stages : sequence of str
        The word of a method for each, such as "svd", "kron" or "monarch"; behind it a colon and
        codes, as in "svd:int8", where its factors are to be in few bits.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs of the layer, for all stages that take them: errors
        are then relative errors of the outputs.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int
        How often all stages are gone through: beyond once each is fitted to what all others leave.
    tol : float, optional
        Stops when going through them lowers the error by no more than this share of it; by default
        when more would gain little.
    callback : callable, optional
        Called as callback(factors, error) after each time beyond the first; returning True ends it,
        and the best so far is the result. Without `gram`.

    Returns
    -------
    Composite
        A part for each stage. Of `fit_staged` a `Fit` with the relative errors: after each stage of
        the first time, and after each further time.

    Raises
    ------
    RankError
        For a rank that cannot be, or another number of ranks than of stages.
    ArgumentError
        For no stages, and for words and codes that there are not.

    References
    ----------
    Eckart & Young 1936, for the identity.

    Examples
    --------
    >>> w = torch.rand(32, 24)
    >>> staged, one = tensorlrf.staged(w, 9, stages=("svd",) * 3), tensorlrf.svd(w, 9)
    >>> abs(staged.rel_error(w) - one.rel_error(w)) < 1e-5
    True
    >>> coded = tensorlrf.staged(w, 9, stages=("svd:int4",) * 3)
    >>> coded.rel_error(w) < tensorlrf.Quantized.encode(one, "int4").rel_error(w)
    True
    """
    checked = as_tensor(tensor)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean)
    check_callback(callback, gram)
    target: Target[Composite] = Target.of(checked, gram, mean)
    words = _words(stages)
    given = None if rank is None else _ranks(rank, len(words), target.shape)
    wide = checked.detach().to(target.work.dtype)
    data = {"gram": gram, "mean": mean}

    def fit(at: Target[Composite], ranks: Sequence[Any], watch: Callback | None) -> Fit[Composite]:
        ways = [_Way.of(word, {} if at.is_plain else data) for word in words]
        parts: list[Factors] = []
        errors: list[float] = []
        rest = wide
        for way, r in zip(ways, ranks, strict=True):
            parts.append(way.fit(rest, r, checked.dtype))
            rest = rest - parts[-1].to(wide.dtype).to_dense()
            errors.append(_error(at, rest))

        def sweep(state: State) -> tuple[State, float]:
            renewed = list(state)
            for k, (way, r) in enumerate(zip(ways, ranks, strict=True)):
                others = _dense(renewed[:k] + renewed[k + 1 :], wide)
                renewed[k] = way.fit(wide - others, r, checked.dtype)
            return tuple(renewed), _error(at, wide - _dense(renewed, wide))

        if n_iter_max == 1:
            return Fit(Composite(tuple(parts)), tuple(errors), True, "once through all")
        start = tuple(parts), errors[-1]
        run = by_turns([start], sweep, Composite, tol, n_iter_max - 1, watch)
        return replace(run, errors=(*errors, *run.errors[1:]))

    def cut(ranks: Sequence[Any]) -> Fit[Composite]:
        found = served(target, lambda at, watch: fit(at, ranks, watch), callback)
        return replace(found, reason=f"{len(words)} stages, {found.reason}")

    if given is not None:
        return cut(given)
    count, limit = len(words), min(target.shape)
    return search(lambda r: cut(_evenly(max(r, count), count)), None, error, limit, target.dtype)


staged = factors_of(fit_staged)


class _Way:
    """How a stage is fitted to what is left.

    fit  from a matrix, a rank and a dtype to factors in that dtype
    """

    def __init__(self, call: Callable[..., Factors], codes: str | None) -> None:
        self.call, self.codes = call, codes

    @classmethod
    def of(cls, word: str, data: dict[str, Any]) -> _Way:
        name, colon, codes = word.partition(":")
        found = find(name, "tensor", argument="stages")
        if "composite" in {f.format for f in found.gives}:
            raise ArgumentError(
                f"stages has {word!r}, which gives a sum itself; name its parts as stages"
            )
        if colon and (codes not in CODES or Quantized in found.gives):
            raise ArgumentError(
                f"stages has {word!r}; behind the colon of a method in floating point stand codes, "
                f"{', '.join(CODES)}"
            )
        taken = {key: value for key, value in data.items() if found.takes(key)}
        seed = {"random_state": 0} if found.draws else {}

        def call(matrix: Tensor, rank: Any) -> Factors:
            how = {}
            if name == "svd" and not taken:
                # What is left has a flat spectrum, of which a sketch loses a little in each stage:
                # and then they would not equal one SVD.
                how["solver"] = "exact" if matrix.dtype == torch.float64 else "eigh"
            return registered(name).function(matrix, rank, **taken, **seed, **how)

        return cls(call, codes or None)

    def fit(self, matrix: Tensor, rank: Any, dtype: torch.dtype) -> Factors:
        made = self.call(matrix, rank).to(dtype)
        return made if self.codes is None else Quantized.encode(made, self.codes)


def _words(stages: Any) -> tuple[str, ...]:
    if isinstance(stages, str) or not isinstance(stages, Sequence) or not stages:
        raise ArgumentError(
            f"stages={stages!r} must be a tuple with the word of a method for each stage, such as "
            f"{STAGES}"
        )
    return tuple(map(str, stages))


def _ranks(rank: Any, count: int, shape: tuple[int, int]) -> list[Any]:
    """Of each stage."""
    if isinstance(rank, (tuple, list)):
        ints([r for r in rank if not isinstance(r, float)])
        if len(rank) != count:
            raise RankError(
                f"rank={tuple(rank)} has {len(rank)} entries for {count} stages; give one each"
            )
        return list(rank)
    share = as_share(rank)
    if share is not None:
        return [share / count] * count
    r = matrix_rank(rank, *shape)
    if r < count:
        raise RankError(f"rank={r} is below the number of stages, {count}, of rank one each")
    return _evenly(r, count)


def _evenly(r: int, count: int) -> list[Any]:
    """So many ranks that add up to r, the larger ones first."""
    return [(r + k) // count for k in reversed(range(count))]


def _dense(parts: Sequence[Factors], like: Tensor) -> Tensor:
    """Their sum, in the dtype and shape of a tensor."""
    whole = torch.zeros_like(like)
    for part in parts:
        whole = whole + part.to(like.dtype).to_dense()
    return whole


def _error(target: Target[Composite], rest: Tensor) -> float:
    """Of what is left of the weight."""
    return target.rel_error(rest.to(torch.float64).reshape(target.shape) / target.scale)
