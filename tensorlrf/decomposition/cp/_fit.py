"""The driver of CP-ALS: checkpoints, stopping, restarts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tensorlrf.decomposition.cp._als import ridge_at, sweeps_of, unit_of
from tensorlrf.decomposition.cp._mttkrp import CutTensor
from tensorlrf.decomposition.cp._state import CPState

CHECKPOINT_EVERY = 10  # sweeps between true residuals, the only points where the host looks


@dataclass(frozen=True)
class Outcome:
    """A start run to its end: one state, the relative errors of its checkpoints, why it ended."""

    state: CPState
    errors: tuple[float, ...]
    converged: bool
    reason: str

    @property
    def error(self) -> float:
        """That of the last checkpoint."""
        return self.errors[-1]


@dataclass(frozen=True)
class Stopping:
    """When to stop: at most `sweeps`, or when an error falls by less than `tol` of itself a sweep.

    tol = 0 makes all sweeps.
    `watch(state, error)` sees the best start at each checkpoint, and stops by returning True.
    """

    sweeps: int
    tol: float
    watch: Callable[[CPState, float], bool] | None = None


def run_als(
    tensor: CutTensor,
    norm: float,
    state: CPState,
    stopping: Stopping,
    fixed: frozenset[int],
    *,
    rescaled: bool = False,
) -> Outcome:
    """ALS of all starts of `state` together; the best one is returned.

    norm is ||X||; a zero tensor has absolute errors. With `rescaled` each start first gets the
    scale at which it is nearest to X.
    """
    scale = norm if norm > 0 else 1.0
    dtype = tensor.blocks.dtype
    noise = 4 * torch.finfo(dtype).eps
    sweeps = sweeps_of(tensor, state, fixed, unit_of(norm))
    if rescaled:
        sweeps.rescale()
    history: list[list[float]] = []
    converged, reason = False, f"n_iter_max={stopping.sweeps} sweeps were made"
    done = 0
    # Where nothing is decided at a checkpoint, the only one is the end.
    every = CHECKPOINT_EVERY if stopping.tol > 0 or stopping.watch else max(1, stopping.sweeps)
    if stopping.sweeps == 0:
        history.append(relative(sweeps.square_residuals(), scale))
    while done < stopping.sweeps:
        block = min(every, stopping.sweeps - done)
        # A sweep is many small operations, which cost less where autograd has nothing to note.
        with torch.inference_mode():
            sweeps.run([ridge_at(sweep, dtype) for sweep in range(done, done + block)])
        done += block
        errors = relative(sweeps.square_residuals(), scale)
        history.append(errors)
        best = errors.index(min(errors))
        if stopping.watch is not None and stopping.watch(sweeps.state().start(best), errors[best]):
            reason = "the callback asked to stop"
            break
        if stopping.tol > 0 and max(errors) <= noise:
            converged, reason = True, "the error is at the rounding of the dtype"
            break
        enough = stopping.tol * block
        if enough > 0 and len(history) > 1 and _settled(history[-2], errors, enough, noise):
            converged = True
            reason = f"the error falls by less than tol={stopping.tol:g} of itself a sweep"
            break
    final = history[-1]
    best = final.index(min(final))
    trace = tuple(errors[best] for errors in history)
    return Outcome(sweeps.state().start(best), trace, converged, reason)


def relative(squares: Sequence[float], scale: float) -> list[float]:
    """Relative errors from squared residuals."""
    return [math.sqrt(value) / scale for value in squares]


def _settled(before: list[float], after: list[float], share: float, noise: float) -> bool:
    return all(b - a <= share * b or a <= noise for b, a in zip(before, after, strict=True))
