"""Tensor ring decomposition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, check_iteration, finished
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._fit_or_plain import fit_or_plain
from tensorlrf.decomposition._input import as_tensor, check_sequence
from tensorlrf.decomposition._options import are_positive, check_moments
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.config import Structured, config
from tensorlrf.decomposition.ladder import LayerRank
from tensorlrf.decomposition.methods import factors_of, for_layers, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, check_rank_or_error
from tensorlrf.decomposition.sizes import row_digits
from tensorlrf.decomposition.trains._tr_als import RingProblem, balanced
from tensorlrf.decomposition.trains._tr_iterate import iterate
from tensorlrf.decomposition.trains._tr_outputs import OutputRingProblem
from tensorlrf.decomposition.trains._tr_start import ring_cut, ring_random, ring_ranks
from tensorlrf.decomposition.trains._tt_ranks import rank_limits, smallest_uniform
from tensorlrf.decomposition.trains._tt_sweep import true_error
from tensorlrf.errors import (
    ArgumentError,
    ShapeError,
    TensorlrfWarning,
    UnsupportedError,
    unknown,
    warn,
)
from tensorlrf.factors import TRFactors

INITS = ("svd", "random")

SWEEPS, TOL = 100, 1e-5
"""By default."""


@method(
    "tr",
    gives=TRFactors,
    on={"tensor", "linear"},
    order=(5, 6),
    law="no sweep raises the error",
    measured="tr",
)
def fit_tr(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    sizes: Sequence[Sequence[int]] | None = None,
    init: str = "svd",
    mode: int = 0,
    n_iter_max: int | None = None,
    tol: float | None = None,
    gram: Any = None,
    mean: Any = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[TRFactors]:
    """A tensor ring by alternating least squares.

    For a `tensor` (n_0, ..., n_{N-1}) core k is (r_k, n_k, r_{k+1}) with r_N = r_0. Each step has a
    proximal term that falls from sweep to sweep, so it is defined where the subchain of the other
    cores has no full rank, and the loss never rises; the norms of the cores are balanced after
    every sweep.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_0, ..., n_{N-1})
    rank : int, tuple, float or str, optional
        An int for every bond, clipped to the largest rank of a train; a tuple (r_0, ..., r_{N-1},
        r_0), the last may be left out, of which bond k, before core k, may be above those of
        trains, up to min(r_{k-1} n_{k-1}, n_k r_{k+1}); a share of the parameters in (0, 1] (an
        upper bound, down to rank one); or "same"; or instead
    error : float, optional
        Relative error to stay within: uniform ranks are tried, doubled and then bisected, each by a
        fit of its own, as long as the ring has no more parameters than `tensor`.
    sizes : sequence of sequence of int, optional
        For each mode of the tensor the factors that it is split into, leading digit first; the ring
        has a core for each. ((8, 4), (6, 5)) makes a matrix (32, 30) a ring of four. By default a
        mode is one core.
    init : str
        "svd": successive truncated SVDs (algorithm 1); "random": Gaussian cores.
    mode : int
        The core with which "svd" begins: the ring is cut before it. A negative one counts from the
        end. Which is best depends on `tensor`: the first SVD shares its rank out over two bonds.
    n_iter_max : int, optional
        Most sweeps, 100 by default.
    tol : float, optional
        Stop when a sweep lowers the error by no more than this share of it; by default 1e-5, and
        with `gram` where more sweeps would gain little.
    gram : Tensor or array of shape (n, n), optional
        For a matrix (m, n): second moments X X^T / N of the inputs of the layer. The sweeps then go
        on from the ring fitted without, to lower the error of the outputs, in which `error` counts
        too; cores of the columns take conjugate gradients. What the inputs do not span follows the
        plain ring (`Fit.shrinkage`).
    mean : Tensor or array of shape (n,), optional
        Mean input, about which the second moments are taken.
    random_state : int or Generator, optional
        Of `init="random"`, and of what fills bonds that the SVDs leave open.

    Returns
    -------
    TRFactors
        Of `fit_tr` a `Fit` with the relative errors: of the start, after each sweep, and of the
        ring as returned; with `gram` those of the outputs, from the plain ring on. `converged` is
        False where the sweeps ran out, or `error` was not reached.

    Raises
    ------
    RankError
        For ranks below one, above what their bond can use (a tuple) or with unequal ends.
    ShapeError
        For sizes that do not multiply to the modes.
    ArgumentError
        For input that cannot be decomposed.

    Warns
    -----
    TensorlrfWarning
        Where no ring of the size of `tensor` is within `error`.
    ConvergenceWarning
        Where with `gram` the default number of sweeps leaves much to gain.

    References
    ----------
    Zhao et al. 2016, algorithms 1 and 2.

    Examples
    --------
    >>> planted = tensorlrf.TRFactors([torch.randn(2, n, 2) for n in (6, 7, 8)])
    >>> tensor = planted.to_dense()
    >>> f = tensorlrf.tr(torch.rand(32, 30), 3, sizes=((8, 4), (6, 5)))
    >>> f.sizes, f.shape
    ((8, 4, 6, 5), (32, 30))
    """
    tensor = as_tensor(tensor).detach()
    rank, error = check_rank_or_error(rank, error, tensor.dtype)
    sweeps = SWEEPS if n_iter_max is None else n_iter_max
    least = TOL if tol is None else tol
    check_iteration(n_iter_max, tol)
    check_moments(gram, mean)
    if init not in INITS:
        raise unknown("init", init, INITS)
    shape = tuple(tensor.shape)
    split = _split(sizes, shape)
    flat = [n for parts in split for n in parts]
    begin = _core(mode, len(flat), init)
    draws = generator(random_state, tensor.device)
    if gram is not None and len(shape) != 2:
        raise ShapeError(
            f"gram= is for a matrix (m, n), tensor has shape {shape}; reshape a conv kernel "
            "(O, I, kh, kw) to (O, I kh kw)"
        )
    target: Target[TRFactors] = Target.of(tensor, gram, mean)
    work = target.matrix.reshape(flat)
    problem = RingProblem(work)

    def cast(cores: Sequence[Tensor]) -> TRFactors:
        each = target.scale ** (1 / len(cores))  # to one core alone it could be too large
        shared = [core * each for core in balanced(cores)]
        return TRFactors(tuple(c.to(tensor.dtype).contiguous() for c in shared), shape)

    def fit(ranks: Sequence[int]) -> Fit[TRFactors]:
        if init == "svd":
            start = ring_cut(work, ranks, draws, begin)
        else:
            start = ring_random(flat, ranks, math.sqrt(problem.norm), draws)
        run = iterate(problem, start, sweeps, least)
        plain = cast(run.state)
        if target.is_plain:
            errors = (*run.errors, true_error(plain, tensor))
            return Fit(plain, errors, run.converged, _reason(plain, run))
        outputs = OutputRingProblem(target, len(split[0]))

        def served() -> Fit[TRFactors]:
            on = iterate(outputs, run.state, sweeps, tol)
            reason = f"{_reason(plain, on)}, outputs, from gram"
            return Fit(cast(on.state), on.errors, on.converged, reason)

        return fit_or_plain(target, lambda: plain, served)

    if rank is not None:
        found = fit(ring_ranks(rank, flat, tensor.numel()))
    else:
        found = _smallest(fit, flat, tensor.numel(), error or 0.0)
    return found if target.is_plain else finished(found, n_iter_max)


tr = factors_of(fit_tr)


@for_layers("tr", options_of=fit_tr)
def _of_layer(tensor: Any, rank: Rank | None = None, **options: Any) -> TRFactors:
    """A ring of the digits of the weight (out, in), two each where sizes= are not given: layers on
    these have them. Raises UnsupportedError for the kernel of a convolution, which does not run on
    one."""
    if tensor.ndim != 2:
        raise UnsupportedError(
            "a convolution does not run on a ring; use method 'tt', a train, for it"
        )
    options["sizes"] = options.get("sizes") or [row_digits(n) for n in tensor.shape]
    return tr(tensor, rank, **options)


@config("tr")
class TR(Structured):
    """A tensor ring of the digits of rows and columns, as a method of `compress`.

    Parameters
    ----------
    sizes : ((m_0, ...), (n_0, ...)), optional
        Two digits each by default.

    Examples
    --------
    >>> tensorlrf.TR(sizes=[[8, 4], [6, 5]]).sizes
    ((8, 4), (6, 5))
    """

    sizes: tuple[tuple[int, ...], tuple[int, ...]] | None
    init: str
    mode: int

    def check_options(self) -> None:
        super().check_options()
        sizes: Any = self.sizes
        if sizes is not None:
            two = isinstance(sizes, tuple) and len(sizes) == 2
            if not two or not all(isinstance(s, tuple) and are_positive(s) for s in sizes):
                raise ArgumentError(
                    f"sizes={sizes!r} must be the digits of rows and columns, such as "
                    "((16, 24), (16, 24))"
                )
        if self.init not in INITS:
            raise unknown("init", self.init, INITS)
        _check_mode(self.mode, self.init)

    def why_not(self, shape: tuple[int, ...], groups: int) -> str:
        if self.sizes is not None and len(shape) == 2:
            products = tuple(math.prod(digits) for digits in self.sizes)
            if products != shape:
                return f"sizes={self.sizes} make a weight {products}, not {shape}"
        return super().why_not(shape, groups)

    def planned_params(self, rank: LayerRank, shape: tuple[int, ...], groups: int) -> int | None:
        sizes = [n for digits in self.sizes or map(row_digits, shape) for n in digits]
        ranks = ring_ranks(rank, sizes, math.prod(shape))
        return sum(n * r * s for n, r, s in zip(sizes, ranks, (*ranks[1:], ranks[0]), strict=True))

    def fresh_factors(
        self, rank: Any, shape: tuple[int, ...], values: Callable[..., Tensor]
    ) -> TRFactors:
        sizes = [n for digits in self.sizes or map(row_digits, shape) for n in digits]
        ranks = ring_ranks(rank, sizes, math.prod(shape))
        around = zip(sizes, ranks, (*ranks[1:], ranks[0]), strict=True)
        return TRFactors(tuple(values(r, n, s) for n, r, s in around), shape)

    def least_params(self, shape: tuple[int, ...]) -> int:
        return sum(sum(digits) for digits in self.sizes or map(row_digits, shape))


def _check_mode(mode: Any, init: str) -> None:
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise ArgumentError(f"mode={mode!r} must be an int, the core at which the ring begins")
    if mode and init != "svd":
        raise ArgumentError(f"mode={mode} goes with init='svd'; {init!r} begins nowhere")


def _core(mode: int, count: int, init: str) -> int:
    """The core that `mode` names, counted from the first."""
    _check_mode(mode, init)
    if not -count <= mode < count:
        raise ArgumentError(
            f"mode={mode} is no core of a ring of {count}; use one from {-count} to {count - 1}"
        )
    return mode % count


def _reason(factors: TRFactors, run: Descent[list[Tensor]]) -> str:
    return f"rank {factors.rank}, {run.how('a sweep gained nothing more')}"


def _smallest(
    fit: Callable[[Sequence[int]], Fit[TRFactors]], sizes: Sequence[int], dense: int, error: float
) -> Fit[TRFactors]:
    """The smallest uniform rank, of those tried, whose ring is within `error`."""
    most = max(1, min(max(rank_limits(sizes)), math.isqrt(dense // sum(sizes))))
    found = smallest_uniform(fit, [most] * len(sizes), error)
    if found.error > error:
        reason = f"uniform rank {most}, the largest within {dense:,} parameters, leaves more"
        warn(
            f"error={error} is out of reach: {reason} ({found.error:.3g}); ask for more, or take "
            "svd, whose error falls to that of rounding",
            TensorlrfWarning,
        )
        return replace(found, reason=f"{reason} than {error}")
    return found


def _split(
    sizes: Sequence[Sequence[int]] | None, shape: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """The sizes of the cores, mode by mode."""
    if sizes is None:
        return tuple((n,) for n in shape)
    check_sequence(sizes, "sizes", "((8, 4), (6, 5)), the factors of each mode")
    for k, parts in enumerate(sizes):
        check_sequence(parts, f"sizes[{k}]", "(8, 4), the factors of one mode")
    split = tuple(tuple(parts) for parts in sizes)
    for parts in split:
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in parts):
            raise ShapeError(f"sizes={split} must have ints of at least 1")
    if [math.prod(parts) for parts in split] != list(shape) or not all(split):
        raise ShapeError(
            f"sizes={split} multiply to {tuple(math.prod(parts) for parts in split)}; a ring has "
            f"no padding, for each of {tuple(shape)} give factors of it"
        )
    return split
