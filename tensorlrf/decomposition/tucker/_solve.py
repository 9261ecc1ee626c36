"""The work behind `tucker`: one problem, solved for given ranks or within a given error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, descend
from tensorlrf.decomposition._fit import Fit
from tensorlrf.decomposition.linalg._budget import TruncationBudget
from tensorlrf.decomposition.linalg._gram import identity, keep
from tensorlrf.decomposition.linalg._spectrum import ratio
from tensorlrf.decomposition.tucker._hooi import (
    Basis,
    contract,
    hooi_sweep,
    hosvd,
    mode_order,
    order_by_energy,
    randomized_st_hosvd,
    st_hosvd,
)
from tensorlrf.errors import ArgumentError, TensorlrfWarning, warn
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product

Callback = Callable[[TuckerFactors, float], bool | None]

SWEEPS, TOL = 50, 1e-5

WIDER = 2
"""HOOI first looks within this many times the ranks."""

WORTH = 0.5
"""Share of the tensor's size above which a smaller tensor is not worth making."""

FINE = 0.1
"""Above this error the digits that a float32 Gram lacks do not show."""

INNER_TOL = 2e-5
"""Gain of energy below which the sweeps on the smaller tensor stop; those on the whole go on."""


class Iterate(NamedTuple):
    """Where HOOI is; `first` before its first sweep."""

    core: Tensor
    basis: Basis
    error: float
    first: bool = False


