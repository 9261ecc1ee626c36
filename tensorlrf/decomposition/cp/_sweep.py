"""Sweeps of alternating least squares over the modes of a CP model (Carroll & Chang 1970; Harshman
1970; Kolda & Bader 2009, 3.4), by a dimension tree (Phan, Tichavsky & Cichocki 2013).

They are told once, for arrays of torch and of numpy: what the two do by calls of their own is in a
subclass for each, `TorchSweeps` here and `NumpySweeps` for small problems.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Self

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._residual import square_residuals
from tensorlrf.decomposition.cp._state import CPState
from tensorlrf.decomposition.linalg.multilinear._columns import normalise
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor, ModeCut
from tensorlrf.decomposition.linalg.multilinear._tree import TorchTree, Tree
from tensorlrf.factors.algebra import khatri_rao
from tensorlrf.factors.arrays import A

LEAST = {torch.float32: 1e-30, torch.float64: 1e-200}
"""Added to the diagonal of a system of columns near unit length: far below what counts, with an
inverse within the dtype. So a column of zeros, whose system is one of zeros, stays as it is."""

RENEWED = 10
"""Sweeps until columns are brought to unit length: their lengths may drift from one for some."""


class Sweeps(Tree[A]):
    """Columns (n_k, s r) in which the model is unit times the sum of their outer products, and
    their Grams in float64, (s, r, r), of one start (r, r).

    The step of a mode is that of unit columns: with D the lengths that the columns of the others
    multiply up to, the ridge is on (B - B_old) D, and D^2 is the diagonal of the system (the
    scaling of Marquardt 1963). So nothing is normalised between modes, only now and then.

    unit      a power of two near ||X||
    free      the modes that are updated, in their order
    weights   (s r) float64, as multiples of the unit, while the columns have unit length; during
              sweeps they are in the columns of the first free mode
    start     the columns at unit length, as they last were
    identity  (r, r) float64
    ridged    one, and on its diagonal one and the ridge of the sweep at hand
    measured  of the last update the system, the right side, and the new columns with their Gram
    """

    grams: list[A]
    weights: A
    start: list[A]
    identity: A
    ridged: A
    measured: tuple[A, A, A, A]

    def __init__(
        self, tensor: CutTensor, state: CPState, fixed: frozenset[int], unit: float
    ) -> None:
        self.tensor = tensor
        self._hold(state, tensor.cut, (*tensor.cut.inner, *tensor.cut.outer), fixed, unit)

    def _hold(
        self,
        state: CPState,
        cut: ModeCut,
        order: Sequence[int],
        fixed: frozenset[int],
        unit: float,
    ) -> None:
        """Begin at a state; modes are updated in that order."""
        self.cut, self.unit, self.fixed = cut, unit, fixed
        self.starts, self.rank = state.weights.shape
        self.free = [k for k in order if k not in fixed]
        width = self.starts * self.rank  # there may be no rows
        self.columns = [self._array(u).reshape(len(u), width) for u in state.factors]
        self.grams = [self._gram_along(k, u) for k, u in enumerate(self.columns)]
        self.weights = self._array(state.weights).reshape(-1) / unit

    def run(self, ridges: Sequence[float]) -> Self:
        """A sweep for each of the ridges."""
        for first in range(0, len(ridges), RENEWED):
            self._begin()
            for ridge in ridges[first : first + RENEWED]:
                self.ridged = self.identity * ridge + 1.0
                self._over_modes()
            self._normalise()
        return self

    def rescale(self) -> Self:
        """Give the model of each start the scale at which it is nearest to X."""
        along = self._inner_products() * self.weights
        weights = self.weights.reshape(self.starts, -1)
        pairs = weights[:, :, None] * weights[:, None, :]
        square = (reduce(mul, self.grams) * pairs).sum((1, 2))  # ||X_hat||^2 in squares of the unit
        product = along.reshape(self.starts, -1).sum(1) / self.unit  # <X, X_hat> likewise
        self.weights = (weights * self._ratio(product, square)[:, None]).reshape(-1)
        return self

    def _inner_products(self) -> A:
        """Of X with each term of the model, columns as they are, (s r,) float64."""
        inner = khatri_rao(tuple([self.columns[k] for k in self.cut.inner]))  # (M, s r)
        product: A = self._wide(self._contract_outer() * inner).sum(0)
        return product

    def state(self) -> CPState:
        """Where they have led to."""
        weights = (self.weights * self.unit).reshape(self.starts, -1)
        factors = [self._tensor(u.reshape(len(u), self.starts, self.rank)) for u in self.columns]
        grams = [self._tensor(g.reshape(self.starts, self.rank, -1)) for g in self.grams]
        return CPState(tuple(factors), self._tensor(weights), tuple(grams))

    def progress(self) -> list[float]:
        """||X_hat||^2 - 2 <X, X_hat> of each start, as the last sweep left it."""
        system, rhs, last, gram = self.measured
        model = (system * gram).reshape(self.starts, -1).sum(1)
        inner = (self._wide(rhs) * last).reshape(len(rhs), self.starts, -1).sum((0, 2))
        change: list[float] = (model * self.unit**2 - inner * (2 * self.unit)).tolist()
        return change

    @abstractmethod
    def square_residuals(self) -> list[float]:
        """||X - X_hat||^2 of each start, true ones."""

    # ---- what torch and numpy do by calls of their own --------------------------------------

    @abstractmethod
    def _array(self, tensor: Tensor) -> A:
        """A tensor as an array, and"""

    @abstractmethod
    def _tensor(self, array: A) -> Tensor:
        """back, in the same memory."""

    @abstractmethod
    def _step(self, old: A, rhs: A, system: A, ridged: A) -> A:
        """old + (rhs / unit - old system) (system * ridged)^-1, for each start."""

    @abstractmethod
    def _gram(self, columns: A) -> A:
        """Of the columns of a mode, in float64."""

    @abstractmethod
    def _unit_columns(self, mode: int) -> tuple[A, A]:
        """The columns of a mode at unit length, and their lengths (s r), float64.

        A column that vanished takes its direction at the start, with weight zero: it can come back.
        """

    @abstractmethod
    def _ratio(self, product: A, square: A) -> A:
        """Of two numbers for each start; one where the second is zero."""

    @abstractmethod
    def _wide(self, array: A) -> A:
        """In float64."""

    @abstractmethod
    def _near(self, array: A) -> A:
        """In the dtype of X."""

    # ---- the sweep --------------------------------------------------------------------------

    def _begin(self) -> None:
        first = self.free[0]
        self.start, self.columns = self.columns, list(self.columns)
        self.columns[first] = self.columns[first] * self._near(self.weights)
        self.grams[first] = self._gram_along(first, self.columns[first])

    def _normalise(self) -> None:
        lengths: list[A] = []
        for k in self.free:
            self.columns[k], length = self._unit_columns(k)
            self.grams[k] = self._gram_along(k, self.columns[k])
            lengths.append(length)
        self.weights = reduce(mul, lengths)

    def _gram_along(self, mode: int, columns: A) -> A:
        """The Gram of that mode, of which `columns` may be some rows."""
        return self._gram(columns)

    def _update(self, mode: int, rhs: A) -> None:
        """The least-squares factor of one mode, all others held; `rhs` (n_mode, s r) is of X."""
        system = reduce(mul, [g for k, g in enumerate(self.grams) if k != mode])
        new = self._step(self.columns[mode], rhs, system, self.ridged)
        self.columns[mode], self.grams[mode] = new, self._gram_along(mode, new)
        self.measured = system, rhs, new, self.grams[mode]


class TorchSweeps(TorchTree, Sweeps[Tensor]):
    """Of any number of starts, on any device, with a graph where one is kept. Nothing but the
    residuals and the progress waits for a device."""

    def __init__(
        self, tensor: CutTensor, state: CPState, fixed: frozenset[int], unit: float
    ) -> None:
        self.dtype = tensor.blocks.dtype
        super().__init__(tensor, state, fixed, unit)
        self.identity = torch.eye(self.rank, dtype=torch.float64, device=tensor.blocks.device)
        self.least = self.identity * LEAST[self.dtype]

    def square_residuals(self) -> list[float]:
        found: list[float] = square_residuals(self.tensor, self.state()).tolist()
        return found

    def _array(self, tensor: Tensor) -> Tensor:
        return tensor

    def _tensor(self, array: Tensor) -> Tensor:
        return array.clone() if array.is_inference() else array

    def _step(self, old: Tensor, rhs: Tensor, system: Tensor, ridged: Tensor) -> Tensor:
        damped = torch.addcmul(self.least, system, ridged)
        inverse = self._near(torch.cholesky_inverse(torch.linalg.cholesky_ex(damped)[0]))
        scale, near = 1 / self.unit, self._near(system)
        if self.starts == 1:
            residual = torch.addmm(rhs, old, near, beta=scale, alpha=-1)
            return torch.addmm(old, residual, inverse)
        rows, wanted = self._rows(old), self._rows(rhs)
        residual = torch.baddbmm(wanted, rows, near, beta=scale, alpha=-1)
        return torch.baddbmm(rows, residual, inverse).transpose(0, 1).flatten(1)

    def _gram(self, columns: Tensor) -> Tensor:
        wide = self._wide(columns)
        if self.starts > 1:
            wide = self._rows(wide)
        return wide.mT @ wide

    def _unit_columns(self, mode: int) -> tuple[Tensor, Tensor]:
        return normalise(self.columns[mode], self.start[mode])

    def _ratio(self, product: Tensor, square: Tensor) -> Tensor:
        return torch.where(square > 0, product / square, 1.0)

    def _wide(self, array: Tensor) -> Tensor:
        return array.to(torch.float64)

    def _near(self, array: Tensor) -> Tensor:
        return array.to(self.dtype)

    def _rows(self, columns: Tensor) -> Tensor:
        return columns.view(len(columns), self.starts, -1).transpose(0, 1)  # (s, n, r)
