"""Stochastic descent on drawn entries (Kolda & Hong 2020, algorithm 5.1; Kingma & Ba 2015)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._lbfgs import STOPPED, Course
from tensorlrf.decomposition.generalized._loss import Loss
from tensorlrf.decomposition.generalized._samples import Sample

DECAY = 0.1
"""What the length of steps is multiplied by after an epoch that failed."""

FAILURES = 2
"""Epochs that may fail."""

FIRST, SECOND, LEAST = 0.9, 0.999, 1e-8
"""Of Adam: how much the means of gradients and of their squares keep, and what is added to the root
of these."""


def descend_on_samples(
    loss: Loss,
    start: Tensor,
    draw: Callable[[], Sample],
    judge: Sample,
    *,
    rate: float,
    epoch: int,
    tol: float,
    n_iter_max: int,
    watch: Callable[[Tensor, float], bool],
) -> Course:
    """Epochs of so many steps from `start`, each on a sample of its own, as long as the loss on the
    sample `judge` falls.

    An epoch that raises it is undone, and steps are shorter from then on; the end is where too many
    did, or where one gained less than the share `tol` of all that was gained.
    """
    point, kept = start.clone(), start
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    before = mean.clone(), square.clone(), 0
    losses, failures, steps = [judge.loss(loss, start)], 0, 0

    def ended(converged: bool, reason: str) -> Course:
        return Course(kept, tuple(losses), (), converged, reason)

    for number in range(1, n_iter_max + 1):
        for _ in range(epoch):
            steps += 1
            gradient = draw().gradient(loss, point)
            mean.lerp_(gradient, 1 - FIRST)
            square.mul_(SECOND).addcmul_(gradient, gradient, value=1 - SECOND)
            length = rate * math.sqrt(1 - SECOND**steps) / (1 - FIRST**steps)
            point.addcdiv_(mean, square.sqrt().add_(LEAST), value=-length)
            if loss.lower > -math.inf:
                point.clamp_min_(loss.lower)
        found = judge.loss(loss, point)
        if not found <= losses[-1]:
            failures += 1
            if failures > FAILURES:
                return ended(True, f"epoch {number} raised the loss, as {FAILURES} did before")
            point, rate = kept.clone(), rate * DECAY
            mean, square, steps = before[0].clone(), before[1].clone(), before[2]
            continue
        losses.append(found)
        kept, before = point.clone(), (mean.clone(), square.clone(), steps)
        if watch(kept, found):
            return ended(False, f"{STOPPED} after epoch {number}")
        if losses[-2] - found <= tol * (losses[0] - found):
            return ended(True, f"epoch {number} lowered the loss by less than tol")
    return ended(False, f"n_iter_max={n_iter_max} epochs")
