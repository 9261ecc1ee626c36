"""The driver of CP-ALS: checkpoints, stopping, restarts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tensorlrf.decomposition.cp._als import ridge_at, sweeps_of, unit_of
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.cp._sweep import Sweeps
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor

ASKED = "the callback asked to stop"
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


Ended = Callable[[list[list[float]], int], bool]
"""From the errors of all checkpoints, and the sweeps before the last one: is that the end?"""


def watched(
    run: Callable[[range], list[float]],
    state: Callable[[], CPState],
    stopping: Stopping,
    every: int,
    ended: Ended,
) -> tuple[list[list[float]], bool, bool]:
    """The loop of CP: all starts side by side, and the host looks at checkpoints only.

    `run` makes the sweeps of these numbers and gives the relative errors of all starts; they may
    change the state in place, so none is undone. Returns the errors, whether `ended` said so, and
    whether the callback asked to stop.
    """
    history: list[list[float]] = []
    for done in range(0, stopping.sweeps, every):
        numbers = range(done, min(done + every, stopping.sweeps))
        errors = run(numbers)
        history.append(errors)
        best = errors.index(min(errors))
        if stopping.watch is not None and stopping.watch(state().start(best), errors[best]):
            return history, False, True
        if ended(history, len(numbers)):
            return history, True, False
    return history, False, False


def settled(tol: float, noise: float) -> Ended:
    """Whether the errors of all starts fall by less than `tol` of themselves a sweep, or are at
    `noise`; for 0 never."""

    def ended(history: list[list[float]], made: int) -> bool:
        *before, errors = history
        if tol == 0 or not before:
            return tol > 0 and max(errors) <= noise
        pairs = zip(before[-1], errors, strict=True)
        return all(b - a <= tol * made * b or a <= noise for b, a in pairs)

    return ended


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
    sweeps = sweeps_of(tensor, state, fixed, unit_of(norm))
    return run_sweeps(sweeps, tensor.blocks.dtype, norm, stopping, rescaled=rescaled)


def run_sweeps(
    sweeps: Sweeps[Any],
    dtype: torch.dtype,
    norm: float,
    stopping: Stopping,
    *,
    rescaled: bool = False,
) -> Outcome:
    """The same with sweeps at their start."""
    scale = norm if norm > 0 else 1.0
    noise = 4 * torch.finfo(dtype).eps
    if rescaled:
        sweeps.rescale()

    def run(numbers: range) -> list[float]:
        # A sweep is many small operations, which cost less where autograd has nothing to note.
        with torch.inference_mode():
            sweeps.run([ridge_at(number, dtype) for number in numbers])
        return relative(sweeps.square_residuals(), scale)

    # Where nothing is decided at a checkpoint, the only one is the end.
    every = CHECKPOINT_EVERY if stopping.tol > 0 or stopping.watch else max(1, stopping.sweeps)
    history, converged, stopped = watched(
        run, sweeps.state, stopping, every, settled(stopping.tol, noise)
    )
    history = history or [relative(sweeps.square_residuals(), scale)]
    final = history[-1]
    if stopped:
        reason = ASKED
    elif not converged:
        reason = f"n_iter_max={stopping.sweeps} sweeps were made"
    elif max(final) <= noise:
        reason = "the error is at the rounding of the dtype"
    else:
        reason = f"the error falls by less than tol={stopping.tol:g} of itself a sweep"
    best = final.index(min(final))
    trace = tuple(errors[best] for errors in history)
    return Outcome(sweeps.state().start(best), trace, converged, reason)


def relative(squares: Sequence[float], scale: float) -> list[float]:
    """Relative errors from squared residuals."""
    return [math.sqrt(value) / scale for value in squares]
