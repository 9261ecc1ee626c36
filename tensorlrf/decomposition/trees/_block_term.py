"""Block term decompositions by alternating least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import (
    ROUNDING,
    Descent,
    StepAhead,
    beyond,
    check_iteration,
    descend,
)
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition._options import check_callback, check_count
from tensorlrf.decomposition.linalg._gram import descending_eigh, mode_gram, scale_of, unfold
from tensorlrf.decomposition.linalg._solve import proximal_step
from tensorlrf.decomposition.methods import factors_of, method
from tensorlrf.decomposition.random_state import generator
from tensorlrf.decomposition.rank import Rank, _one_int, _share, check_rank_or_error, ints
from tensorlrf.errors import RankError, ShapeError, unknown
from tensorlrf.factors import BlockTerm
from tensorlrf.factors.algebra import mode_product

FORMS = ("full", "ll1")

TRIAL = 10
"""Sweeps of each of several starts."""

Callback = Callable[[BlockTerm, float], Any]


@method(
    "block_term",
    gives=BlockTerm,
    on={"tensor"},
    law="no sweep raises the error; planted blocks are found",
)
def fit_block_term(
    tensor: Any,
    rank: Rank | None = None,
    *,
    n_terms: int = 2,
    form: str = "full",
    n_iter_max: int = 200,
    tol: float = 1e-6,
    n_restarts: int = 1,
    callback: Callback | None = None,
    random_state: int | torch.Generator | None = None,
) -> Fit[BlockTerm]:
    """A sum of Tucker tensors of small ranks by alternating least squares (block terms).

    Between CP, whose terms have rank one, and Tucker, which is one term. A sweep solves for the
    factors of all terms along one mode after the other, and then for all cores at once, each
    exactly; the loss never rises.

    Parameters
    ----------
    tensor : Tensor or array of shape (n_0, ..., n_{N-1})
    rank : int, tuple, float or str
        Of each term: an int for every mode, clipped to its size; a tuple (L, M, N), one for each
        mode; a share of the parameters in (0, 1]; or "same". For "ll1" an int L, or (L,).
    n_terms : int
        Terms.
    form : str
        "full": terms with a core (L, M, N), of any order. "ll1": terms `(A_s B_s^T) o c_s` of a
        tensor of three modes, a matrix of rank L times a vector, which are unique far more often.
    n_iter_max : int
        Most sweeps of a start.
    tol : float
        Stop when a sweep lowers the relative error by no more than this share of it.
    n_restarts : int
        Random starts, of which the best goes on after some sweeps.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True stops.
    random_state : int or Generator, optional

    Returns
    -------
    BlockTerm
        Of `fit_block_term` a `Fit` with the relative errors: of the start, after each sweep, and of
        the factors as returned.

    Raises
    ------
    RankError
        For ranks below one, above the size of a mode (a tuple) or of the wrong number.
    ShapeError
        For "ll1" of a tensor that does not have three modes.
    ArgumentError
        For what cannot be decomposed, and options that are none.

    References
    ----------
    De Lathauwer 2008; De Lathauwer & Nion 2008 (alternating least squares).

    Examples
    --------
    >>> tensor = torch.rand(6, 5, 4)
    >>> f = tensorlrf.block_term(tensor, 2, n_terms=3, form="ll1", random_state=0)
    >>> f.shape, [tuple(t.shape) for t in f.tensors().values()]
    ((6, 5, 4), [(3, 2, 5, 1), (3, 6, 2), (3, 4, 1)])
    """
    tensor = as_tensor(tensor).detach()
    rank, _ = check_rank_or_error(rank, None, tensor.dtype)
    check_iteration(n_iter_max, tol)
    check_callback(callback, None)
    check_count("n_terms", n_terms, 1)
    check_count("n_restarts", n_restarts, 1)
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    shape = tuple(int(n) for n in tensor.shape)
    if form == "ll1" and len(shape) != 3:
        raise ShapeError(
            f"form='ll1' is for three modes, tensor has shape {shape}; use form='full'"
        )
    modes = (0, 2) if form == "ll1" else tuple(range(len(shape)))
    assert rank is not None
    ranks = _ranks(rank, shape, n_terms, form)
    draws = generator(random_state, tensor.device)
    scale = scale_of(tensor)
    problem = _Problem(tensor.to(torch.float64) / scale, n_terms, modes, ranks)

    def cast(state: _State) -> BlockTerm:
        return problem.factors(state, scale, tensor.dtype)

    def watch(state: _State, error: float) -> bool | None:
        return bool(callback(cast(state), error)) if callback is not None else None

    run = descend(
        (problem.start(draws) for _ in range(n_restarts)),
        problem.sweep,
        tol,
        n_iter_max,
        trial=min(TRIAL, n_iter_max) if n_restarts > 1 else 0,
        ahead=_ahead,
        step=lambda: StepAhead(confirmed=True),
        rise=ROUNDING,
        enough=16 * torch.finfo(torch.float64).eps,
        watch=watch if callback is not None else None,
    )
    factors = cast(run.state)
    loss = factors.to(working_dtype(tensor.dtype)).rel_error(tensor)
    reason = f"{n_terms} terms of ranks {factors.rank}, {run.reason}"
    return Fit(factors, (*run.errors, loss), run.converged, reason)


block_term = factors_of(fit_block_term)


class _State(NamedTuple):
    """Cores (S, r_0, ...) and the factors (S, n_k, r_k) of every mode that has one."""

    cores: Tensor
    factors: list[Tensor]


def _ahead(here: _State, last: _State, reach: float) -> _State:
    cores, *factors = beyond([here.cores, *here.factors], [last.cores, *last.factors], reach)
    return _State(cores, factors)


class _Problem:
    """A tensor in float64, and what is sought of it."""

    def __init__(
        self, tensor: Tensor, count: int, modes: Sequence[int], ranks: Sequence[int]
    ) -> None:
        self.tensor, self.count, self.modes, self.ranks = tensor, count, modes, ranks
        self.norm = float(torch.linalg.vector_norm(tensor)) ** 2

    def start(self, draws: torch.Generator) -> Descent[_State]:
        """Random mixtures of the directions that the tensor has along each mode."""
        factors = []
        for k, r in zip(self.modes, self.ranks, strict=True):
            energies, vectors = descending_eigh(mode_gram(self.tensor, k))
            shape = self.count, len(energies), r
            drawn = torch.randn(shape, generator=draws, dtype=torch.float64, device=draws.device)
            factors.append(torch.linalg.qr(vectors @ (energies.sqrt()[:, None] * drawn))[0])
        sizes = list(self.tensor.shape)
        for k, r in zip(self.modes, self.ranks, strict=True):
            sizes[k] = r
        state = _State(self.tensor.new_zeros(self.count, *sizes), factors)
        return Descent.at(*self._with_cores(state))

    def sweep(self, state: _State) -> tuple[_State, float]:
        """New factors, mode by mode, orthonormal in each term, and new cores."""
        cores, factors = state.cores, list(state.factors)
        for j, k in enumerate(self.modes):
            # What multiplies the factors of mode k: (r_k, all else) of every term, upon each other.
            stack = torch.cat([unfold(part, k) for part in self._but(cores, factors, j)])
            right = stack @ unfold(self.tensor, k).T  # (S r_k, n_k)
            old = factors[j].mT.flatten(0, 1)
            found = proximal_step(stack @ stack.T, right, old)
            whole = found.reshape(self.count, -1, found.shape[1]).mT  # (S, n_k, r_k)
            basis, upper = torch.linalg.qr(whole)
            factors[j] = basis
            cores = torch.stack([mode_product(c, u, k) for c, u in zip(cores, upper, strict=True)])
        return self._with_cores(_State(cores, factors))

    def _with_cores(self, state: _State) -> tuple[_State, float]:
        """The cores that are best with the factors there are, and the relative error."""
        factors, whole = state.factors, math.prod(self.ranks)
        rest = self.tensor.numel() // math.prod(self.tensor.shape[k] for k in self.modes)
        left = [k for k in range(self.tensor.ndim) if k not in self.modes]
        order = [*self.modes, *left]  # of core and tensor, those with factors first

        def rows(core: Tensor) -> Tensor:
            return core.permute(order).reshape(whole, rest)

        seen = []
        for own in zip(*factors, strict=True):
            part = self.tensor
            for k, f in zip(self.modes, own, strict=True):
                part = mode_product(part, f.T, k)
            seen.append(rows(part))
        grams = [torch.einsum("sni,tnj->sitj", f, f) for f in factors]
        normal = self.tensor.new_zeros(self.count, whole, self.count, whole)
        for s in range(self.count):
            for t in range(self.count):
                normal[s, :, t] = reduce(torch.kron, [g[s, :, t] for g in grams])
        old = torch.cat([rows(core) for core in state.cores])
        square, right = normal.reshape(len(old), len(old)), torch.cat(seen)
        found = proximal_step(square, right, old)
        found = proximal_step(square, right, found)  # what the proximal term held back
        sizes = [state.cores.shape[1 + k] for k in order]
        back = [order.index(k) for k in range(len(order))]
        cores = torch.stack([x.reshape(sizes).permute(back) for x in torch.split(found, whole)])
        made = _State(cores, factors)
        off = self.tensor - BlockTerm(cores, tuple(factors), tuple(self.modes)).to_dense()
        squared = float(torch.linalg.vector_norm(off)) ** 2
        return made, math.sqrt(squared / (self.norm or 1.0))

    def _but(self, cores: Tensor, factors: Sequence[Tensor], skipped: int) -> Iterator[Tensor]:
        """Every term without its factor of one mode."""
        for s, core in enumerate(cores):
            part = core
            for j, k in enumerate(self.modes):
                if j != skipped:
                    part = mode_product(part, factors[j][s], k)
            yield part

    def factors(self, state: _State, scale: float, dtype: torch.dtype) -> BlockTerm:
        """By falling norms of the terms; the scale is shared by cores and factors."""
        sizes = torch.linalg.vector_norm(state.cores.flatten(1), dim=1)
        order = sizes.argsort(descending=True, stable=True)
        share = 2.0 ** round(math.log2(scale) / (1 + len(self.modes)))
        rest = scale / share ** len(self.modes)
        return BlockTerm(
            (state.cores[order] * rest).to(dtype).contiguous(),
            tuple((f[order] * share).to(dtype).contiguous() for f in state.factors),
            tuple(self.modes),
        )


def _ranks(rank: Rank, shape: Sequence[int], count: int, form: str) -> tuple[int, ...]:
    """Of each mode that has factors."""

    def of(r: int) -> tuple[int, ...]:
        if form == "ll1":
            return min(r, shape[0], shape[1]), 1
        clipped = [min(r, n) for n in shape]
        # No rank of a core is above the product of the others.
        return tuple(min(c, math.prod(clipped) // c) for c in clipped)

    share = _share(rank)
    if share is not None:
        r = 1
        while r < max(shape) and _params(of(r + 1), shape, count, form) <= share * math.prod(shape):
            r += 1
        return of(r)
    if not isinstance(rank, Sequence) or isinstance(rank, str):
        return of(_one_int(rank))
    listed = ints(rank)
    wanted = 1 if form == "ll1" else len(shape)
    if len(listed) != wanted:
        raise RankError(
            f"rank={tuple(rank)} has {len(listed)} entries; terms of form {form!r} of a tensor of "
            f"shape {tuple(shape)} have {wanted}"
        )
    limits = (min(shape[:2]),) if form == "ll1" else tuple(shape)
    for k, (r, n) in enumerate(zip(listed, limits, strict=True)):
        if r > n:
            raise RankError(
                f"rank={tuple(rank)} asks for rank {r} along mode {k}, which allows {n}"
            )
    return (listed[0], 1) if form == "ll1" else listed


def _params(ranks: Sequence[int], shape: Sequence[int], count: int, form: str) -> int:
    if form == "ll1":
        return count * (ranks[0] * (shape[0] + shape[1]) + shape[2])
    return count * (math.prod(ranks) + sum(n * r for n, r in zip(shape, ranks, strict=True)))
