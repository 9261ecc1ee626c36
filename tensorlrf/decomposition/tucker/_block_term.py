"""Block term decompositions by alternating least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import (
    check_iteration,
    descend_ahead,
    finished,
    watch_of,
)
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition._options import (
    check_callback,
    check_count,
    check_modes,
    check_moments,
)
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Method, config, for_matrix
from tensorlrf.decomposition.ladder import Ladder, LayerRank, Rung, multiples, rounded
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import (
    Rank,
    _one_int,
    _share,
    check_rank_or_error,
    ints,
    ranks_at,
    tucker_fractions,
)
from tensorlrf.decomposition.tucker._block_term_outputs import fit_to_outputs
from tensorlrf.decomposition.tucker._block_term_sweep import BlockTermProblem, Terms, ahead
from tensorlrf.decomposition.tucker._outputs import check_served
from tensorlrf.errors import ArgumentError, RankError, ShapeError, unknown
from tensorlrf.factors import BlockTerm, Factors

FORMS = ("full", "ll1")

TRIAL = 10
"""Sweeps of each of several starts."""

SWEEPS, TOL = 200, 1e-6
"""By default."""

Callback = Callable[[BlockTerm, float], Any]


@method(
    "block_term",
    gives=BlockTerm,
    on={"tensor": {}, "conv": {"modes": (0, 1)}},
    law="no sweep raises the error; planted blocks are found",
    measured="field_block_terms",
)
def fit_block_term(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    n_terms: int = 2,
    form: str = "full",
    modes: Sequence[int] | None = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_restarts: int = 1,
    gram: Any = None,
    mean: Any = None,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[BlockTerm]:
    """A sum of Tucker tensors of small ranks by alternating least squares (block terms).

    Between CP, whose terms have rank one, and Tucker, which is one term. A sweep solves for the
    factors of all terms along one mode after the other, and then for all cores at once (by
    conjugate gradients where these are many); the loss never rises. A kernel of a convolution with
    modes (0, 1) becomes a chain of three, whose middle one has a group a term.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_0, ..., n_{N-1})
    rank : int, tuple, float or str, optional
        Of each term: an int for every mode, clipped to its size; a tuple (L, M, N), one for each of
        `modes`; a share of the parameters in (0, 1], for which all sizes shrink alike; or "same".
        For "ll1" an int L, or (L,); or instead
    error : float, optional
        Relative error to stay within: ranks that are one fraction of all sizes are tried, doubled
        and then bisected, each by a fit of its own.
    n_terms : int
        Terms.
    form : str
        "full": terms with a core (L, M, N), of any order. "ll1": terms `(A_s B_s^T) o c_s` of a
        tensor of three modes, a matrix of rank L times a vector, which are unique far more often.
    modes : sequence of int, optional
        The modes that get factors, all by default; (0, 1) for the kernel of a convolution. Of
        "full" terms alone.
    n_iter_max : int, optional
        Most sweeps of a start, 200 by default; with `gram`, most rounds, 50 by default.
    tol : float, optional
        Stop when a sweep lowers the relative error by no more than this share of it, 1e-6 by
        default; with `gram`, where more would gain little.
    n_restarts : int
        Random starts, of which the best goes on after some sweeps.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the unfolded inputs of a conv kernel `(O, I, *k)`, n = I prod k;
        `modes` must be (0, 1). Each round fits one term after the other to what the others leave,
        as Tucker-2 is fitted, and then the output factors of all at once; errors are those of the
        outputs. What the inputs do not span follows the plain fit (`Fit.shrinkage`).
    mean : Tensor or array of shape (n,), optional
        Mean input, about which the second moments are taken.
    callback : callable, optional
        Called as callback(factors, error) after each sweep (not with `gram`); returning True stops.
    random_state : int or Generator, optional

    Returns
    -------
    BlockTerm
        Of `fit_block_term` a `Fit` with the relative errors: of the start, after each sweep, and of
        the factors as returned.

    Raises
    ------
    RankError
        For ranks below one, above the size of a mode (a tuple) or of the wrong number.
    ShapeError
        For "ll1" of a tensor that does not have three modes.
    UnsupportedError
        For `gram` with other modes than (0, 1).
    ArgumentError
        For what cannot be decomposed, and options that are none.

    References
    ----------
    De Lathauwer 2008; De Lathauwer & Nion 2008 (alternating least squares); Chen et al. 2018 (as
    convolutions).

    Examples
    --------
    >>> tensor = torch.rand(6, 5, 4)
    >>> f = tensorlrf.block_term(tensor, 2, n_terms=3, form="ll1", random_state=0)
    >>> f.shape, [tuple(t.shape) for t in f.tensors().values()]
    ((6, 5, 4), [(3, 2, 5, 1), (3, 6, 2), (3, 4, 1)])
    """
    tensor = as_tensor(tensor).detach()
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    check_iteration(n_iter_max, tol)
    check_callback(callback, gram)
    check_moments(gram, mean)
    check_count("n_terms", n_terms, 1)
    check_count("n_restarts", n_restarts, 1)
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    shape = tuple(int(n) for n in tensor.shape)
    if form == "ll1" and len(shape) != 3:
        raise ShapeError(
            f"form='ll1' is for three modes, tensor has shape {shape}; use form='full'"
        )
    listed = tuple(sorted(check_modes(modes, len(shape))))
    if form == "ll1":
        if len(listed) != 3:
            raise ArgumentError(f"modes={modes} go with form='full'; 'll1' is of all three modes")
        listed = (0, 2)  # the second factor of a matrix is its core
    if gram is not None:
        check_served(listed, "hooi")
    draws = generator(random_state, tensor.device)
    scale = scale_of(tensor)
    work = tensor.to(torch.float64) / scale

    def plain(ranks: Sequence[int], most: int, least: float) -> Fit[BlockTerm]:
        problem = BlockTermProblem(work, n_terms, listed, ranks)

        def cast(state: Terms) -> BlockTerm:
            return problem.factors(state, scale, tensor.dtype)

        run = descend_ahead(
            (problem.start(draws) for _ in range(n_restarts)),
            problem.sweep,
            least,
            most,
            ahead,
            trial=TRIAL if n_restarts > 1 else 0,
            watch=watch_of(callback, cast),
        )
        factors = cast(run.state)
        loss = factors.to(working_dtype(tensor.dtype)).rel_error(tensor)
        reason = f"{n_terms} terms of ranks {factors.rank}, {run.reason}"
        return Fit(factors, (*run.errors, loss), run.converged, reason)

    def fit(ranks: Sequence[int]) -> Fit[BlockTerm]:
        own = plain(
            ranks, SWEEPS if n_iter_max is None else n_iter_max, TOL if tol is None else tol
        )
        if gram is None:
            return own
        return fit_to_outputs(target, own.factors, shape, n_iter_max, tol)

    target: Target[BlockTerm] = Target.of(tensor, gram, mean)
    if rank is not None:
        found = fit(_ranks(rank, shape, n_terms, form, listed))
    else:
        steps = _steps(shape, form, listed)
        found = search(lambda step: fit(steps[step - 1]), None, error, len(steps), tensor.dtype)
    return found if gram is None else finished(found, n_iter_max)


block_term = factors_of(fit_block_term)


@config("block_term")
class BlockTerms(Method):
    """Block terms of the channels of a convolution, as a method of `compress`.

    The convolution in the middle has as many groups as there are terms. A matrix gets its SVD,
    which no sum of matrices of low rank is better than.

    References
    ----------
    Chen et al. 2018.

    Examples
    --------
    >>> print(tensorlrf.BlockTerms(n_terms=4))
    block_term(n_terms=4)
    """

    of_tensors = ("form",)

    n_terms: int
    n_iter_max: int | None
    tol: float | None
    n_restarts: int

    def check_options(self) -> None:
        check_iteration(self.n_iter_max, self.tol)
        check_count("n_terms", self.n_terms, 1)
        check_count("n_restarts", self.n_restarts, 1)

    def for_shape(self, shape: tuple[int, ...]) -> Method:
        return self if math.prod(shape[2:]) > 1 else for_matrix(self)

    def ladder_of(self, shape: tuple[int, ...]) -> Ladder:
        ranks = sorted({_along(shape, r, k) for k in (0, 1) for r in _upto(shape[k])})
        rungs = [Rung(pair, self.params_at(pair, shape)) for pair in ranks]
        return Ladder.of(math.prod(shape), rungs)

    def params_at(self, rank: LayerRank, shape: tuple[int, ...]) -> int:
        return _params(self._pair(rank, shape), shape, self.n_terms, "full", (0, 1))

    def check_rank(self, rank: LayerRank, shape: tuple[int, ...]) -> None:
        _ranks(rank, shape, self.n_terms, "full", (0, 1))

    def rank_without_gain(self, shape: tuple[int, ...]) -> LayerRank:
        return shape[:2]

    def rank_of(self, factors: Factors) -> LayerRank:
        rank: tuple[int, ...] = tuple(factors.rank)  # type: ignore[arg-type]  # one a mode
        return rank

    def any_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> BlockTerm:
        pair, (O, I, *taps), S = self._pair(rank, shape), shape, self.n_terms
        sides = (values(S, n, r) for n, r in zip((O, I), pair, strict=True))
        return BlockTerm(values(S, *pair, *taps), tuple(sides), (0, 1))

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> BlockTerm:
        return self.any_factors(rank, shape, values)

    def _pair(self, rank: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _ranks(rank, shape, self.n_terms, "full", (0, 1))


def _upto(n: int) -> list[int]:
    """The multiples of 8 up to n, and the numbers below 8."""
    return list(takewhile(lambda r: r <= n, multiples()))


def _along(shape: Sequence[int], r: int, mode: int) -> tuple[int, int]:
    """Ranks of the two channels that are one fraction of both sizes, r of that mode."""
    O, I = (max(1, rounded(r / shape[mode] * n)) for n in shape[:2])
    return O, I


def _ranks(
    rank: Rank, shape: Sequence[int], count: int, form: str, modes: Sequence[int]
) -> tuple[int, ...]:
    """Of each mode that has factors."""
    share = _share(rank)
    if share is not None:
        steps, budget = _steps(shape, form, modes), share * math.prod(shape) * (1 + 1e-12)
        fitting = [r for r in steps if _params(r, shape, count, form, modes) <= budget]
        return fitting[-1] if fitting else steps[0]
    if not isinstance(rank, Sequence) or isinstance(rank, str):
        r = _one_int(rank)
        if form == "ll1":
            return min(r, shape[0], shape[1]), 1
        return _reached([min(r, shape[k]) for k in modes], shape, modes)
    listed = ints(rank)
    wanted = 1 if form == "ll1" else len(modes)
    if len(listed) != wanted:
        raise RankError(
            f"rank={tuple(rank)} has {len(listed)} entries; terms of form {form!r} of a tensor of "
            f"shape {tuple(shape)} have {wanted}"
        )
    limits = (min(shape[:2]),) if form == "ll1" else tuple(shape[k] for k in modes)
    for k, r, n in zip(modes, listed, limits, strict=False):  # of "ll1" one for two modes
        if r > n:
            raise RankError(
                f"rank={tuple(rank)} asks for rank {r} along mode {k}, which allows {n}"
            )
    return (listed[0], 1) if form == "ll1" else listed


def _steps(shape: Sequence[int], form: str, modes: Sequence[int]) -> list[tuple[int, ...]]:
    """Ranks from one on, all of them one fraction of their sizes."""
    if form == "ll1":
        return [(r, 1) for r in range(1, min(shape[:2]) + 1)]
    fractions = tucker_fractions(shape, modes)
    found = (_reached(ranks_at(t, shape, modes), shape, modes) for t in fractions)
    return list(dict.fromkeys(found))


def _reached(ranks: Sequence[int], shape: Sequence[int], modes: Sequence[int]) -> tuple[int, ...]:
    """No rank of a core is above the product of the others."""
    whole = math.prod(n for k, n in enumerate(shape) if k not in modes)
    return tuple(min(r, max(1, whole * math.prod(ranks) // r)) for r in ranks)


def _params(
    ranks: Sequence[int], shape: Sequence[int], count: int, form: str, modes: Sequence[int]
) -> int:
    core = list(shape)
    for k, r in zip(modes, ranks, strict=True):
        core[k] = r
    if form == "ll1":
        return count * (ranks[0] * (shape[0] + shape[1]) + shape[2])
    return count * (math.prod(core) + sum(shape[k] * r for k, r in zip(modes, ranks, strict=True)))
