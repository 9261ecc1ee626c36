"""The arguments of `cp`, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition.linalg.multilinear._given import check_given
from tensorlrf.errors import ArgumentError, unknown
from tensorlrf.factors import CPFactors

if TYPE_CHECKING:
    from tensorlrf.decomposition.cp._problem import Problem

SOLVERS = ("auto", "als", "gauss-newton", "cprand", "leverage")
SAMPLING = ("cprand", "leverage")
INITS = ("auto", "random", "svd")

Callback = Callable[[CPFactors, float], Any]


@dataclass(frozen=True)
class Options:
    """What `fit_cp` was asked for, apart from the tensor and the rank."""

    sweeps: int
    init: str | CPFactors
    tol: float
    solver: str
    n_samples: int | None
    restarts: int
    fixed: frozenset[int]
    callback: Callback | None

    def kept(self, problem: Problem) -> dict[int, Tensor]:
        """The factors of the fixed modes as they are returned, by the mode in memory order."""
        if isinstance(self.init, str):
            return {}
        data = problem.data.blocks
        return {
            i: self.init.factors[k].to(data.device, problem.dtype)
            for i, k in enumerate(problem.order)
            if k in self.fixed
        }


def check_options(
    shape: Sequence[int],
    rank: int | None,
    *,
    n_iter_max: int,
    init: Any,
    tol: float,
    solver: str,
    n_samples: int | None,
    n_restarts: int,
    fixed_modes: Sequence[int],
    callback: Callback | None,
) -> Options:
    """Raises ArgumentError, ShapeError or RankError for whatever cannot be done."""
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if isinstance(init, str) and init not in INITS:
        raise unknown("init", init, (*INITS, "CPFactors", "(weights, factors)"))
    check_iteration(n_iter_max, tol)
    _check_count("n_restarts", n_restarts)
    if n_samples is not None:
        _check_count("n_samples", n_samples)
        if solver not in SAMPLING:
            raise ArgumentError(
                f"n_samples={n_samples} belongs to solver='cprand' or 'leverage'; "
                f"solver={solver!r} takes no samples"
            )
    fixed = _check_fixed(fixed_modes, len(shape))
    if solver == "gauss-newton" and (fixed or not isinstance(init, str)):
        raise ArgumentError(
            "solver='gauss-newton' starts by itself and fits all modes: with fixed_modes or given "
            "factors as init use solver='als'"
        )
    start: str | CPFactors
    if isinstance(init, str):
        start = init
        if fixed:
            raise ArgumentError(
                f"fixed_modes={tuple(fixed_modes)} keeps factors of the start, but init={init!r} "
                "is none of yours; pass init=CPFactors or (weights, factors)"
            )
    elif rank is None:
        raise ArgumentError("init is given factors, which have a rank; with error= use a word")
    elif n_restarts > 1:
        raise ArgumentError(
            f"n_restarts={n_restarts} with given factors as init would repeat one run; use 1"
        )
    else:
        start = check_given(init, tuple(shape), rank)
    return Options(n_iter_max, start, float(tol), solver, n_samples, n_restarts, fixed, callback)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}={value!r} must be an int of at least 1")


def _check_fixed(fixed_modes: Sequence[int], order: int) -> frozenset[int]:
    if not isinstance(fixed_modes, Iterable):
        raise ArgumentError(f"fixed_modes={fixed_modes!r} must be a sequence, such as (0,)")
    fixed = set()
    for k in fixed_modes:
        if isinstance(k, bool) or not isinstance(k, int) or not -order <= k < order:
            raise ArgumentError(
                f"fixed_modes={tuple(fixed_modes)}: {k!r} is no mode of a tensor of order {order}; "
                f"modes are 0 to {order - 1}"
            )
        fixed.add(k % order)
    if len(fixed) == order:
        raise ArgumentError(
            f"fixed_modes={tuple(fixed_modes)} fixes all {order} modes; leave one to be fitted"
        )
    return frozenset(fixed)
