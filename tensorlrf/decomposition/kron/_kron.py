"""A weight as a sum of Kronecker products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration, finished
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor_and_largest
from tensorlrf.decomposition._options import check_moments, is_pair
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.kron._problem import (
    BatchedProblem,
    KroneckerProblem,
    best_of,
    normalised,
)
from tensorlrf.decomposition.kron._shapes import (
    Pair,
    candidates,
    check_shapes,
    has_proper_pairs,
    proper_pairs,
    rearranged,
    shortlist,
    sides,
    terms,
)
from tensorlrf.decomposition.kron._solve import Cutter
from tensorlrf.decomposition.linalg._batched import check_batch_dims, check_batched_svd
from tensorlrf.decomposition.linalg._rangefinder import check_sketch, check_sketches, read_by
from tensorlrf.decomposition.linalg._truncation import POWER_STEPS, SEED, SOLVERS, SVDSolver
from tensorlrf.decomposition.methods import Unfolded, factors_of, method, truncates
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.factors import Batch, KroneckerSum

SWEEPS = 200
"""In the metric of the inputs, at most."""


@method(
    "kron",
    gives=KroneckerSum,
    on={"tensor", "linear", "conv"},
    order=(6, 4),
    sweeps_in_metric=True,
    law="what it leaves is the discarded singular energy of the rearranged matrix",
    measured="kron",
)
def fit_kron(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    shapes: Any = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    batch_dims: int = 0,
    measure: bool = True,
) -> Fit[KroneckerSum] | Fit[Batch]:
    """The nearest sum of s Kronecker products, or the one with near outputs.

    For a `tensor` (m, n), or a conv kernel `(m, n, *k) = (O, I, *k)`, the result has a (s, m1, n1)
    and b `(s, m2, n2, *k)` with m1 m2 = m and n1 n2 = n. Rearranged to (m1 n1, m2 n2 prod k) a term
    is an outer product, so the nearest sum is the truncated SVD of the rearrangement; the root of
    each singular value goes to either side.

    Parameters
    ----------
    tensor : Tensor or array of shape (m, n, ...)
    rank : int, float or str, optional
        The number of terms s, up to min(m1 n1, m2 n2 prod k); a share of the parameters in (0, 1]
        (an upper bound, down to one term); or "same"; or instead
    error : float, optional
        The fewest terms whose relative error is at most this.
    shapes : ((m1, n1), (m2, n2)), optional
        Where they are not given the pairs are ranked by an estimate from a sample of the weight,
        some (four) are decomposed in full, and the one with the least error is taken, or for
        `error` the one with the fewest parameters: the best of those that were tried (with `gram`
        after two sweeps each), the pair with the cheapest terms among them. Not tried are pairs
        that are a plain low-rank matrix or a multiple of the weight (see `svd`), and terms of over
        four times (where `rank` is a number of terms: 1.25 times) the parameters of the cheapest
        pair.
    solver : str
        Of the SVD of the rearrangement, as for `svd`; "auto" looks for an `error` at few terms
        first where that has over 1024 rows and columns.
    gram : Tensor or array of shape (n prod k, n prod k), optional
        Second moments X X^T / N of the inputs of the layer (for a conv as
        `torch.nn.functional.unfold` orders them). Then alternating least squares from the plain
        solution lowers the error of the outputs, which is also what `error` asks for; what the
        inputs do not span follows the plain solution (`Fit.shrinkage`), than which the result is
        never worse in that metric.
    mean : Tensor or array of shape (n prod k,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    n_iter_max : int, optional
        Most sweeps with `gram`, 200 by default.
    tol : float, optional
        With `gram` they stop when one lowers the error by no more than this share of it; by default
        when more of them would gain little.
    n_power_iter, n_oversample : int
        Of the randomised way: refused with another solver, and unread in a config of one.
    random_state : int or Generator, optional
        Of the ways with random vectors and of the estimates for `shapes`; "auto" repeats where none
        is given.
    batch_dims : int
        This many leading dimensions of `tensor` count equal weights that are decomposed at once,
        with one pair of shapes and one number of terms for all (for `error` the fewest that serve
        each of them). By "exact" or "eigh", and without `gram`.

    Returns
    -------
    KroneckerSum
        With `batch_dims` a Batch of it. Of `fit_kron` a `Fit` with the relative errors; with `gram`
        those of the outputs: of the plain solution, after each sweep, and of the result. With
        `batch_dims` the error is that of the whole batch, and `reason` tells the largest.

    Raises
    ------
    RankError
        For a rank below one or above the terms that there are.
    ShapeError
        For `shapes` that do not multiply to the weight's (the message lists those that do) and,
        where none are given, for sides without divisors.
    ArgumentError
        For what cannot be decomposed.

    Warns
    -----
    TensorlrfWarning
        Where rounding to the dtype of `tensor` keeps `error` out of reach.
    ConvergenceWarning
        Where the default number of sweeps leaves over 2% to be gained.

    References
    ----------
    Van Loan & Pitsianis 1993, theorem 2.1.

    Examples
    --------
    >>> w = torch.kron(torch.rand(4, 6), torch.rand(8, 5))
    >>> f = tensorlrf.kron(w, 1, shapes=((4, 6), (8, 5)))
    >>> f.rel_error(w) < 1e-5, f.n_params
    (True, 64)
    """
    # Without `measure`, as `kron` asks, the error is computed only where something is decided by
    # it, else NaN.
    tensor, largest = as_tensor_and_largest(tensor)
    tensor = tensor.detach()
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    check_iteration(n_iter_max, tol)
    check_sketch(n_power_iter, n_oversample)
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    check_sketches(solver, n_power_iter, n_oversample, POWER_STEPS)
    if solver in ("krylov", "randomized") and rank is None:
        raise ArgumentError(
            f"solver={solver!r} needs rank=, a sketch does not see the energy that it leaves "
            "out; for error= use solver='auto'"
        )
    check_moments(gram, mean, n_iter_max=n_iter_max, tol=tol)
    check_batch_dims(batch_dims, tensor.ndim)
    if batch_dims:
        check_batched_svd(rank, solver, gram)
    batch = tuple(tensor.shape[:batch_dims])
    stack = tensor.reshape(math.prod(batch), *tensor.shape[batch_dims:])  # (b, m, n, *k)
    if random_state is None and solver == "auto":
        random_state = SEED
    draws = generator(random_state, tensor.device)
    # Weights of a batch have no moments, and their own kind of problem.
    target: Target[KroneckerSum] = Target.of(tensor, gram, mean)
    if shapes is not None:
        pairs = [check_shapes(shapes, *stack.shape[1:3])]
    else:
        pairs = shortlist(normalised(stack, target.marginals[1]), rank, error or 0.0, draws)

    if batch_dims:
        many = BatchedProblem(stack, batch, solver)
        if shapes is not None:
            return many.solve(pairs[0], rank, error)
        return best_of(lambda pair: many.solve(pair, rank, error), pairs, error, tensor.dtype)
    decides = measure or error is not None or shapes is None or not target.is_plain
    cutter = Cutter(SVDSolver(solver, n_power_iter, n_oversample, draws), largest, decides)
    sweeps = SWEEPS if n_iter_max is None else n_iter_max
    one = KroneckerProblem(tensor, cutter, target, sweeps, tol)

    def solve(pair: Pair) -> Fit[KroneckerSum]:
        fit = one.solve(pair, rank, error)
        return fit if target.is_plain else finished(fit, n_iter_max)

    if shapes is not None:
        return solve(pairs[0])
    if target.is_plain:
        return best_of(solve, pairs, error, tensor.dtype)
    short = one.shorter()
    return best_of(
        lambda pair: short.solve(pair, rank, error), pairs, error, tensor.dtype, target.loss, solve
    )


kron = factors_of(fit_kron)


@config("kron")
class Kron(Structured):
    """A sum of Kronecker products, as a method of `compress`.

    Parameters
    ----------
    shapes : ((m1, n1), (m2, n2)), optional
        Searched for each layer, by its error at the share, where they are not given.

    Examples
    --------
    >>> tensorlrf.Kron(shapes=[[2, 4], [8, 8]]).shapes
    ((2, 4), (8, 8))
    """

    shapes: tuple[tuple[int, int], tuple[int, int]] | None
    solver: str
    n_power_iter: int
    n_oversample: int

    def check_options(self) -> None:
        super().check_options()
        pairs: Any = self.shapes
        if pairs is not None and not (
            isinstance(pairs, tuple) and len(pairs) == 2 and all(map(is_pair, pairs))
        ):
            raise ArgumentError(
                f"shapes={pairs!r} must be ((m1, n1), (m2, n2)), such as ((64, 64), (64, 64))"
            )
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        check_sketch(self.n_power_iter, self.n_oversample)

    def _read_options(self) -> dict[str, Any]:
        return read_by(self.solver, self.options())

    @property
    def takes_any_form(self) -> bool:
        return True

    @staticmethod
    def sizes_of(factors: Any) -> dict[str, Any]:
        return {"shapes": (tuple(factors.a.shape[1:3]), tuple(factors.b.shape[1:3]))}

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        m, n = shape[0] // groups, shape[1]
        if self.shapes is None and not has_proper_pairs(m, n):
            return f"{m} x {n} channels have no divisors to share out to two factors"
        if self.shapes is not None:
            (m1, n1), (m2, n2) = self.shapes
            if (m1 * m2, n1 * n2) != (m, n):
                return f"shapes={self.shapes} make a weight {m1 * m2} x {n1 * n2}, not {m} x {n}"
        return super().why_not(shape, groups)

    def least_params(self, shape: tuple[int, ...]) -> int:
        pairs = proper_pairs(*shape[:2]) if self.shapes is None else [self.shapes]
        return min(sum(sides(pair, math.prod(shape[2:]))) for pair in pairs)

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> KroneckerSum:
        m, n, *kernel = shape
        given = self.shapes
        pair = candidates(shape, rank)[0] if given is None else check_shapes(given, m, n)
        s = terms(rank, pair, math.prod(kernel)) or 1
        return KroneckerSum(values(s, *pair[0]), values(s, *pair[1], *kernel), shape)


@truncates("kron")
def _unfoldings(tensor: Tensor, *, shapes: Any) -> Unfolded:
    pair = check_shapes(shapes, int(tensor.shape[0]), int(tensor.shape[1]))
    (m1, n1), (m2, n2) = pair
    yield f"{m1}x{n1} kron {m2}x{n2}", [(rearranged(tensor, pair), 0)]
