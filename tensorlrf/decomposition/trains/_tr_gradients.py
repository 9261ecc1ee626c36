"""Cores of a ring by conjugate gradients, where their normal matrices would be too large.

A half of the ring, multiplied out, is K (P, y z) with y and z the bonds at its ends, and linear in
each of its cores. The loss tr(K^T A(K)) - 2 tr(B^T K) is lowered from the core as it is; what the
other half and the metric make of K, A, is only ever applied. So nothing is larger than the halves,
the tensor and the second moments, where normal matrices have r^4 entries. As the bonds of the other
half are nearly independent of each other, matrices of one bond precondition the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import identity
from tensorlrf.decomposition.linalg._solve import cholesky, conjugate_gradients
from tensorlrf.factors.algebra import chain_product

STEPS = 8
"""Of conjugate gradients, at most, for one core; each lowers the loss."""

LEAST = 1e-20
"""Share of the squared, preconditioned residual at which they end."""

MOST_UNKNOWNS = 2048
"""r r' of a core (r, n, r') that is solved for with its normal matrix, 32 MB in float64."""

RIDGE = 1e-2
"""Of what preconditions, relative: directions that are hardly seen are left as they are."""

Seen = Callable[[Tensor], Tensor]
"""K (P, y z) to its image A(K), of the same shape."""


def too_wide(cores: Sequence[Tensor]) -> bool:
    """Whether the matrices that `half_sweep` makes for the cores of a half are too large."""
    y = cores[0].shape[0]
    pairs = ((r * s, y * r, y * s) for r, _, s in (core.shape for core in cores))
    return max(max(pair) for pair in pairs) > MOST_UNKNOWNS


def seen_through(one: Tensor, other: Tensor) -> Seen:
    """K (P, r) to K A^T B for A and B (q, r), in the order that takes less."""
    q, r = one.shape
    if r > 2 * q:
        return lambda half: (half @ one.T) @ other
    square = one.T @ other  # (r, r), no larger than both
    return lambda half: half @ square


def marginals(one: Tensor, other: Tensor, y: int) -> tuple[Tensor, Tensor]:
    """A^T B (y z, y z) for A and B (q, y z), summed where z agrees (y, y), and where y does (z, z).

    Were the two independent, A^T B would be their Kronecker product, over its trace.
    """
    a, b = one.reshape(one.shape[0], y, -1), other.reshape(one.shape[0], y, -1)
    over_z = a.transpose(0, 1).flatten(1) @ b.transpose(0, 1).flatten(1).T
    return over_z, a.flatten(0, 1).T @ b.flatten(0, 1)


def half_by_gradients(
    cores: Sequence[Tensor],
    target: Tensor,
    seen: Seen,
    ends: tuple[Tensor, Tensor] | None = None,
) -> list[Tensor]:
    """The cores of one half in turn, each by `gradient_steps`, which has the arguments."""
    cores = list(cores)
    for k in range(len(cores)):
        cores[k] = gradient_steps(cores, k, target, seen, ends)
    return cores


def gradient_steps(
    cores: Sequence[Tensor],
    k: int,
    target: Tensor,
    seen: Seen,
    ends: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Core k after conjugate gradients on tr(K^T A(K)) - 2 tr(B^T K), from where it is.

    K (P, y z) is the half that is multiplied out of `cores`; `seen` is A, B (P, y z) `target`. With
    the `marginals` of A at the bonds y and z the steps are preconditioned.
    """
    r, m, s = cores[k].shape
    y, z = cores[0].shape[0], cores[-1].shape[2]
    before = chain_product([identity(y, cores[k])[:, None], *cores[:k]])  # (y, J, r)
    after = chain_product([*cores[k + 1 :], identity(z, cores[k])[:, None]])  # (s, L, z)
    left = before.reshape(-1, r)  # (y J, r)
    right = after.reshape(s, -1)  # (s, L z)

    def whole(core: Tensor) -> Tensor:
        product = (left @ core.reshape(r, m * s)).reshape(-1, s) @ right  # (y J m, L z)
        return product.reshape(y, -1, z).transpose(0, 1).reshape(-1, y * z)

    def adjoint(half: Tensor) -> Tensor:
        turned = half.reshape(-1, y, z).transpose(0, 1).reshape(-1, right.shape[1])
        inner = (turned @ right.T).reshape(left.shape[0], m * s)  # (y J, m s)
        return (left.T @ inner).reshape(r, m, s)

    lowered = None
    if ends is not None:
        first = left.T @ (ends[0] @ before.reshape(y, -1)).reshape(-1, r)  # (r, r)
        last = right @ (after @ ends[1].T).reshape(s, -1).T  # (s, s)
        lowered = _preconditioner(first, last)
    return conjugate_gradients(
        lambda core: adjoint(seen(whole(core))),
        adjoint(target - seen(whole(cores[k]))),
        cores[k],
        lowered,
        min(STEPS, cores[k].numel()),
        LEAST,
    )


def _preconditioner(first: Tensor, last: Tensor) -> Callable[[Tensor], Tensor]:
    """A core (r, m, s) solved for with matrices (r, r) and (s, s) on its bonds."""
    a, b = cholesky(first, RIDGE), cholesky(last, RIDGE)

    def lowered(core: Tensor) -> Tensor:
        r, m, s = core.shape
        solved = torch.cholesky_solve(core.reshape(r, m * s), a).reshape(r * m, s)
        return torch.cholesky_solve(solved.T, b).T.reshape(r, m, s)

    return lowered
