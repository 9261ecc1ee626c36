"""Tucker of a tensor that does not fit into memory, or lies with several ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, check_iteration, descend
from tensorlrf.decomposition._options import check_callback, check_modes
from tensorlrf.decomposition._search import out_of_reach
from tensorlrf.decomposition.large._divided import Reading, divided
from tensorlrf.decomposition.large._entered import entered
from tensorlrf.decomposition.large._fit import LargeFit
from tensorlrf.decomposition.large._hooi import DividedHOOI, Iterate, Room
from tensorlrf.decomposition.large._look import look
from tensorlrf.decomposition.large._residual import rel_error
from tensorlrf.decomposition.large._sides import WholeSide, signs
from tensorlrf.decomposition.linalg._budget import TruncationBudget
from tensorlrf.decomposition.linalg._gram import complete, identity
from tensorlrf.decomposition.methods import factors_of
from tensorlrf.decomposition.rank import Rank, check_rank_or_error, tucker_ranks
from tensorlrf.decomposition.tucker._hooi import Basis, contract, mode_order, order_by_energy
from tensorlrf.decomposition.tucker._solve import WIDER, Callback, as_factors, settled_within
from tensorlrf.errors import ArgumentError, UnsupportedError, unknown
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product

SOLVERS = ("hooi", "hosvd")
SWEEPS, TOL = 50, 1e-5

Spectra = dict[int, tuple[Tensor, Tensor]]
"""Of modes: left singular vectors of the unfolding, and energies."""


@entered
def fit_tucker(
    tensor: Any,
    rank: Rank | None = None,
    *,
    error: float | None = None,
    modes: Sequence[int] | None = None,
    solver: str = "hooi",
    n_iter_max: int | None = None,
    tol: float | None = None,
    callback: Callback | None = None,
    along: int | None = None,
    memory_limit: int | str | None = None,
    measure: bool = True,
) -> LargeFit[TuckerFactors]:
    """Tucker of a tensor that is read in slabs, or sharded over ranks.

    Parameters
    ----------
    tensor : Slabs, Sharded, DTensor, path, array or slice
        Of shape (n_0, n_1, ...); see `Slabs` and `Sharded`.
    rank : int, tuple, float or str, optional
        As of `tensorlrf.tucker`, but for "auto"; or instead
    error : float, optional
        Relative error to stay within: each rank is the smallest within its part of the squared
        error, and takes a pass of its own, the divided mode last.
    modes : sequence of int, optional
        The modes that get a factor, all by default; the divided one has to be among them.
    solver : str
        "hosvd": factors from the Grams of the unfoldings (De Lathauwer et al. 2000a), that of the
        divided mode from what the others leave; "hooi": from there, first within twice as many
        directions, where the tensor is small, then sweeps of higher-order orthogonal iteration on
        the data.
    n_iter_max, tol : optional
        Of "hooi", as of `tensorlrf.tucker`: 50 sweeps at most, and 1e-5.
    callback : callable, optional
        Called as callback(factors, error) after each sweep; returning True, on the first rank,
        stops.
    along : int, optional
        See `Slabs`.
    memory_limit : int or str, optional
        See `Slabs`; "1GB" by default.

    Returns
    -------
    TuckerFactors
        Whole, on every rank. Of `fit_tucker` a `LargeFit` with true errors at the start and after
        each sweep.

    Raises
    ------
    ArgumentError, ShapeError, RankError
        As `tensorlrf.tucker`; for a limit below what is needed, which is named, and for ranks that
        do not make the same call.
    UnsupportedError
        Where the divided mode is not among `modes`.

    Warns
    -----
    TensorlrfWarning
        Where rounding to the dtype of `tensor` keeps `error` out of reach.

    Notes
    -----
    Passes: the first look, the Grams, the start, two for each sweep, its true error among them, and
    one for that before the first sweep; `fit_tucker` measures the factors as returned in one more.
    Where the sum over the slabs, r_d prod n_k / n_d numbers, has no room, a sweep takes up to N.
    With p ranks, R the product of the ranks and b bytes a number, a sweep sends 2 (p - 1) / p b (R
    + sum n_k R / r_k) bytes a rank, k over all factored modes but the divided one, and 8 (p - 1) (R
    / r_d)^2 for the R factors of the divided one, less where there are fewer rows.

    References
    ----------
    De Lathauwer, De Moor & Vandewalle 2000a, 2000b; Bro & Andersson 1998; Austin, Ballard & Kolda
    2016, "Parallel tensor compression for large-scale scientific data".

    Examples
    --------
    >>> import numpy
    >>> slabs = tensorlrf.large.Slabs(numpy.random.rand(40, 30, 20), memory_limit="200MB")
    >>> f = tensorlrf.large.tucker(slabs, (3, 4, 5))
    >>> f.rank
    (3, 4, 5)
    """
    whole = divided(tensor, along, memory_limit)
    reading = Reading(whole)
    reading.agree(
        "tucker", rank=rank, error=error, modes=modes, solver=solver, n_iter_max=n_iter_max,
        tol=tol, callback=callback, measure=measure,
    )  # fmt: skip
    rank, error = check_rank_or_error(rank, error, whole.dtype)
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    check_iteration(n_iter_max, tol)
    check_callback(callback, None)
    listed = check_modes(modes, len(whole.shape))
    if whole.along not in listed:
        raise UnsupportedError(
            f"modes={listed} leaves out {whole.along}, along which the tensor is divided; divide "
            "it along one of them (along=, of a DTensor redistribute), or give that mode a factor"
        )
    task = _Tucker(
        reading=reading,
        listed=tuple(sorted(reading.axes.index(k) for k in listed)),
        sweeps=(SWEEPS if n_iter_max is None else n_iter_max) if solver == "hooi" else 0,
        tol=TOL if tol is None else tol,
        callback=callback,
        measure=measure or error is not None,
    )
    if solver != "hooi":
        for name, value in (("callback", callback), ("n_iter_max", n_iter_max), ("tol", tol)):
            if value is not None:
                raise ArgumentError(
                    f"{name}= goes with solver='hooi'; {solver!r} makes no sweeps, leave it out"
                )
    if rank is not None:
        named = zip(listed, tucker_ranks(rank, whole.shape, listed), strict=True)
        return task.solve({reading.axes.index(k): r for k, r in named})
    return task.within(error or 0.0)


tucker = factors_of(fit_tucker)


class _Tucker:
    """One problem; modes count as they stand in the pieces, the divided one first."""

    def __init__(
        self,
        reading: Reading,
        listed: tuple[int, ...],
        sweeps: int,
        tol: float,
        callback: Callback | None,
        measure: bool,
    ) -> None:
        self.reading, self.listed, self.sweeps, self.tol = reading, listed, sweeps, tol
        self.callback, self.measure = callback, measure
        self.wider = WIDER if sweeps else 1

    def solve(self, ranks: dict[int, int]) -> LargeFit[TuckerFactors]:
        """For one rank a mode."""
        others = tuple(k for k in self.listed if k > 0 and ranks[k] < self.reading.shape[k])
        cut = {0: ranks[0], **{k: ranks[k] for k in others}}
        room = Room(self.reading, others)
        self.reading.together(lambda: room.passes(cut, self.wider))
        norm = look(self.reading)
        spectra = self._spectra(room.start(), others)
        return self._from(spectra, cut, room, norm, None)

    def within(self, error: float) -> LargeFit[TuckerFactors]:
        """With the smallest ranks whose parts of the squared error stay within `error`."""
        others = tuple(k for k in self.listed if k > 0)
        room = Room(self.reading, others)
        self.reading.together(room.start)
        norm = look(self.reading)
        least = torch.finfo(self.reading.dtype).eps
        budget: TruncationBudget[Tensor] = TruncationBudget(
            max(error, least) ** 2, len(self.listed), norm=norm**2
        )
        sizes, rows = self.reading.shape, room.start()
        spectra: Spectra = {}
        ranks: dict[int, int] = {}
        basis: Basis = {}
        # What a mode leaves out the next ones need not leave out again: one pass each.
        for k in mode_order(sizes, others, {}):
            spectra |= self._spectra(rows, [k], basis)
            ranks[k] = min(sizes[k], budget.choose(spectra[k][1]))
            if ranks[k] < sizes[k]:
                basis[k] = self._leading(spectra, k, ranks[k], 1)
        cut = tuple(k for k in others if ranks[k] < sizes[k])
        fit = self._from(
            {k: spectra[k] for k in cut}, {k: ranks[k] for k in cut}, Room(self.reading, cut),
            norm, budget,
        )  # fmt: skip
        if fit.error <= error:
            return fit
        reason = out_of_reach(error, fit.error, self.reading.tensor.dtype)
        return replace(fit, converged=False, reason=reason)

    def _spectra(self, rows: int, modes: Sequence[int], basis: Basis | None = None) -> Spectra:
        """Of the unfoldings, in one pass; of what is left by factors of other modes."""
        sides = {k: WholeSide(self.reading.shape[k], self.reading) for k in modes}
        if sides:
            for _, piece in self.reading.pieces(rows):
                left = contract(piece, basis, list(basis)) if basis else piece
                for k, side in sides.items():
                    side.add(left, k)
        return {k: side.spectrum() for k, side in sides.items()}

    def _leading(self, spectra: Spectra, k: int, r: int, wider: int) -> Tensor:
        """The first r vectors of a mode, and those that follow up to `wider` times as many."""
        vectors, _ = spectra[k]
        more = [complete(vectors[:, :r], r), vectors[:, r : wider * r]]
        return torch.cat(more, dim=1).to(self.reading.dtype)

    def _from(
        self,
        spectra: Spectra,
        ranks: dict[int, int],
        room: Room,
        norm: float,
        budget: TruncationBudget[Tensor] | None,
    ) -> LargeFit[TuckerFactors]:
        """From the factors of the other modes on; the rank of the divided one is of `ranks`, or
        what `budget` leaves."""
        reading, shape = self.reading, self.reading.shape
        rest = [*enumerate(shape)][1:]
        first = ranks.get(0, shape[0])  # which is as yet unknown where an error is asked for
        planned = {**ranks, 0: min(first, math.prod(ranks.get(k, n) for k, n in rest))}
        passes = reading.together(lambda: room.passes(planned, self.wider))
        order = mode_order(shape, room.others, ranks)
        hooi = DividedHOOI(reading, passes, norm, order, ranks)
        basis = {k: self._leading(spectra, k, ranks[k], self.wider) for k in spectra}
        contracted = hooi.contracted_rows(basis)
        if budget is not None:
            _, energies = hooi.leading_rows(contracted, 1)
            hooi.ranks[0] = ranks[0] = min(shape[0], budget.choose(energies))
        more_rows = min(shape[0], self.wider * ranks[0])
        basis[0], _ = hooi.leading_rows(contracted, more_rows)
        core = hooi.core(contracted, basis[0])
        del contracted
        if self.sweeps:
            inner = settled_within(core, [*order, 0], ranks, self.sweeps)
            core = contract(core, inner, [*order, 0])
            basis = {k: basis[k] @ inner[k] for k in basis}
        if not self.sweeps:
            return self._finish(
                core, basis, (), True, "hosvd needs no iteration", norm, passes.rows
            )
        at, loss = hooi.measured(core, basis)

        def watch(at: Iterate, error: float) -> bool:
            if self.callback is None:
                return False
            told = self.callback(self._factors(at.core, at.basis, reading.dtype), error)
            return bool(reading.group.first(bool(told)))

        run = descend([Descent.at(at, loss)], hooi.sweep, self.tol, self.sweeps, watch=watch)
        best = run.state
        return self._finish(
            best.core, best.basis, run.errors, run.converged, run.reason, norm, passes.rows
        )

    def _finish(
        self,
        core: Tensor,
        basis: Basis,
        errors: Sequence[float],
        converged: bool,
        reason: str,
        norm: float,
        rows: int,
    ) -> LargeFit[TuckerFactors]:
        """Put the core in order, cast, and measure."""
        reading = self.reading
        dtype = reading.tensor.dtype
        factors = self._factors(core, basis, dtype)
        loss = self._true_error(factors, norm, rows) if self.measure else math.nan
        return LargeFit(
            factors,
            (*errors, loss),
            converged,
            reason,
            passes=reading.passes,
            bytes_sent=reading.group.bytes_sent,
        )

    def _factors(self, core: Tensor, basis: Basis, dtype: torch.dtype) -> TuckerFactors:
        """Whole ones, of all modes that are listed."""
        reading = self.reading
        whole = {**basis, 0: torch.cat(reading.group.rows(basis[0]))}
        kept = [k for k in self.listed if k not in whole]
        whole.update({k: identity(reading.shape[k], core) for k in kept})
        core, whole = order_by_energy(core, whole, torch.finfo(dtype).eps)
        for k, factor in whole.items():
            sign = signs(factor)
            whole[k] = factor * sign
            core = mode_product(core, torch.diag(sign), k)
        return as_factors(core, whole, reading.scale, reading.axes, dtype)

    def _true_error(self, factors: TuckerFactors, norm: float, rows: int) -> float:
        """Of factors as they are; one pass."""
        reading = self.reading
        wide = factors.to(reading.dtype)
        core = (wide.core / reading.scale).permute(reading.axes)
        pairs = zip(wide.modes, wide.factors, strict=True)
        basis = {reading.axes.index(k): factor for k, factor in pairs}
        own_rows = basis.pop(0)[reading.own]
        growing = sorted(basis, key=lambda k: basis[k].shape[0] / core.shape[k])

        def rebuilt(own: slice) -> Tensor:
            piece = mode_product(core, own_rows[own], 0)
            for k in growing:
                piece = mode_product(piece, basis[k], k)
            return piece

        return rel_error(reading, norm, rows, rebuilt)