@dataclass(frozen=True)
class TuckerProblem:
    """A tensor in its working dtype, divided by `scale`, and how to decompose it.

    `tensor` is the given one with its modes in the order `axes`, see `layout`; `modes` and `ranks`
    count along it.
    """

    tensor: Tensor
    axes: tuple[int, ...]
    scale: float
    dtype: torch.dtype  # of the result
    modes: tuple[int, ...]
    solver: str
    n_iter_max: int
    tol: float
    callback: Callback | None
    n_power_iter: int
    n_oversample: int
    generator: torch.Generator

    def solve(self, ranks: Mapping[int, int]) -> Fit[TuckerFactors]:
        """For one rank a mode."""
        shape = self.tensor.shape
        cut = [k for k in self.modes if ranks[k] < shape[k]]
        choices = {k: keep(ranks[k]) for k in mode_order(shape, cut, ranks)}
        if self.solver == "randomized":
            core, basis = randomized_st_hosvd(
                self.tensor,
                ranks,
                list(choices),
                self.n_power_iter,
                self.n_oversample,
                self.generator,
            )
        elif self.solver == "hosvd":
            core, basis = hosvd(self.tensor, choices)
        elif self.solver == "st_hosvd" or len(cut) < 2:
            core, basis = st_hosvd(self.tensor, choices)
        else:
            # The sweeps restore the digits that a start from float32 Grams lacks.
            start, basis = st_hosvd(self.tensor, choices, wider=WIDER, dtype=self.tensor.dtype)
            return self._iterate(start, basis, ranks)
        return self._finish(core, basis, [], True, f"{self.solver} needs no iteration")

    def within(self, error: float) -> Fit[TuckerFactors]:
        """With the smallest ranks whose shares of the squared error stay within `error`.

        Rounding to the dtype of the result adds to the truncation; where that leads outside, the
        truncation is given what rounding has left.
        """
        floor = torch.finfo(self.tensor.dtype).eps
        target = error
        for _ in range(3):
            fit, left_out = self._truncate(max(target, floor))
            if fit.error <= error:
                return fit
            rounding = max(0.0, fit.error**2 - left_out**2)
            if rounding >= error**2:
                break
            # A little less than is left, since rounding differs from one rank to the next.
            target = 0.95 * math.sqrt(error**2 - rounding)
        reason = f"rounding to {self.dtype} keeps error={error} out of reach"
        if error >= floor:
            warn(
                f"error={error} is out of reach: the factors in {self.dtype} leave "
                f"{fit.error:.3g}; ask for more, or pass the tensor in float32",
                TensorlrfWarning,
            )
        return Fit(fit.factors, fit.errors, False, reason)

    def _truncate(self, error: float) -> tuple[Fit[TuckerFactors], float]:
        """A fit for an error, and a bound of what its truncation leaves."""
        order = mode_order(self.tensor.shape, self.modes, {})
        norm = squared_norm(self.tensor)
        budget: TruncationBudget[Tensor] = TruncationBudget(
            error**2, len(order), norm=norm, handed_on=self.solver != "hosvd"
        )
        choices = dict.fromkeys(order, budget.choose)
        if self.solver == "hosvd":
            core, basis = hosvd(self.tensor, choices)
        else:
            wider = WIDER if self.solver == "hooi" else 1
            core, basis = st_hosvd(self.tensor, choices, wider=wider)
        left_out = math.sqrt(budget.planned)
        if self.solver == "hooi" and len(basis) > 1:
            return self._iterate(core, basis, {k: core.shape[k] for k in basis}), left_out
        basis = {k: factor[:, : core.shape[k]] for k, factor in basis.items()}
        return self._finish(core, basis, [], True, f"{self.solver} needs no iteration"), left_out

    def _iterate(self, core: Tensor, wide: Basis, ranks: Mapping[int, int]) -> Fit[TuckerFactors]:
        """Sweeps of HOOI from a start whose factors are the first r_k columns of `wide`.

        First within the span of all those columns, where the tensor is small (Bro & Andersson
        1998); that finds most of what is to be found. Then on the tensor itself.
        """
        norm = squared_norm(self.tensor)
        order = mode_order(self.tensor.shape, list(wide), ranks)

        def sweep(at: Iterate) -> tuple[Iterate, float]:
            basis = dict(at.basis)
            if at.first:
                self._sweep_within(wide, order, basis)
            core = hooi_sweep(self.tensor, order, basis, fine=at.error < FINE)
            error = self._error(core, basis, norm)
            return Iterate(core, basis, error), error

        def watch(at: Iterate, error: float) -> bool:
            return bool(self.callback and self.callback(self._report(at.core, at.basis), error))

        basis = {k: columns[:, : ranks[k]] for k, columns in wide.items()}
        error = self._error(core, basis, norm)
        start = Descent.at(Iterate(core, basis, error, first=True), error)
        run = descend([start], sweep, self.tol, self.n_iter_max, watch=watch)
        core, basis = run.state.core, run.state.basis
        return self._finish(core, basis, run.errors, run.converged, run.reason)

    def _sweep_within(self, wide: Basis, order: list[int], basis: Basis) -> None:
        """HOOI on the tensor within the span of `wide`; changes `basis`."""
        size = math.prod(wide[k].shape[1] / wide[k].shape[0] for k in wide)
        if size > WORTH:
            return
        small = contract(self.tensor, wide, order)
        inner = settled_within(small, order, {k: basis[k].shape[1] for k in order}, self.n_iter_max)
        for k in order:
            basis[k] = wide[k] @ inner[k]

    def _finish(
        self, core: Tensor, basis: Basis, errors: Sequence[float], converged: bool, reason: str
    ) -> Fit[TuckerFactors]:
        """Put the core in order, cast, and measure."""
        core, basis = order_by_energy(core, self._whole(basis), torch.finfo(self.dtype).eps)
        factors = self._cast(core, basis, self.dtype)
        return Fit(factors, (*errors, self._true_error(factors)), converged, reason)

    def _error(self, core: Tensor, basis: Basis, norm: float) -> float:
        """Relative error from the energy of the core, or from the residual where that is noise."""
        lost = max(0.0, 1 - squared_norm(core) / norm) if norm > 0 else 0.0
        if lost > 2e4 * torch.finfo(self.tensor.dtype).eps:
            return math.sqrt(lost)
        return residual_error(self.tensor, core, basis)

    def _whole(self, basis: Basis) -> Basis:
        """`basis` with an identity for each mode that keeps its size."""
        sizes = self.tensor.shape
        whole = {k: identity(sizes[k], self.tensor) for k in self.modes if k not in basis}
        return {**basis, **whole}

    def _cast(self, core: Tensor, basis: Basis, dtype: torch.dtype) -> TuckerFactors:
        """Factors in `dtype`, with the scale and the order of modes of the input."""
        return as_factors(core, basis, self.scale, self.axes, dtype)

    def _report(self, core: Tensor, basis: Basis) -> TuckerFactors:
        return self._cast(core, self._whole(basis), self.tensor.dtype)

    def _true_error(self, factors: TuckerFactors) -> float:
        wide = factors.detach().to(self.tensor.dtype)
        pairs = zip(wide.modes, wide.factors, strict=True)
        basis = {self.axes.index(k): factor for k, factor in pairs}
        return residual_error(self.tensor, wide.core.permute(self.axes) / self.scale, basis)


