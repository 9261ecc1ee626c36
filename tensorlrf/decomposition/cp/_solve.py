"""One rank with restarts, and the search over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from tensorlrf.decomposition._search import doubled, smallest_within
from tensorlrf.decomposition.cp._als import sweeps_of
from tensorlrf.decomposition.cp._cprand import STARTS, run_cprand, run_leverage
from tensorlrf.decomposition.cp._fit import Outcome, Stopping, run_als
from tensorlrf.decomposition.cp._options import SAMPLING, Options
from tensorlrf.decomposition.cp._problem import Problem
from tensorlrf.decomposition.cp._state import CPState, make_state
from tensorlrf.decomposition.cp.joint._run import is_worthwhile, run_joint

# Starts run side by side while their intermediates stay small: below this many entries, or below
# this share of the tensor.
_TOGETHER_ENTRIES = 1 << 18
_TOGETHER_SHARE = 4


def solve(problem: Problem, rank: int, options: Options, rng: torch.Generator) -> Outcome:
    """The best of `options.restarts` starts."""
    fixed = frozenset(i for i, k in enumerate(problem.order) if k in options.fixed)
    stopping = Stopping(options.sweeps, options.tol, _watch(problem, options))
    # A matrix has one start, its singular value decomposition.
    restarts = options.restarts if len(problem.order) > 2 else 1
    given = not isinstance(options.init, str)
    if options.solver in SAMPLING:
        run = run_cprand if options.solver == "cprand" else run_leverage
        starts = STARTS if isinstance(options.init, str) and len(problem.order) > 2 else 1
        state = problem.start(options.init, rank, max(starts, restarts), fixed, rng)
        if given:
            state = sweeps_of(problem.data, state).rescale().state()
        return run(problem, state, stopping, fixed, options.n_samples, rng)
    joint = options.solver == "gauss-newton" or (
        options.solver == "auto"
        and not (given or fixed)
        and is_worthwhile(problem.data.shape, rank, options.sweeps)
    )
    if joint and len(problem.order) > 2 and problem.norm > 0:
        return run_joint(problem, rank, _inits(options), restarts, stopping, rng)
    together = _together(problem, rank)
    outcomes = []
    for first in range(0, restarts, together):
        init = options.init if first == 0 else "random"
        state = problem.start(init, rank, min(together, restarts - first), fixed, rng)
        outcomes.append(run_als(problem.data, problem.norm, state, stopping, fixed, rescaled=given))
    return min(outcomes, key=lambda outcome: outcome.errors[-1])


def _inits(options: Options) -> list[str]:
    """The words by which starts begin: from an SVD, and at random at least once, where neither was
    asked for."""
    if options.init == "auto":
        return ["svd", *["random"] * max(1, options.restarts - 1)]
    return [str(options.init), *["random"] * (options.restarts - 1)]


def _together(problem: Problem, rank: int) -> int:
    entries = max(_TOGETHER_ENTRIES, problem.data.blocks.numel() // _TOGETHER_SHARE)
    return max(1, entries // (problem.data.cut.width * rank))


def _watch(problem: Problem, options: Options) -> Callable[[CPState, float], bool] | None:
    callback = options.callback
    if callback is None:
        return None
    kept = options.kept(problem)
    return lambda state, error: bool(callback(problem.factors(state, kept), error))


def search_rank(problem: Problem, error: float, options: Options, rng: torch.Generator) -> Outcome:
    """A small rank whose error is at most `error`: double, then bisect, from warm starts.

    At the rank size / max n_k every tensor has an exact model (one term for each fibre of the
    longest mode), so the doubling ends there at the latest.
    """
    most = problem.data.blocks.numel() // max(problem.data.shape)
    warm = _WarmStarts(problem, error, options, rng)
    found = smallest_within(warm.fit, error, doubled(most))
    if not found.within:
        reason = f"error={error:g} was not met up to rank {found.rank}"
        return replace(found.fit, converged=False, reason=reason)
    until = Stopping(options.sweeps, options.tol, _watch(problem, options))
    final = run_als(problem.data, problem.norm, found.fit.state, until, frozenset())
    reason = f"rank {found.rank} meets error={error:g}; {final.reason}"
    return replace(final, converged=True, reason=reason)


class _WarmStarts:
    """Fits of one rank after the other until `error`, each from the nearest ranks there were.

    below, above   of the largest rank so far that did not keep the error, and the smallest that did
    """

    def __init__(
        self, problem: Problem, error: float, options: Options, rng: torch.Generator
    ) -> None:
        self.problem, self.error, self.options, self.rng = problem, error, options, rng
        self.below: CPState | None = None
        self.above: CPState | None = None

    def fit(self, rank: int) -> Outcome:
        """From the components above, or a start of its own, and from those below and new ones."""
        problem, options = self.problem, self.options
        if self.above is None:
            fresh = problem.start(options.init, rank, 1, frozenset(), self.rng)
            states = [*self._grown(rank), fresh]
        else:
            states = [_shrink(self.above, rank), *self._grown(rank)]
        until = Stopping(options.sweeps, options.tol, lambda _, reached: reached <= self.error)
        together = _side_by_side(states)
        outcome = run_als(problem.data, problem.norm, together, until, frozenset())
        if outcome.error <= self.error:
            self.above = outcome.state
        else:
            self.below = outcome.state
        return outcome

    def _grown(self, rank: int) -> list[CPState]:
        return [] if self.below is None else [_grow(self.below, rank, self.rng)]


def _side_by_side(states: Sequence[CPState]) -> CPState:
    """Starts of equal rank as one state of several."""
    modes = range(len(states[0].factors))
    factors = [torch.cat([s.factors[k] for s in states], dim=1) for k in modes]
    return make_state(factors, torch.cat([s.weights for s in states]))


def _grow(state: CPState, rank: int, rng: torch.Generator) -> CPState:
    """More components: random directions of weight zero behind those there are."""
    factors = []
    for u in state.factors:
        n, starts, r = u.shape
        new = torch.randn(n, starts, rank - r, generator=rng, device=u.device, dtype=u.dtype)
        factors.append(torch.cat([u, new], dim=2))
    zeros = state.weights.new_zeros(state.starts, rank - state.weights.shape[1])
    return make_state(factors, torch.cat([state.weights, zeros], dim=1))


def _shrink(state: CPState, rank: int) -> CPState:
    """The components of largest weight (of a single start)."""
    largest = state.weights[0].argsort(descending=True)[:rank]
    return make_state([u[:, :, largest] for u in state.factors], state.weights[:, largest])
