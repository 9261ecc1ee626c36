"""CP of a tensor that does not fit into memory, or lies with several ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._als import unit_of
from tensorlrf.decomposition.cp._cp import SWEEPS, TOL, warn_if_degenerate
from tensorlrf.decomposition.cp._fit import Stopping, run_sweeps
from tensorlrf.decomposition.cp._options import Callback, check_options
from tensorlrf.decomposition.cp._problem import as_factors
from tensorlrf.decomposition.cp._start import given_start, random_directions, top_eigenvectors
from tensorlrf.decomposition.cp._state import CPState, make_state
from tensorlrf.decomposition.large._cp_sweep import DividedSweeps, Passes
from tensorlrf.decomposition.large._divided import Reading, divided
from tensorlrf.decomposition.large._entered import entered
from tensorlrf.decomposition.large._fit import LargeFit
from tensorlrf.decomposition.large._look import look
from tensorlrf.decomposition.large._memory import Need, check_room, rows_within
from tensorlrf.decomposition.large._sides import mode_grams
from tensorlrf.decomposition.large._svd import fit_svd
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, cp_rank
from tensorlrf.factors import CPFactors, LowRank


@entered
def fit_cp(
    tensor: Any,
    rank: Rank,
    *,
    n_iter_max: int | None = None,
    init: Any = "random",
    tol: float | None = None,
    n_restarts: int = 1,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
    along: int | None = None,
    memory_limit: int | str | None = None,
) -> LargeFit[CPFactors]:
    """CP of a tensor that is read in slabs, or sharded over ranks.

    The iterates are those of `tensorlrf.cp`, from the same start, but that the divided mode is
    updated first and the others follow as they lie in memory.

    Parameters
    ----------
    tensor : Slabs, Sharded, DTensor, path, array or slice
        Of shape (n_1, ..., n_N), N >= 2; see `Slabs` and `Sharded`.
    rank : int, float or str
        As of `tensorlrf.cp`.
    n_iter_max : int, optional
        Sweeps over all modes, 100 by default.
    init : str, CPFactors or tuple
        "random", "svd" (leading singular vectors of the unfoldings, by their Grams, but of the
        divided mode, which is updated first), or the start itself, whose scale is of no
        consequence.
    tol : float, optional
        As of `tensorlrf.cp`: judged by the true error every ten sweeps, 1e-8 by default.
    n_restarts : int
        Independent starts, side by side: the data are read once for all of them. A matrix has one,
        its SVD (by `svd`, whose passes count).
    callback : callable, optional
        Called as callback(factors, error) at each checkpoint; returning True, on the first rank,
        stops.
    random_state : int or Generator, optional
        One for all ranks; None draws one.
    along : int, optional
        See `Slabs`.
    memory_limit : int or str, optional
        See `Slabs`; "1GB" by default.

    Returns
    -------
    CPFactors
        Whole, on every rank. Of `fit_cp` a `LargeFit` with the errors at checkpoints, passes and
        bytes sent.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        As `tensorlrf.cp`; for a limit below what is needed, which is named, and for ranks that do
        not make the same call.

    Warns
    -----
    DegenerateWarning
        Where the components are linearly dependent.

    Notes
    -----
    The first look is one pass, every sweep one, every true residual one (each ten sweeps, and after
    a cast to a dtype below float32), a given start or "svd" one more. Where the sum over the slabs,
    r prod n_k / n_d numbers, has no room a sweep takes up to N - 1 passes. With p ranks a sweep
    sends 2 (p - 1) / p (r sum n_k b + 8 r^2) bytes a rank, k over all modes but the divided one, b
    bytes a number (4, or 8 of float64); every ten sweeps 8 (2 r^2 + 1) more count likewise, and the
    end gathers the factor of the divided mode.

    References
    ----------
    Kolda & Bader 2009, section 3.4; Phan, Tichavsky & Cichocki 2013 (dimension tree); Ballard,
    Hayashi & Kannan 2018, "Parallel nonnegative CP decomposition of dense tensors" (local MTTKRP
    and one sum).

    Examples
    --------
    >>> import numpy
    >>> a, b, c = (numpy.random.rand(n, 2) for n in (40, 30, 20))
    >>> f = tensorlrf.large.cp(numpy.einsum("ir,jr,kr->ijk", a, b, c), 2, memory_limit="200MB")
    >>> f.shape, f.rank
    ((40, 30, 20), 2)
    """
    whole = divided(tensor, along, memory_limit)
    reading = Reading(whole)
    reading.agree(
        "cp", rank=rank, n_iter_max=n_iter_max, init=init, tol=tol, n_restarts=n_restarts,
        callback=callback, random_state=random_state,
    )  # fmt: skip
    checked, _ = check_rank_or_error(rank, None)
    r = cp_rank(checked or 0, whole.shape)
    options = check_options(
        whole.shape,
        r,
        n_iter_max=SWEEPS if n_iter_max is None else n_iter_max,
        init=init,
        tol=TOL if tol is None else tol,
        solver="als",
        n_samples=None,
        n_restarts=n_restarts,
        fixed_modes=(),
        callback=callback,
    )
    rng = reading.generator(random_state)
    width = r * options.restarts
    passes = reading.together(lambda: Passes.within(reading, width))
    norm = look(reading)
    # A scale takes a copy of each piece.
    passes = reading.together(lambda: Passes.within(reading, width))
    # A matrix starts at its truncated SVD, which is optimal.
    found = None
    if len(whole.shape) == 2 and isinstance(options.init, str):
        found = fit_svd(whole, min(r, *whole.shape), random_state=rng, measure=False)
        options = replace(options, init=_of_sides(found.factors, r), restarts=1)
    given = not isinstance(options.init, str)
    state = _start(reading, options.init, r, options.restarts, rng)

    def factors_at(state: CPState) -> CPFactors:
        rows = torch.cat(reading.group.rows(state.factors[0]))
        known = CPState((rows, *state.factors[1:]), state.weights)
        return as_factors(known, reading.scale, whole.dtype, reading.axes)

    def watch(call: Callback) -> Callable[[CPState, float], bool]:
        def asked(state: CPState, error: float) -> bool:
            return bool(reading.group.first(bool(call(factors_at(state), error))))

        return asked

    stopping = Stopping(options.sweeps, options.tol, watch(callback) if callback else None)
    sweeps = DividedSweeps(reading, passes, state, unit_of(norm))
    outcome = run_sweeps(sweeps, reading.dtype, norm, stopping, rescaled=given)
    factors, errors = factors_at(outcome.state), outcome.errors
    if whole.dtype != reading.dtype:
        cast = _state_of(factors, reading)
        (square,) = DividedSweeps(reading, passes, cast, 1.0).square_residuals()
        errors = (*errors, square**0.5 / (norm if norm > 0 else 1.0))
    warn_if_degenerate(_state_of(factors, reading, whole=True))
    return LargeFit(
        factors,
        errors,
        outcome.converged,
        outcome.reason,
        passes=reading.passes + (found.passes if found else 0),
        bytes_sent=reading.group.bytes_sent + (found.bytes_sent if found else 0),
    )


cp = factors_of(fit_cp)


def _of_sides(sides: LowRank, rank: int) -> CPFactors:
    """A matrix as terms; those beyond the rank that it has are zero."""
    more = rank - sides.left.shape[1]
    columns = (sides.left, sides.right.T)
    return CPFactors(
        torch.ones(rank, dtype=sides.dtype, device=sides.device),
        tuple(torch.nn.functional.pad(u, (0, more)) for u in columns),
    )


def _start(
    reading: Reading, init: str | CPFactors, rank: int, starts: int, rng: torch.Generator
) -> CPState:
    """The first iterates, of the first mode the rows of this process."""
    if not isinstance(init, str):
        like = torch.empty(0, dtype=reading.dtype, device=reading.device)
        columns = [init.factors[k] for k in reading.axes]
        state = given_start(init.weights, columns, like, frozenset(), rng)
    else:
        # Drawn as the modes lie, whichever of them is the divided one.
        sizes = [reading.tensor.shape[k] for k in reading.order]
        drawn = random_directions(sizes, rank, starts, reading.dtype, reading.device, rng)
        factors = tuple(drawn.factors[reading.order.index(k)] for k in reading.axes)
        state = CPState(factors, drawn.weights)
        if init == "svd":
            state = _with_leading(reading, state, rank, rng)
    return CPState((state.factors[0][reading.own], *state.factors[1:]), state.weights)


def _with_leading(reading: Reading, state: CPState, rank: int, rng: torch.Generator) -> CPState:
    """The first start in the leading directions of the unfoldings, but along the divided mode."""
    sizes, modes = reading.shape, range(1, len(reading.shape))
    held = 8 * (sum(sizes[k] ** 2 for k in modes) + 4 * max(sizes[1:]) ** 2)
    need = Need(held, reading.row_bytes())
    reading.together(lambda: check_room("init='svd'", reading.limit, [need], reading.axes[0]))
    rows = rows_within(reading.limit, need, reading.most)
    factors = [u.clone() for u in state.factors]
    for k, gram in mode_grams(reading, rows, modes).items():
        basis = top_eigenvectors(gram, min(rank, sizes[k]), rng).to(reading.dtype)
        factors[k][:, 0, : basis.shape[1]] = basis
    return make_state(factors, state.weights)


def _state_of(factors: CPFactors, reading: Reading, whole: bool = False) -> CPState:
    """The state of factors that were made here; of the first mode the rows of this process, unless
    the whole is wanted."""
    columns: list[Tensor] = [factors.factors[k].to(reading.dtype)[:, None, :] for k in reading.axes]
    state = make_state(columns, factors.weights.to(torch.float64)[None, :] / reading.scale)
    if whole:
        return state
    return CPState((state.factors[0][reading.own], *state.factors[1:]), state.weights)
