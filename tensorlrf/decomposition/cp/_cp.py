"""CP decomposition: a tensor as a sum of rank-one tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import mul
from typing import Any, cast

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import finished
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._options import check_callback, check_graph, check_moments
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Method, config, for_matrix
from tensorlrf.decomposition.cp._fit import Outcome
from tensorlrf.decomposition.cp._implicit import implicit_state
from tensorlrf.decomposition.cp._options import SOLVERS, Callback, Options, check_options
from tensorlrf.decomposition.cp._outputs import fit_to_outputs, sides
from tensorlrf.decomposition.cp._problem import Problem, pose
from tensorlrf.decomposition.cp._solve import search_rank, solve
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.cp.observed._completion import fit_observed, pose_observed
from tensorlrf.decomposition.cp.sparse._fit import fit_sparse
from tensorlrf.decomposition.ladder import LayerRank
from tensorlrf.decomposition.linalg.observed._complete import plain_solver
from tensorlrf.decomposition.linalg.observed._observed import observed
from tensorlrf.decomposition.linalg.sparse._input import as_sparse, one_int, refuse_options
from tensorlrf.decomposition.methods import completes, factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, cp_rank
from tensorlrf.errors import ArgumentError, DegenerateWarning, RankError, TensorlrfWarning, warn
from tensorlrf.factors import CPFactors, SparseTensor
from tensorlrf.factors.kinds import is_sparse

SWEEPS, TOL = 100, 1e-5
METRIC_SWEEPS = 100


@method(
    "cp",
    gives=CPFactors,
    on={"tensor", "linear", "conv", "embedding"},
    order=(3, 2),
    law="no sweep raises the error; an exact sum is found to rounding",
    measured="cp",
)
def fit_cp(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    n_iter_max: int | None = None,
    init: Any = "auto",
    tol: float | None = None,
    solver: str = "auto",
    n_samples: int | None = None,
    n_restarts: int = 1,
    fixed_modes: Sequence[int] = (),
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
) -> Fit[CPFactors]:
    """A sum of rank-one tensors of any order from two up (CP).

    Minimises `‖tensor - sum_j w_j a_j o b_j o ...‖` in the Frobenius norm. Columns of free modes
    have unit length and components come with falling weights (float16 factors share weights that
    would overflow). With fixed modes the columns keep their order.

    Parameters
    ----------
    tensor : Tensor, array or sparse tensor of shape (n_1, ..., n_N), N >= 2
        Of any float dtype; computed in float32 at least, the result has its dtype and device. Of a
        sparse one (a `SparseTensor`, or one of torch or scipy) the nonzeros alone are seen, and
        the factors have rows of zeros where it has none; an int `rank` is needed, and of the
        options below `error`, `solver`, `n_samples`, `gram` and `differentiable` are not served.
        Its errors come from norms and inner products in float64: below 1e-7 they are rounding.
    rank : int, float or str, optional
        An int (it may exceed every n_k, though above 64 not the entries of the tensor), a float
        share of the parameters, or "same"; or instead
    error : float, optional
        Search for a small rank with at most this relative error. It doubles the rank, then bisects;
        each trial goes on from the last one. The rank found meets the error; CP has no procedure
        that proves it the smallest.
    n_iter_max : int, optional
        Sweeps over all modes, in total for each start, 100 by default; a Gauss-Newton step counts
        for two. With `gram`, sweeps in its metric, 100 by default.
    init : str, CPFactors or tuple
        "random", "svd" (leading singular vectors of the unfoldings; random columns where the rank
        exceeds n_k), "auto" (for Gauss-Newton steps an SVD start and a random one, of which the
        better after a few of both goes on; else random), or the start itself as CPFactors or
        (weights, factors), whose scale is of no consequence: it is fitted first. A matrix starts at
        its truncated SVD, which is optimal.
    tol : float, optional
        Stop when the true relative error falls by less than this share of itself a sweep, 1e-5 by
        default; judged every ten sweeps. A step of Gauss-Newton must gain ten times that, judged
        every five. 0 makes all sweeps, and looks at the error only at the end unless there is a
        callback. With `gram` judged after every sweep, by default when more would gain little.
    solver : str
        "als": alternating least squares with a dimension tree and an annealed proximal ridge.
        "gauss-newton": damped steps in all factors at once on the tensor compressed to its leading
        directions, then sweeps on the tensor where that left something out. It passes the swamps of
        "als", and a ridge that falls with the error keeps terms from growing and cancelling.
        "auto": that where steps are cheap (at most 512 unknowns, as rank 14 of 200 x 200 x 200) and
        the start is not given, else "als".
        "cprand": randomised least squares on a mixed sketch, "leverage": on fibres drawn by the
        leverage of the model so far; then at most ten exact sweeps. With `mask` or `weights`
        "als" solves for each row by the entries seen in its slice (at ranks above 64 it imputes
        them); "em" imputes what is hidden before each sweep.
    n_samples : int, optional
        "cprand" and "leverage" only: sampled rows of a least-squares system (default from the
        rank).
    n_restarts : int
        Independent starts, of which the best at their end is returned; small ones run side by side.
    fixed_modes : sequence of int
        Modes whose factor in `init` stays as it is.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the unfolded inputs of a conv kernel `(O, I, *k)`, n = I prod k,
        columns as `torch.nn.functional.unfold` orders them, or of the inputs of a linear weight (O,
        I), n = I. The factors then serve the outputs: `errors` are relative errors of the outputs,
        which no sweep raises, from that of the plain CP (or of a start whitened along the input
        channels, if that leads further). What the inputs do not span follows the plain CP
        (`Fit.shrinkage`).
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the factors then serve the outputs about their
        mean, and `decomposition.bias_correction` makes good the rest.
    mask : bool Tensor or array of the shape of `tensor`, optional
        True where an entry is known. What is hidden is never read and may be NaN; errors are of the
        entries that are known alone.
    weights : Tensor or array of the shape of `tensor`, optional
        By which squared errors of the entries count, none below zero, which hides an entry. With
        `mask` or `weights` there are 500 sweeps by default, which end when more would gain little.
    callback : callable, optional
        Called as callback(factors, error) at each checkpoint, with the best start so far; returning
        True stops. Not with `gram`.
    random_state : int or Generator, optional
        torch's global generator is left alone.
    differentiable : bool
        Keep the graph: gradients of the factors with respect to the tensor by implicit
        differentiation of the fixed point of a sweep (Christianson 1994), exact where the iteration
        has converged; first derivatives only.

    Returns
    -------
    CPFactors
        Of `fit_cp` a `Fit` with the history.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        For a tensor with NaN, Inf or another dtype than floating point, a bad rank, an unknown
        solver or init, a start that does not fit, modes out of range or all of them fixed.
    UnsupportedError
        For what does not go with `gram`.

    Warns
    -----
    DegenerateWarning
        Where the components are linearly dependent.
    TensorlrfWarning
        Where `error` is not met at any rank.
    ConvergenceWarning
        Where with `gram` the default number of sweeps leaves over 2% to be gained.

    References
    ----------
    Kolda & Bader 2009, section 3.4; Phan, Tichavsky & Cichocki 2013 (dimension tree); Battaglino,
    Ballard & Kolda 2018 (randomised least squares with mixing); Larsen & Kolda 2022, "Practical
    leverage-based sampling for low-rank tensor decomposition"; Christianson 1994 (implicit
    differentiation); Golub & Pereyra 1973, Tomasi & Bro 2006 and Phan, Tichavsky & Cichocki 2013
    ("Low complexity damped Gauss-Newton algorithms"); Bro & Andersson 1998 (compression); Paatero
    2000 (the ridge).

    Examples
    --------
    >>> planted = tensorlrf.CPFactors(torch.ones(2), tuple(torch.randn(n, 2) for n in (6, 7, 8)))
    >>> tensor = planted.to_dense()
    >>> f = tensorlrf.cp(tensor, 2, random_state=0)
    >>> f.rel_error(tensor) < 1e-3
    True
    """
    if is_sparse(tensor):
        refuse_options(
            "cp", error=(error, None), n_samples=(n_samples, None), gram=(gram, None),
            mean=(mean, None), mask=(mask, None), weights=(weights, None),
            solver=("als" if solver == "auto" else solver, "als"),
            differentiable=(differentiable, False),
        )  # fmt: skip
        return _of_sparse(
            as_sparse(tensor), rank, n_iter_max, init, tol, n_restarts, fixed_modes, callback,
            random_state,
        )  # fmt: skip
    checked, seen = observed(tensor, mask, weights, rank, gram=gram, differentiable=differentiable)
    rank, error = check_rank_or_error(rank, error, checked.dtype)
    r = None if rank is None else cp_rank(rank, checked.shape)
    check_moments(gram, mean)
    check_callback(callback, gram)
    check_graph(differentiable, gram)
    given = mask is not None or weights is not None
    plain_way = plain_solver(solver, SOLVERS, ("auto", "als"), given)
    options = check_options(
        checked.shape,
        r,
        n_iter_max=SWEEPS if n_iter_max is None else n_iter_max,
        init=init,
        tol=TOL if tol is None else tol,
        solver=plain_way,
        n_samples=n_samples,
        n_restarts=n_restarts,
        fixed_modes=fixed_modes,
        callback=callback,
    )
    rng = generator(random_state, checked.device)
    if seen is not None:
        asked = replace(options, solver=solver)
        return fit_observed(seen, r, error, asked, n_iter_max, tol, rng)
    problem = pose(checked)
    target: Target[CPFactors] = Target.of(checked, gram, mean, sides=sides, scale=problem.scale)
    if not target.is_plain:
        limits = METRIC_SWEEPS if n_iter_max is None else n_iter_max, tol
        word = "als" if solver == "auto" else solver
        plain = replace(options, sweeps=SWEEPS, tol=TOL, solver=word)

        def at(r: int) -> Fit[CPFactors]:
            return fit_to_outputs(target, checked, problem, r, plain, limits, rng)

        most = checked.numel() // max(checked.shape)  # where a model is exact
        return finished(search(at, r, error, most, checked.dtype), n_iter_max)
    if r is not None:
        outcome = solve(problem, r, options, rng)
    elif error is not None:
        outcome = search_rank(problem, error, options, rng)
    fit = _finish(checked, problem, outcome, options, differentiable)
    if error is not None and fit.error > error >= torch.finfo(working_dtype(checked.dtype)).eps:
        warn(
            f"error={error} is out of reach: rank {fit.factors.rank} leaves {fit.error:.3g} in "
            f"{checked.dtype}; ask for more, make more sweeps (n_iter_max=), or pass the weight in "
            "float32",
            TensorlrfWarning,
        )
        return replace(fit, converged=False)
    return fit


cp = factors_of(fit_cp)
completes("cp")(pose_observed)


@config("cp")
class CP(Method):
    """CP of a convolution, as a method of `compress`; a matrix gets its SVD.

    Of the options n_iter_max, tol, init and n_restarts serve fits to inputs.

    References
    ----------
    Lebedev et al. 2015.

    Examples
    --------
    >>> print(tensorlrf.CP(n_restarts=3))
    cp(n_restarts=3)
    """

    init: str

    in_metric = ("n_iter_max", "tol", "init", "n_restarts")

    def check_options(self) -> None:
        if not isinstance(self.init, str):
            raise ArgumentError(
                f"init is a {type(self.init).__name__}; for many layers give a word, 'random' or "
                "'svd'"
            )
        options = self.options()
        fallback = {"n_iter_max": 1, "tol": 0.0}  # what None stands for depends on the inputs
        given = {k: v for k, v in options.items() if v is not None or k not in fallback}
        check_options((1, 1), None, **{**fallback, **given}, fixed_modes=(), callback=None)

    def for_shape(self, shape: tuple[int, ...]) -> Method:
        return self if math.prod(shape[2:]) > 1 else for_matrix(self)

    def params_at(self, rank: Any, shape: tuple[int, ...]) -> int:
        return int(rank * (sum(shape) + 1))  # the weights of its terms included

    def check_rank(self, rank: LayerRank, shape: tuple[int, ...]) -> None:
        super().check_rank(rank, shape)
        highest = math.prod(shape) // max(shape)
        if cast(int, rank) > highest:
            raise RankError(
                f"rank={rank} is above {highest}, at which CP writes any "
                f"{' x '.join(map(str, shape))} tensor exactly; use at most {highest}"
            )

    def any_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> CPFactors:
        return CPFactors(values(rank), tuple(values(n, rank) for n in shape))

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> CPFactors:
        return self.any_factors(cp_rank(rank, shape), shape, values)


def _of_sparse(
    tensor: SparseTensor,
    rank: Any,
    n_iter_max: int | None,
    init: Any,
    tol: float | None,
    n_restarts: int,
    fixed_modes: Sequence[int],
    callback: Callback | None,
    random_state: int | torch.Generator | None,
) -> Fit[CPFactors]:
    given, _ = check_rank_or_error(one_int(rank), None)
    r = cp_rank(given or 0, tensor.shape)
    check_callback(callback, None)
    options = check_options(
        tensor.shape,
        r,
        n_iter_max=SWEEPS if n_iter_max is None else n_iter_max,
        init=init,
        tol=TOL if tol is None else tol,
        solver="als",
        n_samples=None,
        n_restarts=n_restarts,
        fixed_modes=fixed_modes,
        callback=callback,
    )
    fit, state = fit_sparse(tensor, r, options, generator(random_state, tensor.device))
    warn_if_degenerate(state)
    return fit


def _finish(
    tensor: Tensor, problem: Problem, outcome: Outcome, options: Options, differentiable: bool
) -> Fit[CPFactors]:
    """The outcome as the user's factors, with the error they have after the cast."""
    state, errors = outcome.state, outcome.errors
    kept = options.kept(problem)
    factors = problem.factors(state, kept)
    if kept or problem.dtype != problem.data.blocks.dtype:
        errors = (*errors, problem.error(problem.state_of(factors)))
    warn_if_degenerate(state)
    if differentiable and tensor.requires_grad:
        fixed = frozenset(kept)
        factors = problem.factors(implicit_state(tensor, problem, state, fixed), kept)
    return Fit(factors, errors, outcome.converged, outcome.reason)


def warn_if_degenerate(state: CPState) -> None:
    """DegenerateWarning where the components are linearly dependent."""
    everything = reduce(mul, state.grams)  # (1, r, r), unit diagonal
    smallest = float(torch.linalg.eigvalsh(everything)[0, 0])
    rank = state.weights.shape[1]
    eps = torch.finfo(state.factors[0].dtype).eps
    sizes = [abs(weight) for weight in state.weights[0].tolist()]
    least = math.sqrt(eps) * max(sizes)
    idle = sum(size <= least for size in sizes)
    # Eigenvalues of a matrix with unit diagonal are known to a few times its rounding.
    if idle or smallest <= 10 * rank * eps:
        warn(
            f"rank={rank} is more than the tensor has use for: its components are linearly "
            f"dependent ({idle} of them nearly vanish); a smaller rank would give the same error",
            DegenerateWarning,
        )
