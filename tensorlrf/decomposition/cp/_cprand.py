"""CP by randomised least squares, with mixing (Battaglino, Ballard & Kolda 2018, CPRAND-MIX) or by
leverage (Larsen & Kolda 2022).

Three phases. Sampled sweeps, on a mixed sketch of the tensor or on fibres of the tensor itself,
bring several starts, side by side, near their ends. A sketch also holds the range of each unfolding
(Halko, Martinsson & Tropp 2011); where the rank is below n_k, the starts go on to convergence on
the tensor compressed to these ranges, a small core (Carroll, Pruzansky & Kruskal 1980, CANDELINC).
A few exact sweeps end the best one. The host looks at checkpoints only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._als import RIDGE_FLOOR, ridge_at, sweeps_of, unit_of
from tensorlrf.decomposition.cp._cprand_mixed import Judge, MixedSampler
from tensorlrf.decomposition.cp._fit import (
    CHECKPOINT_EVERY,
    Outcome,
    Stopping,
    relative,
    run_als,
    settled,
    watched,
)
from tensorlrf.decomposition.cp._leverage import LeverageSampler
from tensorlrf.decomposition.cp._problem import Problem
from tensorlrf.decomposition.cp._sketch import (
    Sketch,
    leading_directions,
    mode_product,
    sketch_tensor,
)
from tensorlrf.decomposition.cp._state import CPState, make_state
from tensorlrf.decomposition.cp._sweep import Sweeps
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.linalg.multilinear._residual import norm_of

MAX_EXACT_SWEEPS = 10
STARTS = 8  # sampled sweeps are cheap, a bad local minimum is not
OVERSAMPLING = 10  # directions of a core's mode beyond the rank
CORE_SWEEPS = 300
_SAMPLED_BEFORE_CORE = 30
_CORE_TOL = 1e-4
_GROWTH = 4  # of the sample, when progress slows
_SLOW = 1e-3  # relative fall of the sampled error in one sweep that counts as slow
_SETTLED = 2e-4  # the same for an exact sweep
_LOOK_EVERY = 1  # exact sweeps between looks: each reads the full tensor twice, a look one number
_CANCELS_BELOW = 1e-3  # squared relative error under which a difference of norms is not trusted


@dataclass(frozen=True)
class Samples:
    """How many rows each least-squares system is given: `now`, growing up to `most`."""

    now: int
    most: int

    def grown(self) -> Samples:
        return replace(self, now=min(self.most, _GROWTH * self.now))


def default_samples(rank: int) -> int:
    """10 r log r rows (Battaglino, Ballard & Kolda 2018, section 5)."""
    return math.ceil(10 * rank * math.log(rank + 1))


def grid_sizes(shape: Sequence[int], rank: int, samples: int) -> tuple[int, ...]:
    """Mixed rows kept of each mode: enough for its factor's columns, and for the sample.

    A mode that would be shortened by less than a quarter is kept whole.
    """
    order = len(shape)
    wanted = max(2 * rank + 10, math.ceil(samples ** (1 / max(1, order - 1))))
    return tuple(n if wanted >= 0.75 * n else wanted for n in shape)


def run_cprand(
    problem: Problem,
    state: CPState,
    stopping: Stopping,
    fixed: frozenset[int],
    n_samples: int | None,
    rng: torch.Generator,
) -> Outcome:
    """Sweeps on a mixed sketch, of all starts, then exact sweeps of the best one."""
    plan = _Plan.of(problem, state, stopping, fixed, n_samples)
    sketch = sketch_tensor(problem.tensor, plan.grid, rng)
    sampler = MixedSampler(sketch, Judge.make(sketch, plan.samples.most, rng))
    return _run(problem, state, sampler, sketch, plan, stopping, fixed, rng)


def run_leverage(
    problem: Problem,
    state: CPState,
    stopping: Stopping,
    fixed: frozenset[int],
    n_samples: int | None,
    rng: torch.Generator,
) -> Outcome:
    """Sweeps on fibres drawn by leverage, of all starts, then exact sweeps of the best one."""
    plan = _Plan.of(problem, state, stopping, fixed, n_samples)
    sampler = LeverageSampler.make(problem.tensor, problem.norm, rng)
    sketch = sketch_tensor(problem.tensor, plan.grid, rng)
    if state.starts > 1 and not bool(state.weights.any()):
        state = _informed(sketch, state, fixed)
    return _run(problem, state, sampler, sketch, plan, stopping, fixed, rng)


@dataclass(frozen=True)
class _Plan:
    """How large the samples, the sketch and the core are, and how long sampled sweeps go on."""

    samples: Samples
    grid: tuple[int, ...]
    widths: dict[int, int]
    sampled: Stopping

    @classmethod
    def of(
        cls,
        problem: Problem,
        state: CPState,
        stopping: Stopping,
        fixed: frozenset[int],
        n_samples: int | None,
    ) -> _Plan:
        rank = state.weights.shape[1]
        first = default_samples(rank) if n_samples is None else n_samples
        shape = problem.tensor.shape
        widths = core_widths(shape, rank, fixed)
        if widths:  # the core finishes what a small sample begins
            samples = Samples(first, first)
            sampled = replace(stopping, sweeps=min(stopping.sweeps, _SAMPLED_BEFORE_CORE))
        else:
            samples = Samples(first, max(first, 100 * rank))
            sampled = stopping
        return cls(samples, grid_sizes(shape, rank, first), widths, sampled)


class Sampler(Protocol):
    """Sampled sweeps of several starts, and estimates of their errors."""

    @property
    def dtype(self) -> torch.dtype: ...

    def sweep(
        self,
        state: CPState,
        samples: int,
        ridge: float,
        fixed: frozenset[int],
        rng: torch.Generator,
    ) -> CPState: ...

    def errors(self, state: CPState) -> list[float]: ...


def _run(
    problem: Problem,
    state: CPState,
    sampler: Sampler,
    sketch: Sketch,
    plan: _Plan,
    stopping: Stopping,
    fixed: frozenset[int],
    rng: torch.Generator,
) -> Outcome:
    state, trace, stopped = _sampled_phase(sampler, state, plan.samples, plan.sampled, fixed, rng)
    if not stopped:
        state = _core_phase(problem.tensor, sketch, state, plan.widths, fixed)
    return _exact_phase(problem, state, trace, stopping, fixed, stopped)


def _informed(sketch: Sketch, state: CPState, fixed: frozenset[int]) -> CPState:
    """The last of random starts moved to the leading directions of the unfoldings.

    Leverage is that of the model so far: what a random one does not see, such as a few large
    entries, it would hardly draw.
    """
    factors = [u.clone() for u in state.factors]
    for mode, u in enumerate(factors):
        if mode not in fixed:
            basis = leading_directions(sketch.unfoldings[mode], u.shape[2])
            u[:, -1, : basis.shape[1]] = basis
    return make_state(factors, state.weights)


def _sampled_phase(
    sampler: Sampler,
    state: CPState,
    samples: Samples,
    stopping: Stopping,
    fixed: frozenset[int],
    rng: torch.Generator,
) -> tuple[CPState, tuple[float, ...], bool]:
    """Starts after sampled sweeps, the best estimated errors, and whether the user stopped."""

    def run(numbers: range) -> list[float]:
        nonlocal state
        for number in numbers:
            ridge = ridge_at(number, sampler.dtype)
            state = sampler.sweep(state, samples.now, ridge, fixed, rng)
        return sampler.errors(state)

    def ended(history: list[list[float]], made: int) -> bool:
        nonlocal samples
        *before, error = map(min, history)
        if error <= min(before, default=math.inf) * (1 - _SLOW * made):
            return False
        # The noise of the sample is all that is left, as long as the sample is no larger.
        largest = samples.now == samples.most
        samples = samples.grown()
        return largest

    history, _, stopped = watched(run, lambda: state, stopping, CHECKPOINT_EVERY, ended)
    if stopped:
        state = state.start(history[-1].index(min(history[-1])))
    return state, tuple(map(min, history)), stopped


def core_widths(shape: Sequence[int], rank: int, fixed: frozenset[int]) -> dict[int, int]:
    """Mode -> directions kept of it in the core; modes that would hardly shrink are left out."""
    width = rank + OVERSAMPLING
    return {k: width for k, n in enumerate(shape) if k not in fixed and width < 0.75 * n}


def _core_phase(
    tensor: Tensor,
    sketch: Sketch,
    state: CPState,
    widths: dict[int, int],
    fixed: frozenset[int],
) -> CPState:
    """The best start after ALS on the tensor compressed to the ranges of its unfoldings."""
    bases = {k: leading_directions(sketch.unfoldings[k], width) for k, width in widths.items()}
    core = tensor
    for mode in sorted(bases, key=lambda k: bases[k].shape[1] / bases[k].shape[0]):
        core = mode_product(core, bases[mode].T, mode)
    factors = [bases[k].T @ u.flatten(1) if k in bases else u for k, u in enumerate(state.factors)]
    factors = [f.reshape(-1, *u.shape[1:]) for f, u in zip(factors, state.factors, strict=True)]
    data = CutTensor.of(core)
    sweeps = CORE_SWEEPS if bases else 0
    outcome = run_als(
        data,
        norm_of(data),
        make_state(factors, state.weights),
        Stopping(sweeps, _CORE_TOL),
        fixed,
    )
    found = outcome.state.factors
    return make_state(
        [
            (bases[k] @ u.flatten(1)).view(-1, *u.shape[1:]) if k in bases else u
            for k, u in enumerate(found)
        ],
        outcome.state.weights,
    )


def _exact_phase(
    problem: Problem,
    state: CPState,
    trace: tuple[float, ...],
    stopping: Stopping,
    fixed: frozenset[int],
    stopped: bool,
) -> Outcome:
    """At most ten exact sweeps, ended as soon as one lowers the error too little."""
    dtype = problem.data.blocks.dtype
    state = make_state(list(state.factors), state.weights)
    sweeps = sweeps_of(problem.data, state, fixed, unit_of(problem.norm))

    def run(numbers: range) -> list[float]:
        sweeps.run([RIDGE_FLOOR[dtype]] * len(numbers))
        return [_progress(problem, sweeps)]

    made = 0 if stopped else MAX_EXACT_SWEEPS
    history, converged, halted = watched(
        run,
        sweeps.state,
        replace(stopping, sweeps=made),
        _LOOK_EVERY,
        settled(_SETTLED, 4 * torch.finfo(dtype).eps),
    )
    reason = f"{MAX_EXACT_SWEEPS} exact sweeps were made"
    if converged:
        reason = f"exact sweeps lower the error by less than {_SETTLED:g} of itself"
    elif stopped or halted:
        reason = "the callback asked to stop"
    errors = [errors[0] for errors in history]
    error = _true_error(problem, sweeps)
    return Outcome(sweeps.state(), (*trace, *errors, error), converged, reason)


def _progress(problem: Problem, sweeps: Sweeps[Any]) -> float:
    """Relative error from norms the sweep left behind; the true one where those would cancel."""
    share = 1 + sweeps.progress()[0] / problem.norm**2 if problem.norm > 0 else 0.0
    return math.sqrt(share) if share > _CANCELS_BELOW else _true_error(problem, sweeps)


def _true_error(problem: Problem, sweeps: Sweeps[Any]) -> float:
    return relative(sweeps.square_residuals(), problem.norm or 1.0)[0]
