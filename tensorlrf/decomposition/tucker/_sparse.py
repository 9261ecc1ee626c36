"""Tucker of a sparse tensor: higher-order orthogonal iteration by chains of products that see its
nonzeros alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import check_iteration
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._options import check_callback, check_modes
from tensorlrf.decomposition.linalg._gram import complete, descending_eigh, scale_of, thin_svd
from tensorlrf.decomposition.linalg.sparse._input import as_sparse, one_int
from tensorlrf.decomposition.linalg.sparse._leading import leading_triples, unfolded
from tensorlrf.decomposition.linalg.sparse._nonzeros import Nonzeros, Sorted
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import check_rank_or_error, tucker_ranks
from tensorlrf.decomposition.tucker._solve import SWEEPS, TOL, Callback, check_sweeps
from tensorlrf.errors import ArgumentError, UnsupportedError
from tensorlrf.factors import SparseTensor, TuckerFactors
from tensorlrf.factors.algebra import mode_product

MOST_ENTRIES = 1 << 22
"""Of the tensor contracted along all modes but one, that are in memory at once."""

GATHERED = 1 << 18
"""Of products of rows of factors, for some nonzeros."""

WIDEST = 1 << 13
"""Columns of it, of which there is one for each entry of a slice of the core."""


def fit_sparse(
    given: Any,
    rank: Any,
    modes: Sequence[int] | None,
    solver: str,
    n_iter_max: int | None,
    tol: float | None,
    callback: Callback | None,
    random_state: int | torch.Generator | None,
) -> Fit[TuckerFactors]:
    """Of a sparse tensor as a user gives it.

    Raises ArgumentError and its kinds for what is no such tensor or option, UnsupportedError for
    another solver, and for modes that have no factor.
    """
    tensor = as_sparse(given)
    counts, _ = check_rank_or_error(one_int(rank), None)
    order = len(tensor.shape)
    check_iteration(n_iter_max, tol)
    check_callback(callback, None)
    if solver not in ("hooi", "hosvd"):
        raise UnsupportedError(
            f"solver={solver!r} does not take a sparse tensor, whose partial cores are dense; take "
            "'hooi' or 'hosvd', or pass .to_dense()"
        )
    check_sweeps(solver, callback, n_iter_max, tol)
    if sorted(check_modes(modes, order)) != list(range(order)):
        raise UnsupportedError(
            f"modes={modes!r} leaves modes of a sparse tensor whole in the core; leave modes out, "
            "or pass .to_dense()"
        )
    ranks = tucker_ranks(0 if counts is None else counts, tensor.shape, range(order))
    return _of_ranks(
        tensor,
        ranks,
        sweeps=(SWEEPS if n_iter_max is None else n_iter_max) if solver == "hooi" else 0,
        tol=TOL if tol is None else tol,
        callback=callback,
        draws=generator(random_state, tensor.device),
    )


def _of_ranks(
    tensor: SparseTensor,
    ranks: Sequence[int],
    *,
    sweeps: int,
    tol: float,
    callback: Callback | None,
    draws: torch.Generator,
) -> Fit[TuckerFactors]:
    """Of a checked sparse tensor, in float64: the HOSVD, and at most so many sweeps from there.

    Factors are orthonormal, and zero on rows without nonzeros but where a mode has fewer others
    than its rank. Raises ArgumentError for a core with slices of more than `WIDEST` entries.
    """
    for k, r in enumerate(ranks):
        width = math.prod(ranks) // r
        if width > WIDEST:
            raise ArgumentError(
                f"rank={tuple(ranks)} makes a core with {width} entries to a slice of mode {k}; of "
                f"a sparse tensor at most {WIDEST} are served, give smaller ranks"
            )
    scale = scale_of(tensor.values) if tensor.nnz else 1.0
    nonzeros = Nonzeros.of(tensor, torch.float64, least=max(ranks), scale=scale)
    basis = [_leading(nonzeros, k, r, draws) for k, r in enumerate(ranks)]
    core = contracted(nonzeros, basis)

    def factors_at(core: Tensor, basis: Sequence[Tensor]) -> TuckerFactors:
        spread = (nonzeros.spread(u.to(tensor.dtype), k) for k, u in enumerate(basis))
        return TuckerFactors((core * scale).to(tensor.dtype), tuple(spread))

    errors, converged, reason = [_by_core(nonzeros, core)], not sweeps, "hosvd"
    for number in range(1, sweeps + 1):
        core, basis = _sweep(nonzeros, ranks, basis)
        errors.append(_by_core(nonzeros, core))
        if callback is not None and callback(factors_at(core, basis), errors[-1]):
            reason = f"stopped by callback after sweep {number}"
            break
        if errors[-2] - errors[-1] <= tol * errors[-1]:
            converged, reason = True, f"sweep {number} lowered the error by less than tol"
            break
    else:
        reason = f"n_iter_max={sweeps} sweeps" if sweeps else reason
    core, basis = _by_energy(core, basis)
    factors = factors_at(core, basis)
    errors.append(_error(nonzeros, factors))
    return Fit(factors, tuple(errors), converged, reason)


def _leading(nonzeros: Nonzeros, mode: int, r: int, draws: torch.Generator) -> Tensor:
    """Leading left singular vectors (n'_k, r) of an unfolding."""
    rows = nonzeros.sizes[mode]
    found = nonzeros.values.new_zeros(rows, 0)
    if len(nonzeros.values):
        matrix = unfolded(nonzeros, mode)
        found = leading_triples(matrix, min(r, *matrix.sizes), draws)[0]
    return complete(found, r)


def _sweep(
    nonzeros: Nonzeros, ranks: Sequence[int], basis: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """One sweep of higher-order orthogonal iteration (De Lathauwer, De Moor & Vandewalle 2000b),
    each factor from the tensor contracted with all others as they are then; and the core."""
    basis = list(basis)
    along = basis[-1].new_zeros(0)
    for k, r in enumerate(ranks):
        basis[k], along = _best(nonzeros, basis, k, r)
    others = [r for k, r in enumerate(ranks) if k != len(ranks) - 1]
    return along.reshape(ranks[-1], *others).movedim(0, -1).contiguous(), basis


def _best(nonzeros: Nonzeros, basis: Sequence[Tensor], mode: int, r: int) -> tuple[Tensor, Tensor]:
    """The r leading left singular vectors U (n'_k, r) of Y = X_(k) contracted along all other
    modes, and U^T Y, in rows of Y that there is room for."""
    blocks = row_blocks(nonzeros, basis, mode)
    first, whole = next(blocks)
    if first.stop == nonzeros.sizes[mode]:
        left = complete(thin_svd(whole)[0][:, :r], r)
        return left, left.T @ whole
    gram = whole.T @ whole
    for _, block in blocks:
        gram += block.T @ block
    energies, turn = descending_eigh(gram)
    # Its Gram tells singular values down to 1e-8 of the largest; directions below that are filled.
    lengths = energies[:r].clamp(min=0).sqrt()
    there = lengths > 1e-7 * lengths[0]
    turn = turn[:, :r] / torch.where(there, lengths, 1.0) * there
    rows = [block @ turn for _, block in row_blocks(nonzeros, basis, mode)]
    left = complete(torch.linalg.qr(torch.cat(rows))[0], r)
    along = left.new_zeros(r, whole.shape[1])
    for part, block in row_blocks(nonzeros, basis, mode):
        along += left[part].T @ block
    return left, along


def row_blocks(
    nonzeros: Nonzeros, basis: Sequence[Tensor], mode: int
) -> Iterator[tuple[slice, Tensor]]:
    """X_(k) contracted with the factors of all other modes, (some rows, prod r_j), the last mode
    fastest, some rows at a time."""
    by, rows = nonzeros.sorted(mode), nonzeros.sizes[mode]
    others = [u for k, u in enumerate(basis) if k != mode]
    width = math.prod(u.shape[1] for u in others)
    step = max(1, MOST_ENTRIES // width)
    for begin in range(0, rows, step):
        part = slice(begin, min(rows, begin + step))
        yield part, _chain(by, others, part, width)


def _chain(by: Sorted, others: Sequence[Tensor], part: slice, width: int) -> Tensor:
    """Some rows of it: the Kronecker product of rows of the factors for each nonzero, added up by
    rows in a fixed order, a block of nonzeros at a time."""
    starts = by.starts[part.start : part.stop + 1]
    count = len(starts) - 1
    total = others[0].new_zeros(count, width)
    first, last = int(starts[0]), int(starts[-1])
    step = max(1, GATHERED // width)
    for begin in range(first, last, step):
        end = min(begin + step, last)
        product = by.values[begin:end, None]
        for u, index in zip(others, by.indices[:, begin:end], strict=True):
            product = (product[:, :, None] * u.index_select(0, index)[:, None, :]).flatten(1)
        edges = (starts - begin).clamp(0, end - begin)
        ahead = int(torch.searchsorted(starts, begin, right=True)) - 1
        behind = int(torch.searchsorted(starts, end - 1, right=True))
        lengths = torch.diff(edges[ahead : behind + 1])
        total[ahead:behind] += torch.segment_reduce(product, "sum", lengths=lengths)
    return total


def contracted(nonzeros: Nonzeros, basis: Sequence[Tensor]) -> Tensor:
    """X contracted with all factors: (r_0, r_1, ...)."""
    ranks = [u.shape[1] for u in basis]
    core = basis[0].new_zeros(ranks[0], math.prod(ranks[1:]))
    for part, block in row_blocks(nonzeros, basis, 0):
        core += basis[0][part].T @ block
    return core.reshape(ranks)


def _by_core(nonzeros: Nonzeros, core: Tensor) -> float:
    """The relative error with orthonormal factors, by the norm of the core."""
    return nonzeros.rel_error(nonzeros.norm**2 - float(core.square().sum()))


def _by_energy(core: Tensor, basis: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The same, slices of the core ordered by energy along each mode."""
    turned = []
    for k, u in enumerate(basis):
        turn = thin_svd(core.movedim(k, 0).flatten(1))[0]
        turn = complete(turn, u.shape[1])
        core = mode_product(core, turn.T, k)
        turned.append(u @ turn)
    return core, turned


def _error(nonzeros: Nonzeros, factors: TuckerFactors) -> float:
    """The true relative error of factors as they are, by ||X||^2 - 2 <X, M> + ||M||^2."""
    basis = [nonzeros.picked(u, k).to(torch.float64) for k, u in enumerate(factors.factors)]
    core = factors.core.to(torch.float64) / nonzeros.scale
    seen = core
    for k, u in enumerate(factors.factors):
        wide = u.to(torch.float64)
        seen = mode_product(seen, wide.T @ wide, k)
    along = float((contracted(nonzeros, basis) * core).sum())
    square = nonzeros.norm**2 - 2 * along + float((seen * core).sum())
    return nonzeros.rel_error(square)
