"""Where CP iterations begin."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition.cp._state import CPState, make_state, unit_columns
from tensorlrf.decomposition.linalg.multilinear._mttkrp import mode_gram

# Up to this size, or where much of the spectrum is wanted, all eigenvectors are computed.
_FULL_EIGH = 512
_POWER_STEPS = 8
_OVERSAMPLING = 10


def random_start(tensor: Tensor, rank: int, starts: int, rng: torch.Generator) -> CPState:
    """Gaussian directions of unit length; weights zero, so that the first ridge pulls nowhere."""
    return random_directions(tensor.shape, rank, starts, tensor.dtype, tensor.device, rng)


def random_directions(
    shape: Sequence[int],
    rank: int,
    starts: int,
    dtype: torch.dtype,
    device: torch.device,
    rng: torch.Generator,
) -> CPState:
    """The same of a tensor of that shape."""
    factors = [
        torch.randn(n, starts, rank, generator=rng, device=device, dtype=dtype) for n in shape
    ]
    return make_state(factors, torch.zeros(starts, rank, dtype=torch.float64, device=device))


def svd_start(tensor: Tensor, rank: int, starts: int, rng: torch.Generator) -> CPState:
    """Leading left singular vectors of each unfolding, from its Gram matrix.

    Where the rank exceeds n_k the further columns are random. Of several starts only the first
    is this one, the others are random.
    """
    state = random_start(tensor, rank, starts, rng)
    factors = [u.clone() for u in state.factors]
    for mode, u in enumerate(factors):
        basis = _leading_directions(tensor, mode, rank, rng)  # (n_k, at most rank)
        u[:, 0, : basis.shape[1]] = basis
    return make_state(factors, state.weights)


def matrix_start(matrix: Tensor, rank: int) -> CPState:
    """The truncated SVD, which is the best CP model of a matrix (Eckart & Young 1936)."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, s.shape[0])
    m, n = matrix.shape
    left, right = matrix.new_zeros(m, 1, rank), matrix.new_zeros(n, 1, rank)
    # Columns past the last singular vector have weight zero and any direction of unit length.
    left[0], right[0] = 1, 1
    left[:, 0, :kept], right[:, 0, :kept] = u[:, :kept], vh[:kept].T
    weights = torch.zeros(1, rank, dtype=torch.float64, device=matrix.device)
    weights[0, :kept] = s[:kept]
    return make_state([left, right], weights)


def given_start(
    weights: Tensor,
    factors: Sequence[Tensor],
    tensor: Tensor,
    fixed: frozenset[int],
    rng: torch.Generator,
) -> CPState:
    """Iterates that begin at given ones, in memory order, their scale set aside: the longest column
    of each factor, and the largest weight, count as one.

    A column of zeros has no direction, and alternating updates would never leave it: where its
    mode is free it becomes a random direction, of weight zero.
    """
    rows = [f.shape[0] for f in factors]
    # On the host, all modes at once: a start is small, and calls are what it costs.
    unit, length = _unit_columns(torch.cat([*factors]).to("cpu", torch.float64).numpy(), rows)
    made = torch.from_numpy(unit).to(tensor.device, tensor.dtype)[:, None]
    columns = [*torch.split(made, rows)]
    if not length.all():
        for k, u in enumerate(columns):
            if k not in fixed:
                other = torch.randn(u.shape, generator=rng, device=u.device, dtype=u.dtype)
                empty = torch.from_numpy(length[k] == 0).to(u.device)
                columns[k] = torch.where(empty, unit_columns(other)[0], u)
    # In units of the largest: another scale, by a power of two, gives the same bits.
    sizes = np.concatenate([weights.to("cpu", torch.float64).numpy()[None], length])
    largest = np.abs(sizes).max(1, keepdims=True)
    product = (sizes / np.where(largest > 0, largest, 1)).prod(0, keepdims=True)  # (1, r)
    return CPState(tuple(columns), torch.from_numpy(product).to(tensor.device))


def _unit_columns(
    stacked: np.ndarray[Any, Any], rows: list[int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Factors of so many rows each, one below the other, with columns of unit length, and their
    lengths (N, r), also where squares would overflow or vanish; a column of zeros stays one."""
    first = [0, *accumulate(rows[:-1])]
    largest = np.maximum.reduceat(np.abs(stacked), first)
    unit = stacked / np.where(largest > 0, largest, 1).repeat(rows, axis=0)
    length = np.sqrt(np.add.reduceat(np.square(unit), first))  # at least one, or zero
    return unit / np.maximum(length, 1).repeat(rows, axis=0), length * largest


def _leading_directions(tensor: Tensor, mode: int, rank: int, rng: torch.Generator) -> Tensor:
    """Leading left singular vectors of X_(mode), (n_mode, min(rank, n_mode, others))."""
    n, others = tensor.shape[mode], tensor.numel() // tensor.shape[mode]
    if n > others:  # the Gram of the short side; its eigenvectors are carried over by X_(k)
        unfolding = tensor.movedim(mode, 0).reshape(n, others)
        right = top_eigenvectors(unfolding.T @ unfolding, min(rank, others), rng)
        left: Tensor = torch.linalg.qr(unfolding @ right).Q
        return left
    return top_eigenvectors(mode_gram(tensor, mode), min(rank, n), rng)


def top_eigenvectors(gram: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Eigenvectors of the largest eigenvalues of a Gram matrix, (n, count), largest first.

    A start need not be exact: far inside a large spectrum they come from subspace iteration.
    """
    n = gram.shape[0]
    dtype = gram.dtype
    if n <= _FULL_EIGH or 4 * (count + _OVERSAMPLING) > n:
        vectors: Tensor = torch.linalg.eigh(gram.to(torch.float64)).eigenvectors
        return vectors.flip(1)[:, :count].to(dtype)
    width = count + _OVERSAMPLING
    basis = torch.randn(n, width, generator=rng, device=gram.device, dtype=dtype)
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(gram @ basis).Q
    inner = torch.linalg.eigh((basis.T @ (gram @ basis)).to(torch.float64)).eigenvectors
    rotated: Tensor = basis @ inner.flip(1)[:, :count].to(dtype)
    return rotated
