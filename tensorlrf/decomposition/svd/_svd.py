"""Truncated singular value decomposition of a weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._evbmf import analytic_matrix_rank
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._input import as_tensor_and_largest
from tensorlrf.decomposition._options import check_callback, check_moments
from tensorlrf.decomposition._quadratic import Product
from tensorlrf.decomposition._search import search
from tensorlrf.decomposition._target import Sides, Target
from tensorlrf.decomposition.config import Method, config
from tensorlrf.decomposition.ladder import LayerRank
from tensorlrf.decomposition.linalg._batched import (
    check_batch_dims,
    check_batched_svd,
    fit_svd_batched,
)
from tensorlrf.decomposition.linalg._derivatives import moving_sides
from tensorlrf.decomposition.linalg._output_spectrum import OutputSpectrum, square_root
from tensorlrf.decomposition.linalg._rangefinder import check_sketch, check_sketches, read_by
from tensorlrf.decomposition.linalg._spectrum import ShortSideEigh, Spectrum
from tensorlrf.decomposition.linalg._truncation import POWER_STEPS, SEED, SOLVERS, Scaled, SVDSolver
from tensorlrf.decomposition.linalg.compact import Compact, LowRankPlusDiagonal
from tensorlrf.decomposition.linalg.observed._complete import Watch, check_sweeps, plain_solver
from tensorlrf.decomposition.linalg.observed._observed import Observed, observed
from tensorlrf.decomposition.linalg.sparse._input import refuse_options
from tensorlrf.decomposition.methods import (
    Unfolded,
    completes,
    factors_of,
    method,
    truncates,
)
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, matrix_rank
from tensorlrf.decomposition.svd._als import fit_by_als
from tensorlrf.decomposition.svd._completion import fit_observed, pose_observed
from tensorlrf.decomposition.svd._sparse import fit_sparse
from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.factors import Batch, LowRank
from tensorlrf.factors.kinds import is_sparse

METRICS = ("full", "diagonal", "identity")
"""In which a layer is fitted."""

TOGETHER, APART, WHICHEVER = "together", "apart", "auto"

GATES = (TOGETHER, APART, WHICHEVER)
"""How the gates of a recurrent matrix are factored."""

ASVD_ALPHA = 0.5


@method(
    "svd",
    gives=LowRank,
    on={"tensor", "linear", "conv", "embedding"},
    estimates=True,
    order=(1, 1),
    law="what it leaves is the discarded singular energy (Eckart & Young)",
    measured="svd",
)
def fit_svd(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    solver: str = "auto",
    gram: Any = None,
    mean: Any = None,
    mask: Any = None,
    weights: Any = None,
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Watch | None = None,
    n_power_iter: int = 8,
    n_oversample: int = 10,
    random_state: int | torch.Generator | None = None,
    differentiable: bool = False,
    batch_dims: int = 0,
    measure: bool = True,
) -> Fit[LowRank] | Fit[Batch]:
    """The nearest matrix of rank r, or the one with the nearest outputs.

    A `tensor` of two or more modes is the matrix W (m, n) = (n_0, product of the others), so a conv
    kernel (O, I, kh, kw) is (O, I kh kw). The result has left (m, r), right (r, n) and the shape of
    `tensor`; the root of each singular value goes to either side, so that both sides have equal
    column norms.

    Parameters
    ----------
    tensor : Tensor, array or sparse tensor of shape (m, ...)
        Of a sparse one (a `SparseTensor`, or one of torch or scipy) only products with the nonzeros
        are made, by "krylov"; an int `rank` is needed, and of the other options `random_state`
        alone is served. Its error is told from norms: below 1e-7 it is rounding.
    rank : int, float or str, optional
        An int, a share of the parameters in (0, 1] (an upper bound, down to rank one), "same", or
        "auto": the analytic estimate of `evbmf_rank` for W, whatever the metric, and one at least;
        or instead
    error : float, optional
        The smallest rank whose relative error is at most this.
    solver : str
        "exact": the SVD; "eigh": eigenvectors of the Gram of the short side, in float64; "krylov":
        a block Krylov space, with as many products as it takes until the residual is estimated to
        exceed the least possible one by no more than a thousandth of it, or else the exact way;
        "randomized": a sketch with a given number of power iterations; "auto": for a rank the one
        of krylov and exact that should take less time, by a measured cost model, exact where a
        graph is kept and for `error`. Exact means eigh below float64. With `mask` or `weights`
        "auto" is alternating least squares over what is known, row by row; "em" imputes what is
        hidden, and draws what counts less to the model, before each sweep.
    gram : Tensor or array of shape (n, n), optional
        Second moments X X^T / N of the inputs of the layer, columns in the order of W (for a conv,
        of `torch.nn.functional.unfold`). Then W_r = U U^T W with U the top eigenvectors of W G W^T
        minimises the mean of the squared norm of (W - W_r) x, `error` is the relative error of the
        outputs, and the split keeps the r inner values no larger than the outputs are (root mean
        square). What the inputs do not span follows the plain fit (`Fit.shrinkage`).
    mean : Tensor or array of shape (n,), optional
        The mean of the same inputs, with `gram`: the outputs about their mean.
    mask : bool Tensor or array of the shape of `tensor`, optional
        True where an entry is known. What is hidden is never read and may be NaN; errors are of the
        entries that are known alone.
    weights : Tensor or array of the shape of `tensor`, optional
        By which squared errors of the entries count, none below zero, which hides an entry. Not
        with `gram`, `differentiable` or `batch_dims`, nor rank="auto".
    n_iter_max, tol
        With `mask` or `weights`: most sweeps, 500 by default, and the share of the error that a
        sweep must gain for another one; by default they end when more would gain little.
    callback : callable, optional
        With `mask` or `weights`: called as callback(factors, error) after each sweep; returning
        True stops.
    n_power_iter, n_oversample : int
        Of the randomised way: refused with another solver, and unread in a config of one.
    random_state : int or Generator, optional
        Of the ways with random vectors; "auto" repeats where none is given.
    differentiable : bool
        Keep the autograd graph, for first and second derivatives; else detached. left @ right has
        them wherever the last singular value kept and the first left out differ (by a sketch they
        are those of the exact truncation), the sides by themselves where those kept differ too;
        what has none adds nothing. Third ones are refused, and second ones where values that are
        kept are nearly equal (UnsupportedError).
    batch_dims : int
        This many leading dimensions of `tensor` count equal weights that are decomposed at once,
        with one rank for all (for `error` the smallest that serves each of them). By "exact" or
        "eigh", and without `gram`. "auto" computes the Grams in float32 where that is proven to
        leave every error within 1e-4 (relative) of the least possible.

    Returns
    -------
    LowRank
        With `batch_dims` a Batch of it. Of `fit_svd` a `Fit` with the relative error, in the metric
        of the inputs where `gram` is given; `converged` is False only where `error` was not
        reached. With `batch_dims` the error is that of the whole batch, and `reason` tells the
        largest.

    Raises
    ------
    RankError
        For a rank below one or above min(m, n).
    ShapeError, ArgumentError
        For what cannot be decomposed.

    Warns
    -----
    TensorlrfWarning
        Where rounding to the dtype of `tensor` keeps `error` out of reach at every rank, and where
        a rank has more free parameters than there are observed entries.

    References
    ----------
    Eckart & Young 1936; Musco & Musco 2015 (block Krylov); Halko, Martinsson & Tropp 2011 (sketch);
    Gabriel & Zamir 1979 and Srebro & Jaakkola 2003 (weights).

    Examples
    --------
    >>> w = torch.rand(8, 3) @ torch.rand(3, 6)
    >>> f = tensorlrf.svd(w, error=1e-3)
    >>> f.rank, f.rel_error(w) <= 1e-3
    (3, True)

    For the outputs on inputs X, whose second moments are G:

    >>> x = torch.rand(6, 100) * torch.tensor([10.0, 1, 1, 1, 1, 1])[:, None]
    >>> w, G = torch.rand(8, 6), x @ x.T / 100
    >>> plain, aware = tensorlrf.svd(w, 2), tensorlrf.svd(w, 2, gram=G)
    >>> missing = [torch.dist(f.to_dense() @ x, w @ x) for f in (plain, aware)]
    >>> bool(missing[1] < missing[0])
    True
    """
    # Without `measure`, as `svd` asks, the error of a given rank is left out (NaN): a look at the
    # matrix.
    if is_sparse(tensor):
        refuse_options(
            "svd", error=(error, None), gram=(gram, None), mean=(mean, None), mask=(mask, None),
            weights=(weights, None), n_iter_max=(n_iter_max, None), tol=(tol, None),
            callback=(callback, None), n_power_iter=(n_power_iter, POWER_STEPS),
            n_oversample=(n_oversample, 10), differentiable=(differentiable, False),
            batch_dims=(batch_dims, 0),
        )  # fmt: skip
        return fit_sparse(tensor, rank, solver, random_state, measure)
    given = mask is not None or weights is not None
    seen: Observed | None = None
    if given:
        others = {"gram": gram, "differentiable": differentiable, "batch_dims": batch_dims}
        tensor, seen = observed(tensor, mask, weights, rank, **others)
    tensor, largest = as_tensor_and_largest(tensor)
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    check_moments(gram, mean)
    check_batch_dims(batch_dims, tensor.ndim)
    check_sketch(n_power_iter, n_oversample)
    check_iteration(n_iter_max, tol)
    check_callback(callback, gram)
    check_sweeps(given, n_iter_max=n_iter_max, tol=tol, callback=callback)
    asked, solver = solver, plain_solver(solver, SOLVERS, ("auto",), given)
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    check_sketches(solver, n_power_iter, n_oversample, POWER_STEPS)
    if random_state is None and solver == "auto":
        random_state = SEED
    draws = generator(random_state, tensor.device)
    work = tensor if differentiable else tensor.detach()
    if batch_dims:
        check_batched_svd(rank, solver, gram)
        return fit_svd_batched(work, rank, error, solver, batch_dims)
    m, n = tensor.shape[0], tensor.numel() // tensor.shape[0]
    source = "as asked"
    if isinstance(rank, str) and rank == "auto":
        rank, source = analytic_matrix_rank(tensor), "as estimated by evbmf"
    r = None if rank is None else matrix_rank(rank, m, n)
    _check_solver(solver, r, gram is not None)
    if seen is not None:
        return fit_observed(seen, r, error, asked, n_iter_max, tol, callback)

    scaled = Scaled.of(work, largest)
    moving = scaled.work.reshape(m, n)
    matrix = moving.detach()
    target: Target[LowRank] = Target.of(tensor, gram, mean, sides=_sides, scale=scaled.root**2)
    if target.form.sides is None:
        return fit_by_als(target, scaled, rank=r, error=error, shape=tuple(tensor.shape))
    spectrum: Spectrum
    half: Tensor | None = None
    if target.is_plain:
        chosen = SVDSolver(solver, n_power_iter, n_oversample, draws)
        spectrum, how = chosen.spectrum(matrix, r, graph=moving.requires_grad)
    else:
        spectrum, how = OutputSpectrum(target, matrix), "outputs, from gram"
        if moving.requires_grad and target.gram is not None:
            half = square_root(target.gram)

    def cast(spectrum: Spectrum, r: int, half: Tensor | None = None) -> LowRank:
        sides = spectrum.split(r)
        if moving.requires_grad:
            sides = moving_sides(moving, *sides, torch.finfo(tensor.dtype).eps, half)
        return LowRank(*scaled.cast(*sides), tuple(tensor.shape))

    def cut(r: int, reason: str = how) -> Fit[LowRank]:
        factors = cast(spectrum, r, half)
        if not target.is_plain:
            # The optimum in closed form: only rounding could leave it behind the plain factors.
            best = fit_or_plain(
                target,
                lambda: cast(ShortSideEigh(matrix), r),
                lambda: Fit(factors, (), True, ""),
                float(spectrum.energies[r:].sum()),
            )
            return Fit(best.factors, (best.error,), True, reason)
        known = measure or rank is None
        loss = scaled.rel_error(spectrum, factors.left, factors.right) if known else math.nan
        return Fit(factors, (loss,), True, reason)

    if r is not None:
        fit = cut(r, f"rank {r} {source}, {how}")
    else:
        fit = search(cut, None, error, min(m, n), tensor.dtype, energies=spectrum.energies)
    return fit if target.is_plain else replace(fit, shrinkage=target.shrinkage)


svd = factors_of(fit_svd)
completes("svd")(pose_observed)


@config("svd")
class SVD(Method):
    """Truncated SVD, as a method of `compress`.

    Options of the decomposition serve fits without inputs.

    Parameters
    ----------
    metric : {"full", "diagonal", "identity"}
        With calibration: "full", the second moments of the inputs, so that the error of the outputs
        is least; "diagonal", columns scaled by the fourth root of their mean square, the
        activation-aware SVD (with alpha = 1/2); "identity", the plain SVD.
    gates : {"together", "apart", "auto"}
        Of a matrix of an LSTM or a GRU, whose rows are its gates: "together", one low rank for all;
        "apart", one for each, of ranks that share out the parameters of that one (a
        `BlockLowRank`); "auto", apart where the squared error of the outputs, on inputs held out
        where there are some, is less by a twentieth. No other layer has gates. With
        metric="full".

    References
    ----------
    Yuan et al. 2023, "ASVD".

    Examples
    --------
    >>> print(tensorlrf.SVD(metric="diagonal"))
    svd(metric=diagonal)
    """

    solver: str
    n_power_iter: int
    n_oversample: int
    metric: str = "full"
    gates: str = TOGETHER

    in_metric = ()
    multiplies_moments = True
    of_tensors = ("n_iter_max", "tol")

    def check_options(self) -> None:
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        if self.gates not in GATES:
            raise unknown("gates", self.gates, GATES)
        if self.gates != TOGETHER and self.metric != "full":
            raise ArgumentError(
                f"gates={self.gates!r} is of fits to all that is known of the inputs; leave out "
                f"metric={self.metric!r}"
            )
        check_sketch(self.n_power_iter, self.n_oversample)

    def _read_options(self) -> dict[str, Any]:
        return read_by(self.solver, self.options())

    def params_at(self, rank: Any, shape: tuple[int, ...]) -> int:
        return int(rank * (shape[0] + math.prod(shape[1:])))

    def check_rank(self, rank: LayerRank, shape: tuple[int, ...]) -> None:
        super().check_rank(rank, shape)
        m, n = shape[0], math.prod(shape[1:])
        matrix_rank(rank, m, n)

    def finds_rank(self, data_aware: bool) -> bool:
        return True

    @property
    def fits_inputs(self) -> bool:
        return self.metric != "identity"

    @property
    def takes_any_form(self) -> bool:
        return self.metric == "full"

    def gram_of(self, moments: Any, weight: Tensor) -> Any:
        if self.metric == "full":
            return moments
        # (E x_i^2)^alpha: columns scaled by the root of it, rms^alpha.
        scales = moments.gram.diagonal().clamp(min=0) ** ASVD_ALPHA
        if isinstance(moments.gram, Compact):
            return Product(None, LowRankPlusDiagonal(scales.new_zeros(0, len(scales)), scales))
        return torch.diag(scales)

    def any_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> LowRank:
        return LowRank(values(shape[0], rank), values(rank, math.prod(shape[1:])), shape)

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> LowRank:
        return self.any_factors(matrix_rank(rank, shape[0], math.prod(shape[1:])), shape, values)


@truncates("svd")
def _unfoldings(tensor: Tensor) -> Unfolded:
    yield "matrix", [(tensor.flatten(1), 0)]


def _sides(factors: LowRank) -> Sides:
    return factors.left, factors.right


def _check_solver(solver: str, r: int | None, metric: bool) -> None:
    """Whether the solver can serve."""
    if metric and solver not in ("auto", "eigh"):
        raise UnsupportedError(
            f"solver={solver!r} does not take gram=, which is solved by eigenvectors of W G W^T; "
            "leave solver='auto'"
        )
    if solver in ("krylov", "randomized") and r is None:
        raise ArgumentError(
            f"solver={solver!r} needs rank=, a sketch does not see the energy that it leaves "
            "out; for error= use solver='auto'"
        )
