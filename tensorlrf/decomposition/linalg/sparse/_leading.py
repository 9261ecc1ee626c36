"""Leading singular vectors of a sparse matrix, and of the unfoldings of a sparse tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import descending_eigh, identity, thin_svd
from tensorlrf.decomposition.linalg.sparse._nonzeros import Nonzeros

OVERSAMPLE = 10
"""Vectors of a block more than are asked for."""

BLOCKS = 6
"""That a space may have before it begins anew from the best of what it holds."""

MOST_BLOCKS = 100

EXCESS = 1e-4
"""Share of what is left out that a block may still win when the search ends."""

ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Likewise of all energy."""

_LARGEST = torch.iinfo(torch.int64).max


def unfolded(nonzeros: Nonzeros, mode: int) -> Nonzeros:
    """X_(k) as a sparse matrix in float64: rows of the mode, and those columns that hold anything.

    The columns count the other modes in their order, the first slowest; where that is beyond 2^63
    there is no way back from the columns that are there to all.
    """
    by = nonzeros.sorted(mode)
    others = [k for k in range(len(nonzeros.shape)) if k != mode]
    rows = _rows(nonzeros, mode)
    column = by.indices[0].long()
    own: Tensor | None = nonzeros.kept[others[0]]
    count = nonzeros.shape[others[0]]
    for k, index in zip(others[1:], by.indices[1:], strict=True):
        # As many as there are columns so far, times rows of the next mode: below nnz^2.
        found, column = torch.unique(column * nonzeros.sizes[k] + index, return_inverse=True)
        before, here = found // nonzeros.sizes[k], found % nonzeros.sizes[k]
        first = before if own is None else own[before]
        kept = nonzeros.kept[k]
        own = first * nonzeros.shape[k] + (here if kept is None else kept[here])
        count *= nonzeros.shape[k]
    reach = count <= _LARGEST
    if not reach:
        own, count = None, int(column.max()) + 1 if len(column) else 1
    shape = (nonzeros.shape[mode], count)
    kept_columns = own if len(others) > 1 or not reach else nonzeros.kept[others[0]]
    return Nonzeros(
        by.values.to(torch.float64),
        torch.stack([rows, column]),
        (nonzeros.kept[mode], kept_columns),
        shape,
        nonzeros.scale,
    )


def leading_triples(
    matrix: Nonzeros, r: int, draws: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), S (r,) and V (n, r) of a sparse matrix over its own rows and columns, float64; r is
    at most either number. V has columns of zeros for singular values that are none.

    A block Krylov space from random vectors (Musco & Musco 2015), orthogonal throughout, begun anew
    from its best vectors when it has grown wide, until a block wins next to nothing. Memory is that
    of 2 `BLOCKS` (r + `OVERSAMPLE`) vectors of the shorter side, and of one block of the longer.
    """
    m, n = matrix.sizes
    if n < m:
        turned = Nonzeros(
            matrix.sorted(1).values,
            torch.stack([_rows(matrix, 1), matrix.sorted(1).indices[0]]),
            matrix.kept[::-1],
            matrix.shape[::-1],
        )
        right, values, left = leading_triples(turned, r, draws)
        # The side that is orthonormal whatever the rank is the other one here.
        return _completed(left), values, right
    width = min(m, r + OVERSAMPLE)
    if m <= 2 * width:
        basis = identity(m, matrix.values)
        return _cut(basis, _across(matrix, basis), r)
    like = matrix.values.new_empty(0)
    start = torch.randn(n, width, generator=draws, dtype=like.dtype, device=like.device)
    basis = torch.linalg.qr(_along(matrix, start))[0]  # (m, p)
    # W W^T of it, and not W^T of it: the longer side may have as many rows as there are nonzeros.
    seen = _along(matrix, _across(matrix, basis))
    total, held = matrix.norm**2, -math.inf
    for _ in range(MOST_BLOCKS):
        energies, turn = descending_eigh(basis.T @ seen)
        before, held = held, float(energies[:r].sum())
        if held - before <= EXCESS * max(total - held, 0.0) + ROUNDING * total:
            break
        if basis.shape[1] + width > min(BLOCKS * width, m):
            best = turn[:, :width]
            basis, seen = basis @ best, seen @ best
            turn = identity(width, basis)
        block = seen[:, -width:]
        if basis.shape[1] + width > m:
            break
        for _ in range(2):  # the second time takes what rounding has left
            block = torch.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis = torch.cat([basis, block], 1)
        seen = torch.cat([seen, _along(matrix, _across(matrix, block))], 1)
    else:
        turn = descending_eigh(basis.T @ seen)[1]
    left = basis @ turn[:, :r]
    return _cut(left, _across(matrix, left), r)


def _rows(matrix: Nonzeros, mode: int) -> Tensor:
    """The row of each nonzero sorted by that mode."""
    by = matrix.sorted(mode)
    return torch.repeat_interleave(torch.diff(by.starts), output_size=len(by.values))


def _along(matrix: Nonzeros, columns: Tensor) -> Tensor:
    """W Y (m, c) for Y (n, c)."""
    return matrix.sorted(0).mttkrp([columns])


def _across(matrix: Nonzeros, columns: Tensor) -> Tensor:
    """W^T Y (n, c) for Y (m, c)."""
    return matrix.sorted(1).mttkrp([columns])


def _cut(basis: Tensor, image: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best of rank r within an orthonormal basis (m, p), from its image (n, p) under W^T."""
    right, values, turn = thin_svd(image)
    left = basis @ turn[:r].T
    least = ROUNDING**0.5 * 1e-4 * float(values[0]) if len(values) else 0.0
    there = values[:r] > least
    return left, values[:r], torch.where(there, right[:, :r], 0.0)


def _completed(columns: Tensor) -> Tensor:
    """Orthonormal columns, those of zeros made any that are orthogonal to the others."""
    there = columns.square().sum(0) > 0.5
    if bool(there.all()):
        return columns
    order = (~there).to(torch.int8).argsort(stable=True)
    full = torch.linalg.qr(columns[:, order])[0]
    filled = torch.empty_like(columns)
    filled[:, order] = full
    return torch.where(there, columns, filled)
