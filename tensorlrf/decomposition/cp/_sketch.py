"""Mixed and sampled unfoldings of a tensor, for randomised CP.

A random orthogonal transform Q_k along each mode spreads the leverage of the Khatri-Rao rows, so
that uniform sampling is safe (Battaglino, Ballard & Kolda 2018, section 4.1). Only rows that can
be drawn are ever made: p_k rows of each Q_k are chosen first, and the rows of a least-squares
system are drawn from the grid of the chosen ones. The tensor is thereby contracted with p_k x n_k
matrices instead of being transformed as a whole, in two full contractions for all modes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg.multilinear._mttkrp import split


@dataclass(frozen=True)
class Sketch:
    """What sampled least squares sees of a tensor.

    mixing      per mode, p_k rows of a random orthogonal matrix (p_k, n_k), scaled to keep norms
    unfoldings  per mode, the tensor mixed along all other modes, (product of the other p, n_k)
    """

    mixing: tuple[Tensor, ...]
    unfoldings: tuple[Tensor, ...]

    def mixed_rows(self, mixed: Sequence[Tensor], mode: int, rows: Tensor | None) -> Tensor:
        """Rows of the Khatri-Rao product of all mixed factors but one, which is never formed.

        mixed[k] (p_k, c); rows (s,) numbers the grid of the other modes, None means all of it.
        """
        others = [k for k in range(len(mixed)) if k != mode]
        if rows is None:
            product = mixed[others[0]]
            for k in others[1:]:
                product = (product[:, None, :] * mixed[k][None, :, :]).flatten(0, 1)
            return product
        picked: Tensor | None = None
        for k in reversed(others):
            size = mixed[k].shape[0]
            part = mixed[k].index_select(0, rows % size)
            rows = rows // size
            picked = part if picked is None else picked * part
        return picked if picked is not None else mixed[mode].new_ones(())


def sketch_tensor(tensor: Tensor, grid: Sequence[int], rng: torch.Generator) -> Sketch:
    """Mix and sample a contiguous tensor onto a grid of sizes p_k <= n_k."""
    mixing = tuple(
        _orthogonal_rows(p, n, tensor, rng) for p, n in zip(grid, tensor.shape, strict=True)
    )
    unfoldings: dict[int, Tensor] = {}

    def descend(partial: Tensor, modes: tuple[int, ...]) -> None:
        if len(modes) == 1:
            (mode,) = modes
            unfoldings[mode] = partial.movedim(mode, -1).reshape(-1, partial.shape[mode])
            return
        at = split(tuple(int(partial.shape[k]) for k in modes))
        left, right = modes[:at], modes[at:]
        for keep, drop in ((left, right), (right, left)):
            mixed = partial
            for k in sorted(drop, key=lambda k: mixing[k].shape[0] / mixing[k].shape[1]):
                mixed = mode_product(mixed, mixing[k], k)
            descend(mixed, keep)

    descend(tensor, tuple(range(tensor.ndim)))
    return Sketch(mixing, tuple(unfoldings[k] for k in range(tensor.ndim)))


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """X x_k M for a contiguous X (n_1, ..., n_N) and M (p, n_k), without unfolding it."""
    n, shape = tensor.shape[mode], list(tensor.shape)
    shape[mode] = matrix.shape[0]
    before = math.prod(tensor.shape[:mode])
    if mode == tensor.ndim - 1:
        product: Tensor = tensor.reshape(before, n) @ matrix.T
    elif before == 1:
        product = matrix @ tensor.reshape(n, -1)
    else:
        blocks = tensor.reshape(before, n, -1)
        product = torch.bmm(matrix.expand(before, -1, -1), blocks)
    return product.reshape(shape)


def _orthogonal_rows(p: int, n: int, like: Tensor, rng: torch.Generator) -> Tensor:
    """p rows of a Haar-distributed orthogonal n x n matrix, times sqrt(n / p)."""
    gaussian = torch.randn(n, p, generator=rng, device=like.device, dtype=like.dtype)
    rows: Tensor = torch.linalg.qr(gaussian).Q.T.contiguous()
    return rows * math.sqrt(n / p)


def leading_directions(unfolding: Tensor, count: int) -> Tensor:
    """Leading directions of the rows of an unfolding (grid, n): (n, count) orthonormal.

    From the Gram matrix of the shorter side; at most min(grid, n) of them.
    """
    grid, n = unfolding.shape
    wide = unfolding.to(torch.float64)
    if grid >= n:
        vectors: Tensor = torch.linalg.eigh(wide.T @ wide).eigenvectors
        return vectors.flip(1)[:, :count].to(unfolding.dtype).contiguous()
    left = torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)[:, :count]
    directions: Tensor = torch.linalg.qr(wide.T @ left).Q
    return directions.to(unfolding.dtype)
