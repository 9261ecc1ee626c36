"""CP of a small model: trials from several starts on a compressed tensor, Gauss-Newton steps from
the best of them, and sweeps on the tensor itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch

from tensorlrf.decomposition.cp._als import ridge_at, sweeps_of, unit_of
from tensorlrf.decomposition.cp._fit import ASKED, Outcome, Stopping, run_als
from tensorlrf.decomposition.cp._problem import Problem
from tensorlrf.decomposition.cp._start import random_start, svd_start
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.cp.joint._core import Core, compressed, widths
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.linalg.multilinear._projected import Array, Projected, descend

MOST = 512
"""Unknowns of a step up to which it costs no more than a few sweeps."""

WORTH = 2
"""Sweeps that a step counts for."""

TRIAL_SWEEPS, TRIAL_STEPS = 8, 5
"""Of each start, before the best of them goes on."""

POLISH = 20
"""Sweeps that are kept for the tensor itself, where its core leaves something out."""

TRIAL = TRIAL_SWEEPS + WORTH * TRIAL_STEPS
FEWEST = TRIAL + POLISH
"""Sweeps that must be allowed for all that to be worth its beginning."""

PLATEAU = 10
"""Steps are ended by gains so many times `tol`: they gain more than sweeps until they are done."""


def unknowns(shape: Sequence[int], rank: int) -> int:
    """Of a step: the entries of all factors of the core but the longest."""
    kept = widths(shape, rank)
    return rank * (sum(kept) - max(kept))


def is_worthwhile(shape: Sequence[int], rank: int, sweeps: int) -> bool:
    """Whether steps in all factors at once are cheap enough to be the rule."""
    return len(shape) > 2 and sweeps >= FEWEST and unknowns(shape, rank) <= MOST


def run_joint(
    problem: Problem,
    rank: int,
    inits: Sequence[str],
    finalists: int,
    stopping: Stopping,
    rng: torch.Generator,
) -> Outcome:
    """The best of starts by these words, "svd" or "random"; a step counts for `WORTH` sweeps.

    So many of them, the best after a few sweeps and steps, go on until steps gain no more.
    """
    core = compressed(problem, widths(problem.data.shape, rank))
    run = _Run(problem, rank, core, stopping)
    whole = run.core.lost == 0
    left = max(0, stopping.sweeps - TRIAL)
    settled = run.over(inits, finalists, (left if whole else max(0, left - POLISH)) // WORTH, rng)
    state, errors = run.state(), run.trace()
    told = f"{run.steps} Gauss-Newton steps in all factors"
    if run.stopped:
        return Outcome(state, (*errors, problem.error(state)), False, ASKED)
    if whole:
        reason = f"{told} were made, as many as n_iter_max={stopping.sweeps} sweeps are worth"
        if settled:
            reason = f"{told}, the last of which lower the error by less than {run.plateau:g} each"
        return Outcome(state, (*errors, problem.error(state)), settled, reason)
    rest = replace(stopping, sweeps=max(0, left - WORTH * (run.steps - TRIAL_STEPS)))
    ended = run_als(problem.data, problem.norm, state, rest, frozenset(), rescaled=True)
    return replace(ended, errors=(*errors, *ended.errors), reason=f"{told}, then {ended.reason}")


class _Run:
    """Starts on a core, and the eye of the callback on the best of them.

    plateau  the share of the error that a step must gain
    best     the one of the smallest loss so far
    errors   of the best, as the callback saw them
    steps    those of the best
    stopped  whether the callback asked for it
    """

    best: Projected

    def __init__(self, problem: Problem, rank: int, core: Core, stopping: Stopping) -> None:
        self.problem, self.rank = problem, rank
        self.core, self.stopping = core, stopping
        entries = core.entries
        self.longest = max(range(entries.ndim), key=entries.shape.__getitem__)
        self.tensor: Array = np.ascontiguousarray(np.moveaxis(entries.numpy(), self.longest, 0))
        self.square = float(np.square(self.tensor).sum())
        eps = torch.finfo(problem.data.blocks.dtype).eps
        self.least = (eps / 4) ** 2 * self.square
        self.plateau = PLATEAU * stopping.tol
        self.errors: list[float] = []
        self.stopped = False

    def over(self, inits: Sequence[str], finalists: int, steps: int, rng: torch.Generator) -> bool:
        """Trials, then so many steps at most of each finalist; whether the best of them was ended
        for what its steps gained."""
        starts = []
        for init in inits:
            if not self.stopped:
                starts.append(self._begun(init, rng))
                descend(starts[-1], TRIAL_STEPS, 0.0, self.least, self._look)
        settled = {}
        for start in sorted(starts, key=lambda start: start.point.loss)[:finalists]:
            if not self.stopped:
                ended = descend(start, steps, self.plateau, self.least, self._look)
                settled[id(start)] = ended
                if ended and not start.stuck and start.point.loss > self.least:
                    start.release(steps, self.plateau)
                    self._look(start)
        return settled.get(id(self.best), False)

    def _begun(self, init: str, rng: torch.Generator) -> Projected:
        """A start after a few sweeps."""
        entries = self.core.entries
        make = svd_start if init == "svd" else random_start
        state = make(entries, self.rank, 1, on_host(rng))
        ridges = [ridge_at(number, torch.float64) for number in range(TRIAL_SWEEPS)]
        sweeps = sweeps_of(CutTensor.of(entries), state, unit=unit_of(math.sqrt(self.square)))
        with torch.inference_mode():
            swept = sweeps.run(ridges).state()
        factors = [u[:, 0].numpy() for u in swept.factors]
        factors.pop(self.longest)
        return Projected(self.tensor, factors)

    @property
    def steps(self) -> int:
        return self.best.steps

    def state(self) -> CPState:
        """The best, as a model of X."""
        first, *others = self.best.point.factors
        factors = [
            torch.from_numpy(u) for u in (*others[: self.longest], first, *others[self.longest :])
        ]
        return self.core.expanded(
            factors,
            torch.ones(first.shape[1], dtype=torch.float64, device="cpu"),
            self.problem.tensor,
        )

    def trace(self) -> tuple[float, ...]:
        """Errors of the best, that of the end without its cast last. A fall of the ridge may have
        raised one on the way."""
        last = self._error()
        return (*(e for e in accumulate(self.errors, min) if e > last), last)

    def _error(self) -> float:
        share = self.best.point.loss / self.square if self.square > 0 else 0.0
        return math.sqrt(self.core.lost + (1 - self.core.lost) * share)

    def _look(self, start: Projected) -> bool:
        if not self.errors or start.point.loss <= self.best.point.loss:
            self.best = start
            self.errors.append(self._error())
        watch = self.stopping.watch
        self.stopped = watch is not None and watch(self.state(), self._error())
        return self.stopped


def on_host(rng: torch.Generator) -> torch.Generator:
    """It, or one on the host that it seeds."""
    if rng.device.type == "cpu":
        return rng
    seed = torch.randint(1 << 62, (), generator=rng, device=rng.device)
    return torch.Generator("cpu").manual_seed(int(seed))
