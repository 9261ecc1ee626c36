"""Minimisation within a bound by a projected quasi-Newton method of limited memory (Nocedal 1980;
Bertsekas 1982 for the projection; Byrd, Nocedal & Schnabel 1994 for the compact form), which
begins with the metric of alternating least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._dense import Objective
from tensorlrf.decomposition.generalized._metric import Metric, metric_at

MEMORY = 10
"""Steps that the metric is made of."""

ENOUGH = 1e-4
"""Share of what a step promises that it must lower the loss by (Armijo 1966)."""

CURVED = 0.9
"""Share of the slope along a step that may be left at its end; where more is, it is lengthened."""

HALVINGS = 25

STEEPER = 100
"""Times as steep as before that a point may be which a step leads to."""

HELD = 3
"""Times that a direction is made anew because entries of it led beyond the bound."""

STOPPED = "stopped by callback"

SPAN = 5
"""Steps whose gains are put together to be judged."""


Ahead = Callable[[Tensor, Sequence[float]], Tensor | None]
"""From a point, and the losses so far, to the next."""


FIRST = 2
"""Steps ahead that are not judged."""


@dataclass(frozen=True)
class Course:
    """Where a minimisation has led to.

    losses     at the start and after each step, none above the one before
    residuals  likewise the largest entry of the projected gradient, relative to the first
    """

    point: Tensor
    losses: tuple[float, ...]
    residuals: tuple[float, ...]
    converged: bool
    reason: str


@dataclass(frozen=True)
class _At:
    point: Tensor
    loss: float
    gradient: Tensor

    @cached_property
    def steepest(self) -> float:
        return float(self.gradient.abs().max())


def minimise(
    objective: Objective,
    start: Tensor,
    shape: Sequence[int],
    lower: float,
    tol: float,
    n_iter_max: int,
    watch: Callable[[Tensor, float], bool],
    ahead: Ahead | None = None,
) -> Course:
    """From `start`, no entry of which is below `lower`, as far as steps gain something.

    shape  of the tensor
    tol    the end is where the last steps gained, each, no more than this share of all that was
           gained since the start
    watch  sees the point and its loss after each step, and ends it by returning True
    ahead  gives the first steps, of another kind, until it gives None or one that gains nothing;
           they converge fast, and each is judged by itself
    """
    here = _At(start, *objective(start))
    losses, residuals = [here.loss], [_residual(here, lower)]
    pairs = _Pairs(start.numel(), start.device)
    unit = residuals[0] or 1.0

    def ended(converged: bool, reason: str) -> Course:
        told = tuple(r / unit for r in residuals)
        return Course(here.point, tuple(losses), told, converged, reason)

    if not residuals[0]:
        return ended(True, "the start is stationary")
    for number in range(1, n_iter_max + 1):
        new = None if ahead is None else _led(objective, here, ahead(here.point, losses))
        if new is None:
            ahead, new = None, _step(objective, here, pairs, lower, shape)
        if new is None and pairs.count:  # a metric that misleads is made anew
            pairs.forget()
            new = _step(objective, here, pairs, lower, shape)
        if new is None:
            if number == 1:
                return ended(
                    False, "no step from the start lowers the loss, whose derivative says so"
                )
            return ended(True, f"step {number} met rounding")
        if ahead is None:
            pairs.note(new.point - here.point, new.gradient - here.gradient)
        here = new
        losses.append(here.loss)
        residuals.append(_residual(here, lower))
        if watch(here.point, here.loss):
            return ended(False, f"{STOPPED} after step {number}")
        if not residuals[-1]:
            return ended(True, f"step {number} led to a stationary point")
        span, first = (SPAN, SPAN) if ahead is None else (1, FIRST)
        if number > first and losses[-1 - span] - here.loss <= tol * span * (losses[0] - here.loss):
            return ended(True, f"step {number} lowered the loss by less than tol")
    return ended(False, f"n_iter_max={n_iter_max} steps")


def _led(objective: Objective, here: _At, point: Tensor | None) -> _At | None:
    """There, if that lowers the loss."""
    if point is None:
        return None
    new = _At(point, *objective(point))
    return new if new.loss < here.loss else None


def _residual(at: _At, lower: float) -> float:
    """Zero where no entry may move to lower the loss."""
    moved = (at.point - at.gradient).clamp_min(lower) - at.point
    return float(moved.abs().max())


def _step(
    objective: Objective, here: _At, pairs: _Pairs, lower: float, shape: Sequence[int]
) -> _At | None:
    """The next point, by a search along the projection of a direction on the bound; None where
    it lowers no loss."""
    g = here.gradient
    direction = _direction(here, pairs, lower, metric_at(here.point, shape))
    slope = float(torch.vdot(direction.view(-1), g.view(-1)))
    if not slope < 0:
        return None
    length = 1.0
    if not pairs.count:  # a first step of a tenth of the point, at most
        size = float(direction.norm())
        length = min(1.0, 0.1 * (float(here.point.norm()) or 1.0) / size)
    return _search(objective, here, direction, slope, length, lower)


def _direction(here: _At, pairs: _Pairs, lower: float, metric: Metric) -> Tensor:
    """Where the metric points. Entries that it and the gradient would have beyond the bound go as
    far as there, and the metric is that of the others (two-metric projection)."""
    g, point = here.gradient, here.point
    if lower == -math.inf or not pairs.count:
        return pairs.direction(g, None, metric)
    held = (point <= lower) & (g > 0)
    for _ in range(HELD):
        direction = pairs.direction(g, held if bool(held.any()) else None, metric)
        beyond = (point + direction <= lower) & ((g > 0) | (point <= lower)) & ~held
        if not bool(beyond.any()):
            break
        held |= beyond
    return torch.where(held, lower - point, direction)


def _search(
    objective: Objective, here: _At, direction: Tensor, slope: float, length: float, lower: float
) -> _At | None:
    """A shorter or a longer step, by parabolas through what is known along it."""

    def at(length: float) -> tuple[_At, float]:
        """There, and what the step promises."""
        point = torch.add(here.point, direction, alpha=length)
        promise = slope * length
        if lower > -math.inf:
            point.clamp_min_(lower)
            promise = float(torch.vdot((point - here.point).view(-1), here.gradient.view(-1)))
        return _At(point, *objective(point)), promise

    found: _At | None = None
    for _ in range(HALVINGS):
        new, promise = at(length)
        # A step is too long where the loss is no number, or infinite; or where the model vanishes
        # at entries that do not, from which no metric leads away.
        lowered = new.loss <= here.loss + ENOUGH * promise and new.loss < here.loss
        if promise < 0 and lowered and new.steepest <= STEEPER * here.steepest:
            found = new
            break
        gap = new.loss - here.loss - promise
        best = -0.5 * promise / gap if promise < 0 < gap < math.inf else 0.1
        length *= min(0.5, max(0.1, best))
    else:
        return None
    if length < 1:  # it was shortened, or it is the first
        return found
    for _ in range(4):  # and longer, while the end is still steep
        left = float(torch.vdot(found.gradient.view(-1), direction.view(-1)))
        if left >= CURVED * slope or lower > -math.inf:
            break
        length *= 2
        new, promise = at(length)
        if not (new.loss <= here.loss + ENOUGH * promise and new.loss < found.loss):
            break
        found = new
    return found


class _Pairs:
    """The last steps s and changes y of the gradient, from which the inverse of the Hessian."""

    def __init__(self, entries: int, device: torch.device) -> None:
        shape = MEMORY, entries
        self.s = torch.zeros(shape, dtype=torch.float64, device=device)
        self.y = torch.zeros(shape, dtype=torch.float64, device=device)
        self.order: list[int] = []

    @property
    def count(self) -> int:
        return len(self.order)

    def forget(self) -> None:
        self.order = []

    def note(self, s: Tensor, y: Tensor) -> None:
        slot = self.order.pop(0) if self.count == MEMORY else self.count
        while slot in self.order:
            slot = (slot + 1) % MEMORY
        self.s[slot], self.y[slot] = s.view(-1), y.view(-1)
        self.order.append(slot)

    def direction(self, gradient: Tensor, held: Tensor | None, metric: Metric) -> Tensor:
        """Minus the inverse Hessian times the gradient, from `metric` and the pairs; entries that
        are held stay where they are."""
        g = gradient if held is None else gradient.masked_fill(held, 0.0)
        if not self.count:
            return -metric(g[None])[0]
        s, y = self.s[self.order], self.y[self.order]  # (c, n), the oldest first
        if held is not None:
            free = (~held).view(-1).double()
            s, y = s * free, y * free
        c = self.count
        both = torch.cat([y, g.view(1, -1)])  # (c + 1, n)
        turned = metric(both.view(c + 1, *g.shape)).view(c + 1, -1)
        if held is not None:
            turned = turned * free
        told = torch.cat([s @ both.T, y @ turned.T]).cpu().numpy()  # (2 c, c + 1)
        sy, yy = told[:c, :c], told[c:, :c]
        curved = np.diag(sy) > 1e-10 * np.diag(yy)
        keep = np.flatnonzero(curved & (np.diag(sy) > 0))
        if not len(keep):
            return -turned[c].view_as(g)
        sy, yy = sy[np.ix_(keep, keep)], yy[np.ix_(keep, keep)]
        sg, yg = told[keep, c], told[c + keep, c]
        scale = sy[-1, -1] / yy[-1, -1]
        # With M = scale times the metric:
        # H = M + [S, M Y] [[R^-T (D + Y' M Y) R^-1, -R^-T], [-R^-1, 0]] [S, M Y]'
        upper = np.triu(sy)
        w = np.linalg.solve(upper, sg)
        along_s = np.linalg.solve(upper.T, np.diag(sy) * w + scale * (yy @ w) - scale * yg)
        found = torch.as_tensor(np.concatenate([along_s, -scale * w]), device=g.device)
        rows = torch.as_tensor(keep, device=g.device)
        basis = torch.cat([s, turned[:c]])
        if len(keep) < c:
            basis = basis[torch.cat([rows, rows + c])]
        step: Tensor = torch.addmv(turned[c] * scale, basis.T, found)
        return step.neg_().view_as(g)