def as_factors(
    core: Tensor, basis: Basis, scale: float, axes: Sequence[int], dtype: torch.dtype
) -> TuckerFactors:
    """`scale` times the whole as factors in `dtype`, of modes that stand in the order `axes`."""
    # The core holds the norm of the whole. Where its dtype cannot, the factors take a share.
    excess = float(core.detach().abs().max()) * scale / torch.finfo(dtype).max
    shift = 1.0
    if excess > 0.5:
        shift = 2.0 ** math.ceil((math.log2(excess) + 1) / len(basis))
    modes = sorted(basis, key=lambda k: axes[k])
    factors = tuple((basis[k] if shift == 1 else basis[k] * shift).to(dtype) for k in modes)
    scaled = (core * (scale / shift ** len(basis))).to(dtype)
    back = [axes.index(k) for k in range(core.ndim)]
    core = scaled.permute(back).contiguous()
    return TuckerFactors(core, factors, tuple(axes[k] for k in modes))


def settled_within(
    small: Tensor, order: Sequence[int], ranks: Mapping[int, int], n_iter_max: int
) -> Basis:
    """HOOI of a small tensor, from its first rows on, until a sweep gains little."""
    norm = squared_norm(small)
    inner = {k: identity(small.shape[k], small)[:, : ranks[k]] for k in order}
    captured = 0.0
    for _ in range(n_iter_max):
        energy = squared_norm(hooi_sweep(small, order, inner, fine=False))
        if energy - captured <= INNER_TOL * norm:
            break
        captured = energy
    return inner


def layout(order: int, modes: Sequence[int]) -> tuple[int, ...]:
    """An order of the modes in which the last of `modes` is the last of all.

    The unfolding of a last mode is a view, and a product along it one matrix product; along an
    inner mode with little behind it (a channel before a 3 x 3 window) it is many small ones.
    """
    if len(modes) < 2 or max(modes) == order - 1:
        return tuple(range(order))
    return (*(k for k in range(order) if k != max(modes)), max(modes))


def squared_norm(tensor: Tensor) -> float:
    """Sum of squares in float64, a block at a time."""
    blocks = torch.split(tensor.detach().reshape(-1), 1 << 19)
    return float(sum(block.to(torch.float64).square().sum() for block in blocks))


def residual_error(tensor: Tensor, core: Tensor, basis: Basis) -> float:
    """Relative Frobenius error, the residual itself summed in float64, some slices at a time."""
    tensor, core = tensor.detach(), core.detach()
    basis = {k: factor.detach() for k, factor in basis.items()}
    others = sorted((k for k in basis if k > 0), key=lambda k: basis[k].shape[0] / core.shape[k])
    slices = max(1, (1 << 20) * tensor.shape[0] // tensor.numel())
    residual = norm = torch.zeros((), dtype=torch.float64, device=tensor.device)
    for start in range(0, tensor.shape[0], slices):
        block = tensor[start : start + slices]
        if 0 in basis:
            rebuilt = mode_product(core, basis[0][start : start + slices], 0)
        else:
            rebuilt = core[start : start + slices]
        for k in others:
            rebuilt = mode_product(rebuilt, basis[k], k)
        residual = residual + row_energies(block - rebuilt)
        norm = norm + row_energies(block)
    return ratio(residual, norm)


def row_energies(tensor: Tensor) -> Tensor:
    """Sum of squares: within rows of the last mode as the tensor is, over rows in float64."""
    rows: Tensor = torch.linalg.vector_norm(tensor, dim=-1)
    return rows.to(torch.float64).square().sum()


def check_sweeps(
    solver: str, callback: Callback | None, n_iter_max: int | None, tol: float | None
) -> None:
    """Raise ArgumentError for what is of sweeps, where another solver makes none."""
    if solver == "hooi":
        return
    for name, value in (("callback", callback), ("n_iter_max", n_iter_max), ("tol", tol)):
        if value is not None:
            raise ArgumentError(
                f"{name}= goes with solver='hooi'; {solver!r} makes no sweeps, leave it out"
            )
