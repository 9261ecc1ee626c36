"""Tucker of a tensor of which some entries are not known, or count by weights.

(Andersson & Bro 1998, EM; Filipovic & Jukic 2015, least squares over what is known.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._gram import keep
from tensorlrf.decomposition.linalg.observed._complete import (
    EM,
    WIDEST,
    Posed,
    Watch,
    complete,
    within,
)
from tensorlrf.decomposition.linalg.observed._observed import Observed
from tensorlrf.decomposition.linalg.observed._rows import (
    RIDGE,
    pairs,
    places,
    signed_qr,
    solved_rows,
)
from tensorlrf.decomposition.rank import ranks_at, tucker_fractions, tucker_ranks
from tensorlrf.decomposition.tucker._hooi import (
    contract,
    hooi_sweep,
    mode_order,
    order_by_energy,
    st_hosvd,
)
from tensorlrf.decomposition.tucker._solve import as_factors
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product

LARGEST_CORE = 1024
"""Unknowns of a core up to which their system is made."""

CHUNK = 1 << 22
"""Entries of products of slices that are held at once."""


class Whole(NamedTuple):
    """core     (r_0, ..., R): along the last mode, of what is not factored, it keeps its size
    factors  (n_k, r_k) each, with orthonormal columns
    """

    core: Tensor
    factors: tuple[Tensor, ...]


def fit_observed(
    seen: Observed,
    ranks: Mapping[int, int] | None,
    error: float | None,
    modes: Sequence[int],
    solver: str,
    n_iter_max: int | None,
    tol: float | None,
    callback: Watch | None,
) -> Fit[TuckerFactors]:
    """Tucker along `modes`, of their ranks or within an error, for what is observed."""
    seen.check_slices()
    sizes = [seen.shape[k] for k in modes]

    def unknowns(own: Sequence[int]) -> int:
        core = math.prod(own) * (seen.data.numel() // math.prod(sizes))
        return core + sum(n * r - r * r for n, r in zip(sizes, own, strict=True))

    def at(own: Sequence[int]) -> Fit[TuckerFactors]:
        seen.warn_unless_enough(unknowns(own), tuple(own))
        posed = _posed(seen, own, modes, by_em=solver == EM)
        return complete(seen, posed, n_iter_max=n_iter_max, tol=tol, callback=callback)

    if ranks is not None:
        return at([ranks[k] for k in modes])
    fractions = tucker_fractions(seen.shape, modes)

    def own(step: int) -> Sequence[int]:
        return ranks_at(fractions[step - 1], seen.shape, modes)

    return within(
        seen, lambda s: at(own(s)), lambda s: unknowns(own(s)), error or 0.0, len(fractions)
    )


def pose_observed(seen: Observed, rank: Any, draws: torch.Generator) -> Posed[Whole, TuckerFactors]:
    """Tucker along all modes."""
    seen.check_slices()
    modes = tuple(range(len(seen.shape)))
    return _posed(seen, tucker_ranks(rank, seen.shape, modes), modes, by_em=False)


def _posed(
    seen: Observed, ranks: Sequence[int], modes: Sequence[int], *, by_em: bool
) -> Posed[Whole, TuckerFactors]:
    axes = (*modes, *(k for k in range(len(seen.shape)) if k not in modes))
    others = [seen.shape[k] for k in axes[len(modes) :]]
    posed = seen.view((*(seen.shape[k] for k in modes), math.prod(others)), axes)
    completing = TuckerCompletion(seen, axes, others, by_em=by_em)
    return Posed(posed, completing, [start(posed.spread, ranks)])


def start(tensor: Tensor, ranks: Sequence[int]) -> Whole:
    """The sequentially truncated HOSVD, with a factor for modes that keep their size as well."""
    own = dict(enumerate(ranks))
    choices = {k: keep(own[k]) for k in mode_order(tensor.shape, list(own), own)}
    core, basis = st_hosvd(tensor, choices)
    return Whole(core, tuple(basis.get(k, _identity(tensor, k)) for k in own))


def _identity(tensor: Tensor, mode: int) -> Tensor:
    return torch.eye(tensor.shape[mode], dtype=tensor.dtype, device=tensor.device)


class TuckerCompletion:
    """Alternating least squares over the entries that are known, or EM by sweeps of HOOI."""

    def __init__(
        self, seen: Observed, axes: Sequence[int], others: Sequence[int], *, by_em: bool
    ) -> None:
        self.scale, self.dtype = seen.scale, seen.dtype
        self.axes, self.others, self.by_em = axes, others, by_em

    def sweep(self, seen: Observed, state: Whole) -> Whole:
        """Every factor, then the core."""
        state = _orthonormal(state)
        ranks = state.core.shape[:-1]
        if self.by_em or max(ranks) > WIDEST or math.prod(ranks) > LARGEST_CORE:
            return self._by_em(seen, state)
        for k in range(len(ranks)):
            state = _orthonormal(_with_factor(seen, state, k), (k,))
        return state._replace(core=_core(seen, state))

    def model(self, state: Whole) -> Tensor:
        return _expanded(state, range(len(state.factors)))

    def beyond(self, state: Whole, last: Whole, reach: float) -> Whole:
        core, *factors = (
            new + reach * (new - old)
            for new, old in zip(
                (state.core, *state.factors), (last.core, *last.factors), strict=True
            )
        )
        return Whole(core, tuple(factors))

    def factors(self, state: Whole) -> TuckerFactors:
        state = _orthonormal(state)
        basis = dict(enumerate(state.factors))
        core, basis = order_by_energy(state.core, basis, torch.finfo(self.dtype).eps)
        core = core.reshape(*core.shape[:-1], *self.others)
        return as_factors(core, basis, self.scale, self.axes, self.dtype)

    def _by_em(self, seen: Observed, state: Whole) -> Whole:
        basis = dict(enumerate(state.factors))
        filled = seen.filled(self.model(state))
        ranks = {k: u.shape[1] for k, u in basis.items()}
        free = [k for k, u in basis.items() if u.shape[1] < u.shape[0]]
        if free:
            order = mode_order(filled.shape, free, ranks)
            part = contract(filled, basis, [k for k in basis if k not in free])
            hooi_sweep(part, order, basis, fine=True)
        return Whole(contract(filled, basis, list(basis)), tuple(basis.values()))


def _orthonormal(state: Whole, modes: Sequence[int] | None = None) -> Whole:
    """The same with orthonormal columns of the factors; of `modes`, where the others have them."""
    core, made = state.core, list(state.factors)
    for k in range(len(made)) if modes is None else modes:
        made[k], rest = signed_qr(made[k])
        core = mode_product(core, rest, k)
    return Whole(core, tuple(made))


def _expanded(state: Whole, modes: Sequence[int]) -> Tensor:
    """The core multiplied by the factors of these modes, those that lengthen it least first."""
    growth = {k: state.factors[k].shape[0] / state.factors[k].shape[1] for k in modes}
    whole = state.core
    for k in sorted(modes, key=growth.__getitem__):
        whole = mode_product(whole, state.factors[k], k)
    return whole


def _with_factor(seen: Observed, state: Whole, k: int) -> Whole:
    """With the factor of mode k that is best for the core and the others."""
    u = state.factors[k]
    n, r = u.shape
    others = [j for j in range(len(state.factors)) if j != k]
    spread = _expanded(state, others)  # (..., r, ...)
    L = math.prod(spread.shape[:k])
    design = spread.reshape(L, r, -1).mT.contiguous()  # (L, R, r)
    systems = _contracted(seen.weights.reshape(L, n, -1), pairs(design))
    rhs = _contracted(seen.weighted.reshape(L, n, -1), design)
    place = places(r, u.device)
    rows = solved_rows(lambda rows: systems[rows].double()[:, place], rhs, u, RIDGE[u.dtype])
    factors = list(state.factors)
    factors[k] = rows.to(u.dtype)
    return state._replace(factors=tuple(factors))


def _contracted(tensor: Tensor, design: Tensor) -> Tensor:
    """Sum over l and r of T (L, n, R) and D (L, R, q): (n, q)."""
    L, n, R = tensor.shape
    if L == 1:
        return tensor[0] @ design[0]
    if R == 1:
        return tensor[:, :, 0].T @ design[:, 0]
    together = max(1, CHUNK // (n * design.shape[2]))
    found = tensor.new_zeros(n, design.shape[2])
    for first in range(0, L, together):
        part = slice(first, first + together)
        found += torch.bmm(tensor[part], design[part]).sum(0)
    return found


def _core(seen: Observed, state: Whole) -> Tensor:
    """The core that is best for the factors: each slice of what is not factored has its own."""
    core, factors = state
    ranks, q = core.shape[:-1], math.prod(core.shape[:-1])
    products, rhs = seen.weights, seen.weighted
    for k, u in enumerate(factors):
        products = mode_product(products, pairs(u).T, k)
        rhs = mode_product(rhs, u.T, k)
    products = products.movedim(-1, 0)  # (R, p_0, p_1, ...)
    d = len(ranks)
    order = (0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2))

    def systems(rows: slice) -> Tensor:
        # One mode after the other, the last one first: whole runs of memory are copied.
        part = products[rows].double()
        for k in reversed(range(d)):
            part = part.index_select(k + 1, places(ranks[k], core.device).flatten())
        sides = [n for r in ranks for n in (r, r)]
        return part.reshape(-1, *sides).permute(order).reshape(-1, q, q)

    found = solved_rows(systems, rhs.reshape(q, -1).T, core.reshape(q, -1).T, RIDGE[core.dtype])
    return found.T.to(core.dtype).reshape(core.shape)
