"""A factor of CP under constraints, by the alternating direction method of multipliers (Huang,
Sidiropoulos & Liavas 2016, "A flexible and efficient algorithmic framework for constrained matrix
and tensor factorization", algorithm 1).

The factor has a copy in its set and one for each penalty, with scaled duals, and a system of which
one Cholesky factor serves all rounds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tensorlrf.decomposition.nonnegative._constraints import Factor

ROUNDS = 10
"""After which a factor that is better than before is taken."""

MOST_ROUNDS = 60
"""As long as it is not."""

CLOSE = 1e-4
"""Of copies to the factor, and of the factor to what it was a round ago, squared and relative."""

RIDGE = 1e-10
"""Of a free factor, proximal: a share of the mean of the diagonal."""

Duals = tuple[Tensor, ...]


def solve_factor(
    old: Tensor, rhs: Tensor, system: Tensor, factor: Factor, duals: Duals
) -> tuple[Tensor, Duals]:
    """From U = `old` (n, r) to a U of less tr(U S U^T) / 2 - <R, U> + penalties, within its set.

    rhs     R (n, r)
    system  S (r, r) float64
    duals   of each copy, as the last sweep left them

    The factor is `old` itself where no round finds a better one, so that nothing rises.
    """
    if factor.orthogonal:
        return procrustes(rhs, old), duals
    wide, wanted = old.to(torch.float64), rhs.to(torch.float64)
    mean = float(system.diagonal().mean())
    if not mean > 0:
        return old, duals
    proxes = _proxes(factor)
    if not proxes:
        step = _inverse(system, RIDGE * mean)
        return (wide + (wanted - wide @ system) @ step).to(old.dtype), duals

    def value(u: Tensor) -> float:
        squares = float((0.5 * (u @ system) * u - wanted * u).sum())
        return squares + sum(penalty.of(u) for penalty in factor.penalties)

    inverse = _inverse(system, len(proxes) * mean)
    best = value(wide)
    copies, duals = [wide] * len(proxes), duals or (torch.zeros_like(wide),) * len(proxes)
    whole = wide
    for number in range(MOST_ROUNDS):
        before = whole
        pull = sum(z + d for z, d in zip(copies, duals, strict=True))
        whole = (wanted + mean * pull) @ inverse
        copies = [prox(whole - d, 1 / mean) for prox, d in zip(proxes, duals, strict=True)]
        duals = tuple(d + z - whole for z, d in zip(copies, duals, strict=True))
        size = float(whole.square().sum())
        apart = max(float((z - whole).square().sum()) for z in copies)
        moved = float((whole - before).square().sum())
        if max(apart, moved) <= CLOSE * size or number + 1 >= ROUNDS:
            # As it will be held: rounding to its dtype is what a later look would see.
            found = copies[0].to(old.dtype)
            if value(found.to(torch.float64)) < best:
                return found, duals
            if max(apart, moved) <= CLOSE**2 * size:
                break
    return old, duals


def procrustes(rhs: Tensor, old: Tensor) -> Tensor:
    """The U (n, r) with orthonormal columns of largest <R, U>, which then has the least residual,
    whatever the other factors are (Schonemann 1966). `old` where R is zero."""
    if not bool(rhs.any()):
        return old
    left, _, right = torch.linalg.svd(rhs.to(torch.float64), full_matrices=False)
    turned: Tensor = left @ right
    return turned.to(rhs.dtype)


def _proxes(factor: Factor) -> list[Callable[[Tensor, float], Tensor]]:
    """Of each copy; the first is the one that is returned."""
    penalties = list(factor.penalties)
    found: list[Callable[[Tensor, float], Tensor]] = []
    project = factor.project
    if factor.words == {"nonnegative", "l1"}:
        # Of both at once: entries fall by the step, and end at zero.
        (one,) = penalties
        return [lambda v, step: (v - step * one.strength).clamp_min(0.0)]
    if project is not None:
        found.append(lambda v, step: project(v))
    # Zeros of l1 are exact where its copy is the one that is returned.
    return [*found, *(one.scaled for one in sorted(penalties, key=lambda p: p.word != "l1"))]


def _inverse(system: Tensor, ridge: float) -> Tensor:
    damped = system + ridge * torch.eye(len(system), dtype=system.dtype, device=system.device)
    return torch.cholesky_inverse(torch.linalg.cholesky_ex(damped)[0])
