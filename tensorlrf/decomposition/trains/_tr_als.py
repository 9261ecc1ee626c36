"""Alternating least squares for a tensor ring, a half of the ring at a time.

With all other cores held, the whole is linear in core k: X_(k) = C_(k) S^T with S the subchain of
the others. S^T S is a product of small matrices, one a core, and X_(k) S comes from X contracted
once with each half of the ring, so S is never formed. The normal matrices of wide ranks would be
larger than X; there conjugate gradients lower the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._solve import PROXIMAL_RIDGE, proximal_step
from tensorlrf.decomposition.trains._tr_gradients import (
    half_by_gradients,
    marginals,
    seen_through,
    too_wide,
)
from tensorlrf.factors.algebra import chain_product

START, DECAY = 1e-8, 0.1
"""The proximal term of the first sweep, relative, and how it falls from sweep to sweep."""


class RingProblem:
    """A tensor X (n_0, ..., n_{N-1}) in float64, to be fitted by rings."""

    def __init__(self, tensor: Tensor) -> None:
        self.sizes = tuple(tensor.shape)
        self.half = balanced_half(self.sizes)
        self.matrix = tensor.reshape(math.prod(self.sizes[: self.half]), -1)  # (P, Q)
        self.norm = float(self.matrix.square().sum())

    def sweep(self, cores: Sequence[Tensor], ridge: float) -> tuple[list[Tensor], float]:
        """Every core once, and the relative error afterwards."""
        first, second = list(cores[: self.half]), list(cores[self.half :])
        first, _ = _improved(first, second, self.matrix, ridge)
        second, value = _improved(second, first, self.matrix.T, ridge)
        cores = balanced([*first, *second])
        squared = math.nan if value is None else self.norm + value
        # The difference cancels, so near zero the residual itself is taken.
        if not squared > 1e-8 * self.norm:
            return cores, self.rel_error(cores)
        return cores, math.sqrt(squared / self.norm)

    def rel_error(self, cores: Sequence[Tensor]) -> float:
        """||X - ring|| / ||X||; ||ring|| where X is zero."""
        first = chain_product(cores[: self.half])
        second = chain_product(cores[self.half :])
        model = first.transpose(0, 1).flatten(1) @ second.permute(2, 0, 1).flatten(0, 1)
        residual = float((self.matrix - model).square().sum())
        return math.sqrt(residual / self.norm) if self.norm > 0 else math.sqrt(residual)


def balanced_half(sizes: Sequence[int]) -> int:
    """Where to cut a ring so that its halves have sizes P, Q of the least sum."""
    return min(range(1, len(sizes)), key=lambda h: math.prod(sizes[:h]) + math.prod(sizes[h:]))


def ridge_at(sweep: int) -> float:
    """The annealed proximal term of a sweep, counted from zero."""
    return max(START * DECAY**sweep, PROXIMAL_RIDGE)


def contracted(matrix: Tensor, other: Tensor) -> Tensor:
    """(y, P, z) from X (P, Q) and the other half (z, Q, y) of the ring."""
    z, q, y = other.shape
    product = matrix @ other.permute(1, 2, 0).reshape(q, y * z)  # (P, y z)
    return product.reshape(-1, y, z).transpose(0, 1)


def self_product(core: Tensor) -> Tensor:
    """Sum over the mode of core (r, n, s) with itself: (r r', s s')."""
    r, n, s = core.shape
    flat = core.transpose(0, 1).reshape(n, r * s)
    return (flat.T @ flat).reshape(r, s, r, s).permute(0, 2, 1, 3).reshape(r * r, s * s)


def _improved(
    half: list[Tensor], others: Sequence[Tensor], matrix: Tensor, ridge: float
) -> tuple[list[Tensor], float | None]:
    """The cores of one half with those of the other held, for X (P, Q) with rows of that half; and
    the loss less the squared norm of X, where it is known."""
    fixed = chain_product(others)  # (z, Q, y)
    if not too_wide(half):
        return half_sweep(half, contracted(matrix, fixed), self_product(fixed), ridge)
    flat = fixed.permute(1, 2, 0).flatten(1)  # (Q, y z)
    ends = marginals(flat, flat, half[0].shape[0])
    return half_by_gradients(half, matrix @ flat, seen_through(flat, flat), ends), None


def half_sweep(
    cores: Sequence[Tensor], cross: Tensor, outer: Tensor, ridge: float
) -> tuple[list[Tensor], float]:
    """The cores (r, n, s) of one half in turn by least squares, the other half held.

    cross (y, P, z) is X contracted with the other half, outer (z z', y y') that half with itself;
    this half begins at bond y and ends at bond z. The value is tr(C^T H C) - 2 tr(B^T C) of the
    last core C, with the normal matrix H and the right side B: the loss less the squared norm of X.
    """
    cores = list(cores)
    behind = [torch.eye(cross.shape[2], dtype=cross.dtype, device=cross.device)[:, None]]
    square = [outer]
    for core in reversed(cores[1:]):
        behind.append(chain_product([core, behind[-1]]))  # (s, rest, z)
        square.append(self_product(core) @ square[-1])  # (s s', y y')
    behind.reverse()
    square.reverse()
    y = cross.shape[0]
    before = torch.eye(y * y, dtype=cross.dtype, device=cross.device)  # (y y', r r')
    value = 0.0
    for k, core in enumerate(cores):
        r, n, s = core.shape
        normal = (square[k] @ before).reshape(s, s, r, r).permute(2, 0, 3, 1)
        normal = normal.reshape(r * s, r * s)
        cross = cross.reshape(r * n, -1)  # (r n, rest z)
        right = (cross @ behind[k].reshape(s, -1).T).reshape(r, n, s)
        right = right.transpose(1, 2).reshape(r * s, n)
        old = core.transpose(1, 2).reshape(r * s, n)
        new = proximal_step(normal, right, old, ridge)
        value = float((new * (normal @ new - 2 * right)).sum())
        cores[k] = new.reshape(r, s, n).transpose(1, 2).contiguous()
        if k + 1 < len(cores):
            cross = cores[k].reshape(r * n, s).T @ cross
            before = before @ self_product(cores[k])
    return cores, value


def balanced(cores: Sequence[Tensor]) -> list[Tensor]:
    """The same ring with cores of one norm."""
    norms = [float(torch.linalg.vector_norm(c)) for c in cores]
    if min(norms) <= 0:
        return list(cores)
    mean = math.exp(sum(math.log(norm) for norm in norms) / len(norms))
    return [core * (mean / norm) for core, norm in zip(cores, norms, strict=True)]
