"""Tucker decomposition, full and partial."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration, finished
from tensorlrf.decomposition._evbmf import analytic_tucker_ranks
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition._options import check_callback, check_graph, check_modes, check_moments
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Method, config, for_matrix
from tensorlrf.decomposition.ladder import MULTIPLE, Ladder, LayerRank, Rung, multiples, rounded
from tensorlrf.decomposition.linalg._batched import check_batch_dims
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._rangefinder import check_sketch, check_sketches, read_by
from tensorlrf.decomposition.linalg.observed._complete import plain_solver
from tensorlrf.decomposition.linalg.observed._observed import observed
from tensorlrf.decomposition.linalg.sparse._input import refuse_options
from tensorlrf.decomposition.methods import Unfolded, completes, factors_of, method, truncates
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import (
    Rank,
    check_rank_or_error,
    ranks_at,
    tucker_fractions,
    tucker_ranks,
)
from tensorlrf.decomposition.tucker._batched import check_batched_tucker, fit_tucker_batched
from tensorlrf.decomposition.tucker._completion import fit_observed, pose_observed
from tensorlrf.decomposition.tucker._outputs import check_served, fit_to_outputs, sides
from tensorlrf.decomposition.tucker._solve import (
    SWEEPS,
    TOL,
    Callback,
    TuckerProblem,
    check_sweeps,
    layout,
)
from tensorlrf.decomposition.tucker._sparse import fit_sparse
from tensorlrf.errors import ArgumentError, RankError, unknown
from tensorlrf.factors import Batch, Factors, TuckerFactors
from tensorlrf.factors.kinds import is_sparse

POWER_STEPS = 2
"""Of a sketch, by default."""

SOLVERS = ("hooi", "hosvd", "st_hosvd", "randomized")


@method(
    "tucker",
    gives=TuckerFactors,
    on={"tensor": {}, "linear": {}, "conv": {"modes": (0, 1)}, "embedding": {}},
    estimates=True,
    order=(2, 3),
    law="no error above the root of the energies that the modes discard; HOOI never raises it",
    measured="tucker",
)
def fit_tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    solver: str = "hooi",
    n_iter_max: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    callback: Callback | None = None,
    n_power_iter: int = 2,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: int = 0,
) -> Fit[TuckerFactors] | Fit[Batch]:
    """A core multiplied by an orthonormal factor along each mode (Tucker).

    For a `tensor` (n_0, n_1, ...) the core is (r_0, r_1, ...) and the factor of mode k (n_k, r_k);
    along modes that are not in `modes` the core keeps its size. Slices of the core are ordered by
    energy along each factored mode.

    Parameters
    ----------
    tensor : Tensor, array or sparse tensor of shape (n_0, n_1, ...)
        Of a sparse one (a `SparseTensor`, or one of torch or scipy) the nonzeros alone are seen,
        in float64; an int `rank`, or one a mode, is needed, "hooi" and "hosvd" serve it, with
        `n_iter_max`, `tol`, `callback` and `random_state`. Its errors come from norms and inner
        products: below 1e-7 they are rounding.
    rank : int, tuple, float or str, optional
        An int for all modes; a tuple, one for each of `modes`; a share of the parameters in (0, 1]
        (an upper bound, down to rank one); "same"; or "auto": the analytic estimate of `evbmf_rank`
        for the unfolding of each of `modes`, whatever the metric, and one at least; or instead
    error : float, optional
        Relative error to stay within: the squared budget is shared over the modes, each rank is the
        smallest within its share, and so the error is at most `error`.
    modes : sequence of int, optional
        The modes that get a factor, all by default; (0, 1) for a Tucker-2 of a conv kernel.
    solver : str
        "hosvd": each factor from the whole tensor (De Lathauwer et al. 2000a); "st_hosvd": from
        what earlier factors left (Vannieuwenhoven et al. 2012); "hooi": from there, sweeps of
        higher-order orthogonal iteration, which never raise the error (De Lathauwer et al. 2000b);
        "randomized": st_hosvd with sketched ranges (Minster et al. 2020). With `mask` or `weights`
        "hooi" alternates least squares over what is known, each factor row by row (it imputes for
        a rank above 64, or a core of more than 1024 entries); "em" imputes what is hidden before
        each sweep.
    n_iter_max : int, optional
        Most sweeps of hooi, 50 by default; with `gram`, most rounds, 50 by default; with `mask` or
        `weights`, most sweeps, 500 by default.
    tol : float, optional
        hooi stops when a sweep lowers the error by no more than this share of it, 1e-5 by default;
        with `gram`, `mask` or `weights` likewise, by default when more would gain little.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the unfolded inputs of a conv kernel `(O, I, *k)`, n = I prod k,
        columns as `torch.nn.functional.unfold` orders them, or of the inputs of a linear weight (O,
        I), n = I; `modes` must be (0, 1). The factors then serve the outputs: errors are relative
        errors of the outputs, and columns of the factors are scaled so that inner values are no
        larger (root mean square) than inputs and outputs are. What the inputs do not span follows
        the plain fit (`Fit.shrinkage`). Needs "hooi"; `error` finds ranks that are one fraction of
        both sizes.
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the factors then serve the outputs about their
        mean, and `decomposition.bias_correction` makes good the rest.
    mask : bool Tensor or array of the shape of `tensor`, optional
        True where an entry is known. What is hidden is never read and may be NaN; errors are of the
        entries that are known alone.
    weights : Tensor or array of the shape of `tensor`, optional
        By which squared errors of the entries count, none below zero, which hides an entry. Not
        with `gram`, `differentiable` or `batch_dims`, nor rank="auto".
    callback : callable, optional
        Called as callback(factors, relative error) after each sweep of hooi (not with `gram`);
        stops the iteration by returning True.
    n_power_iter, n_oversample : int
        Of the randomised way: refused with another solver, and unread in a config of one.
    random_state : int or Generator, optional
        Of the randomised way.
    differentiable : bool
        Keep the autograd graph, for first and second derivatives; else detached. The whole has them
        wherever the last singular value kept and the first left out differ along each mode (by a
        sketch they are those of st_hosvd), the factors by themselves where those kept differ too;
        what has none adds nothing. Third ones are refused, and second ones where values that are
        kept are nearly equal (UnsupportedError).
    batch_dims : int
        This many leading dimensions of `tensor` count equal tensors that are decomposed at once,
        with the same ranks; `modes` count behind them. Needs `rank=`, and "hosvd" or "st_hosvd".

    Returns
    -------
    TuckerFactors
        With `batch_dims` a Batch of it. Of `fit_tucker` a `Fit` with the relative errors: at the
        start, after each sweep, and of the result. Errors inside the iteration are taken from the
        norm of the core where they are well above the rounding of that, and from the residual
        below.

    Raises
    ------
    RankError
        For ranks below one, above a mode's size or of the wrong number.
    ArgumentError, ShapeError
        For what cannot be decomposed.

    Warns
    -----
    TensorlrfWarning
        Where rounding to the dtype of `tensor` keeps `error` out of reach, and where ranks have
        more free parameters than there are observed entries.

    References
    ----------
    Tucker 1966; De Lathauwer et al. 2000a, 2000b; Vannieuwenhoven et al. 2012; Minster et al. 2020;
    Andersson & Bro 1998 (missing entries).

    Examples
    --------
    >>> kernel = torch.rand(32, 16, 3, 3)
    >>> f = tensorlrf.tucker(kernel, 0.5, modes=(0, 1))
    >>> f.core.shape[2:], f.n_params <= kernel.numel() / 2
    (torch.Size([3, 3]), True)
    """
    if is_sparse(tensor):
        refuse_options(
            "tucker", error=(error, None), gram=(gram, None), mean=(mean, None),
            mask=(mask, None), weights=(weights, None),
            n_power_iter=(n_power_iter, POWER_STEPS), n_oversample=(n_oversample, 10),
            differentiable=(differentiable, False), batch_dims=(batch_dims, 0),
        )  # fmt: skip
        return fit_sparse(tensor, rank, modes, solver, n_iter_max, tol, callback, random_state)
    given = mask is not None or weights is not None
    others = {"gram": gram, "differentiable": differentiable, "batch_dims": batch_dims}
    tensor, seen = observed(tensor, mask, weights, rank, **others)
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    check_sketch(n_power_iter, n_oversample)
    asked, solver = solver, plain_solver(solver, SOLVERS, ("hooi",), given)
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    check_sketches(solver, n_power_iter, n_oversample, POWER_STEPS)
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean)
    check_batch_dims(batch_dims, tensor.ndim)
    if batch_dims:
        check_batched_tucker(solver, rank, error, gram, callback)
    check_callback(callback, gram)
    check_graph(differentiable, gram)
    check_sweeps(solver, callback, n_iter_max, tol)
    shape = tuple(int(n) for n in tensor.shape[batch_dims:])
    listed = check_modes(modes, len(shape))
    if isinstance(rank, str) and rank == "auto":
        rank = analytic_tucker_ranks(tensor, listed)
    ranks: dict[int, int] | None = None
    if rank is not None:
        ranks = dict(zip(listed, tucker_ranks(rank, shape, listed), strict=True))
    elif solver == "randomized":
        raise ArgumentError(
            "solver='randomized' needs rank=, a sketch does not see the energy that it leaves out; "
            "for error= use solver='st_hosvd'"
        )
    draws = generator(random_state, tensor.device)
    if seen is not None:
        return fit_observed(seen, ranks, error, listed, asked, n_iter_max, tol, callback)
    if batch_dims:
        work = tensor if differentiable else tensor.detach()
        return fit_tucker_batched(work, ranks or {}, solver, batch_dims)
    if gram is not None:
        check_served(listed, solver)
        target: Target[TuckerFactors] = Target.of(tensor, gram, mean, sides=sides)
        fractions = tucker_fractions(shape, (0, 1))

        def served(*own: int) -> Fit[TuckerFactors]:
            kernel = target.work.reshape(*shape[:2], -1)
            plain = cast(TuckerFactors, tucker(kernel, own, modes=(0, 1)))
            return fit_to_outputs(target, plain, shape, n_iter_max, tol)

        def at(step: int) -> Fit[TuckerFactors]:
            return served(*ranks_at(fractions[step - 1], shape, (0, 1)))

        if ranks is not None:
            found = served(ranks[0], ranks[1])
        else:
            found = search(at, None, error, len(fractions), tensor.dtype)
        return finished(found, n_iter_max)

    work = (tensor if differentiable else tensor.detach()).to(working_dtype(tensor.dtype))
    scale = scale_of(work)
    axes = layout(work.ndim, listed)
    problem = TuckerProblem(
        tensor=(work if scale == 1.0 else work / scale).permute(axes).contiguous(),
        axes=axes,
        scale=scale,
        dtype=tensor.dtype,
        modes=tuple(sorted(axes.index(k) for k in listed)),
        solver=solver,
        n_iter_max=SWEEPS if n_iter_max is None else n_iter_max,
        tol=TOL if tol is None else tol,
        callback=callback,
        n_power_iter=n_power_iter,
        n_oversample=n_oversample,
        generator=draws,
    )
    if ranks is None:
        return problem.within(error or 0.0)
    return problem.solve({axes.index(k): r for k, r in ranks.items()})


tucker = factors_of(fit_tucker)
completes("tucker")(pose_observed)


@config("tucker")
class Tucker(Method):
    """Tucker-2 on the channels of a convolution, as a method of `compress`; a matrix gets its SVD.

    Of the options of the decomposition n_iter_max and tol alone serve fits to inputs.

    Parameters
    ----------
    rank_shares : pair of float
        Relative sizes of r_out / O and r_in / I, where a share decides the ranks.

    References
    ----------
    Kim et al. 2016.

    Examples
    --------
    >>> tensorlrf.Tucker(rank=(16, 8)).rank
    (16, 8)
    """

    solver: str
    n_iter_max: int | None
    tol: float | None
    n_power_iter: int
    n_oversample: int
    rank_shares: tuple[float, float] = (0.7, 1.0)

    in_metric = ("n_iter_max", "tol")

    def check_options(self) -> None:
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        check_iteration(self.n_iter_max, self.tol)
        check_sketch(self.n_power_iter, self.n_oversample)
        shares: Any = self.rank_shares
        pair = isinstance(shares, tuple) and len(shares) == 2
        if not pair or not all(isinstance(s, (int, float)) and 0 < s <= 1 for s in shares):
            raise ArgumentError(
                f"rank_shares={shares!r} must be two numbers in (0, 1], the relative sizes of "
                "r_out / O and r_in / I, such as (0.7, 1.0)"
            )

    def _read_options(self) -> dict[str, Any]:
        return read_by(self.solver, self.options())

    @property
    def sweeps_without_inputs(self) -> bool:
        return self.solver == "hooi"

    def for_shape(self, shape: tuple[int, ...]) -> Method:
        return self if math.prod(shape[2:]) > 1 else for_matrix(self)

    def ladder_of(self, shape: tuple[int, ...]) -> Ladder:
        return tucker_ladder(shape, self.rank_shares)

    def params_at(self, rank: LayerRank, shape: tuple[int, ...]) -> int:
        O, I, *taps = shape
        r_out, r_in = _pair(rank)
        return r_out * r_in * math.prod(taps) + O * r_out + I * r_in

    def check_rank(self, rank: LayerRank, shape: tuple[int, ...]) -> None:
        (r_out, r_in), (O, I) = _pair(rank), shape[:2]
        if r_out > O or r_in > I:
            raise RankError(
                f"rank={rank} is above the sizes ({O}, {I}) of the factored modes; use at most "
                "these"
            )

    def rank_without_gain(self, shape: tuple[int, ...]) -> LayerRank:
        return shape[:2]

    def finds_rank(self, data_aware: bool) -> bool:
        return not data_aware  # in the metric of inputs no error bound sums up

    def rank_of(self, factors: Factors) -> LayerRank:
        rank: tuple[int, ...] = tuple(factors.rank)  # type: ignore[arg-type]
        return rank[:2]

    def any_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> TuckerFactors:
        (r_out, r_in), (O, I, *taps) = _pair(rank), shape
        return TuckerFactors(
            values(r_out, r_in, *taps), (values(O, r_out), values(I, r_in)), (0, 1)
        )

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> TuckerFactors:
        return self.any_factors(tucker_ranks(rank, shape, (0, 1)), shape, values)


def tucker_ladder(shape: Sequence[int], rank_shares: tuple[float, float]) -> Ladder:
    """Tucker-2 of a kernel (O, I, *k), along the line t * rank_shares of (r_O / O, r_I / I).

    A side of fewer than 8 channels is left whole. With the input side whole, Tucker is the low-rank
    form of (O, I prod k).
    """
    O, I = shape[:2]
    taps = math.prod(shape[2:])
    rungs: list[Rung] = []
    for t in sorted(_turns(O, rank_shares[0]) | _turns(I, rank_shares[1])):
        r_out, r_in = _side(O, t * rank_shares[0]), _side(I, t * rank_shares[1])
        if r_in == I:
            rungs.append(Rung(r_out, r_out * (I * taps + O), of="svd", own=(r_out, I)))
        else:
            rungs.append(Rung((r_out, r_in), r_out * r_in * taps + O * r_out + I * r_in))
    return Ladder.of(O * I * taps, rungs)


def _turns(n: int, share: float) -> set[float]:
    """The t at which rounded(t * share * n) takes a new value."""
    return {r / (share * n) for r in takewhile(lambda r: r <= n, multiples())}


def _side(n: int, fraction: float) -> int:
    return n if n < MULTIPLE else max(1, min(n, rounded(fraction * n)))


def _pair(rank: LayerRank) -> tuple[int, ...]:
    pair = rank if isinstance(rank, tuple) else (rank, rank)
    if len(pair) != 2:
        raise RankError(f"rank={rank} must be an int or two, (r_out, r_in), for Tucker-2")
    return pair


@truncates("tucker")
def _unfoldings(tensor: Tensor, *, modes: Sequence[int] | None = None) -> Unfolded:
    for k in check_modes(modes, tensor.ndim):
        yield f"mode {k}", [(tensor, k)]
