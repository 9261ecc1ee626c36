"""Sweeps over the cores of a train by conjugate gradients, in the metric of the inputs.

The loss <W - A, M (W - A)> of a train A, such as tr((W - A) G (W - A)^T), is quadratic in each
core. Its minimum is sought from the core as it is, so that no step raises it; the other cores are
orthonormal as seen from there, which makes the system as well conditioned as M is. No normal matrix
is formed: what is needed at a time is the size of W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._solve import conjugate_gradients
from tensorlrf.factors.algebra import chain_product

STEPS = 8
"""Of conjugate gradients for a core, in each half sweep."""

LEAST = 1e-24
"""Share of the squared residual at which they end."""


def swept_by_gradients(
    apply: Callable[[Tensor], Tensor],
    image: Tensor,
    cores: list[Tensor],
    dense: Callable[[list[Tensor]], Tensor],
    spread: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Every core once on the way to the last, and once on the way back.

    apply: the form M of the target, and `image` M W (m, n), float64; dense: cores to the matrix
    A (m, n); spread: a matrix (m, n) to the tensor of the cores' modes in their order, the adjoint
    of how `dense` gathers them
    """
    cores = list(cores)
    last = len(cores) - 1
    for k in range(last, 0, -1):
        _orthonormal_from_right(cores, k)
    for k in range(last):
        _solve(apply, image, cores, dense, spread, k)
        _orthonormal_from_left(cores, k)
    for k in range(last, 0, -1):
        _solve(apply, image, cores, dense, spread, k)
        _orthonormal_from_right(cores, k)
    _solve(apply, image, cores, dense, spread, 0)
    return cores


def _solve(
    apply: Callable[[Tensor], Tensor],
    image: Tensor,
    cores: list[Tensor],
    dense: Callable[[list[Tensor]], Tensor],
    spread: Callable[[Tensor], Tensor],
    k: int,
) -> None:
    def normal(core: Tensor) -> Tensor:
        return pull(spread(apply(dense([*cores[:k], core, *cores[k + 1 :]]))))

    pull = adjoint(cores, k)
    residual = pull(spread(image - apply(dense(cores))))
    nothing = torch.zeros_like(residual)
    cores[k] = cores[k] + conjugate_gradients(normal, residual, nothing, steps=STEPS, least=LEAST)


def adjoint(cores: Sequence[Tensor], k: int) -> Callable[[Tensor], Tensor]:
    """Of core k to the tensor of the train, all other cores held."""
    flat = [core.flatten(1, -2) for core in cores]
    one = flat[k].new_ones(1, 1, 1)
    before = chain_product([one, *flat[:k]])[0]  # (P, r)
    after = chain_product([*flat[k + 1 :], one])[..., 0]  # (r', Q)
    shape = cores[k].shape
    rows = math.prod(shape[:-1])

    def pull(image: Tensor) -> Tensor:
        left = before.T @ image.reshape(before.shape[0], -1)
        return (left.reshape(rows, -1) @ after.T).reshape(shape)

    return pull


def _orthonormal_from_left(cores: list[Tensor], k: int) -> None:
    """Core k orthonormal over all but its last mode; what it was is in the next one."""
    core = cores[k]
    basis, rest = torch.linalg.qr(core.flatten(0, -2))
    if basis.shape[1] < core.shape[-1]:  # keep the rank that was asked for
        return
    cores[k] = basis.reshape(core.shape)
    cores[k + 1] = torch.tensordot(rest, cores[k + 1], 1)


def _orthonormal_from_right(cores: list[Tensor], k: int) -> None:
    """Core k orthonormal over all but its first mode; what it was is in the one before."""
    core = cores[k]
    basis, rest = torch.linalg.qr(core.flatten(1).T)
    if basis.shape[1] < core.shape[0]:
        return
    cores[k] = basis.T.reshape(core.shape)
    cores[k - 1] = torch.tensordot(cores[k - 1], rest.T, 1)
