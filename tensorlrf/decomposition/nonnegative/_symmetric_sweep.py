"""Steps towards the nearest sum of symmetric rank-one tensors.

The model is sum_j w_j a_j o a_j o ... of order N (Kolda 2015, "Numerical optimization for symmetric
tensor decomposition"). Its columns take a damped Gauss-Newton step (Levenberg 1944; Marquardt
1963), by conjugate gradients, since the product of J^T J with a matrix is made of matrices r x r;
then the weights are those of least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent
from tensorlrf.decomposition.linalg._solve import conjugate_gradients
from tensorlrf.decomposition.nonnegative._data import Data, gram

STEPS = 30
"""Of conjugate gradients, at the most."""

TRIES = 8
"""Dampings, each larger than the one before, until a step goes down."""

SOFTER, HARDER = 0.2, 5.0
"""What the damping is multiplied by after a step that goes down, and one that does not."""

LEAST, MOST = 1e-12, 1e6

RIDGE = 1e-12
"""Of the weights, proximal."""


@dataclass(frozen=True)
class Terms:
    """Columns (n, r) of unit length and weights (r,), both float64; the damping that served last,
    in units of the largest squared weight."""

    columns: Tensor
    weights: Tensor
    damping: float = 1e-3


class Symmetric:
    """A symmetric tensor of order N, and steps towards its model."""

    def __init__(self, data: Data) -> None:
        self.data, self.order = data, len(data.cut.shape)
        self.first = data.tensor.reshape(data.cut.shape[0], -1)

    def error(self, terms: Terms) -> float:
        """Of the residual itself."""
        columns = terms.columns.to(self.data.tensor.dtype)
        return self.data.true_error([columns] * self.order, terms.weights)

    def begun(self, columns: Tensor) -> Descent[Terms]:
        """From directions (n, r), with the weights that suit them."""
        columns = columns / torch.linalg.vector_norm(columns, dim=0)
        zero = torch.zeros(columns.shape[1], dtype=torch.float64, device=columns.device)
        terms = Terms(columns, self._weights(columns, zero))
        return Descent.at(terms, self.error(terms))

    def sweep(self, terms: Terms) -> tuple[Terms, float]:
        """A step that lowers the error, if there is one among so many dampings."""
        before, damping = self.error(terms), terms.damping
        slope = self._slope(terms)
        for _ in range(TRIES):
            moved = terms.columns + self._step(terms, slope, damping)
            length = torch.linalg.vector_norm(moved, dim=0)
            unit = torch.where(length > 0, moved / length.clamp_min(1e-300), terms.columns)
            found = Terms(
                unit,
                self._weights(unit, terms.weights * length**self.order),
                max(LEAST, damping * SOFTER),
            )
            error = self.error(found)
            if error < before:
                return found, error
            damping = min(MOST, damping * HARDER)
        return terms, before

    def _contracted(self, columns: Tensor) -> Tensor:
        """X with a_j along all modes but one, (n, r) float64."""
        near = columns.to(self.first.dtype)
        factors = [near] * self.order
        partial = self.data.cut.contract_outer(factors)  # (M, r) over the inner modes
        r = near.shape[1]
        for _ in range(len(self.data.cut.cut.inner) - 1):
            partial = (partial.reshape(-1, len(near), r) * near).sum(1)
        return partial.to(torch.float64)

    def _weights(self, columns: Tensor, old: Tensor) -> Tensor:
        """Those of least squares, from `old` where they are not told."""
        system = gram(columns) ** self.order
        along = (self._contracted(columns) * columns).sum(0)
        ridge = RIDGE * torch.eye(len(system), dtype=system.dtype, device=system.device)
        step: Tensor = torch.linalg.solve(system + ridge, along - system @ old)
        return old + step

    def _slope(self, terms: Terms) -> Tensor:
        """J^T (X - X_hat), (n, r)."""
        columns, weights = terms.columns, terms.weights
        powers = gram(columns) ** (self.order - 1)
        left = self._contracted(columns) - columns @ (weights[:, None] * powers)
        return self.order * weights * left

    def _step(self, terms: Terms, slope: Tensor, damping: float) -> Tensor:
        """(J^T J + damping) D = slope, with J D = N sum_j w_j a_j o ... o d_j, symmetrised."""
        columns, weights, order = terms.columns, terms.weights, self.order
        inner = gram(columns)
        near = torch.outer(weights, weights) * inner ** (order - 1)
        turned = torch.outer(weights, weights) * inner ** (order - 2) * (order - 1)
        ridge = damping * order * float(weights.square().max().clamp_min(1e-300))

        def normal(d: Tensor) -> Tensor:
            across = columns @ (turned * (d.T @ columns))
            return order * (d @ near + across) + ridge * d

        start = torch.zeros_like(columns)
        diagonal = order * weights.square() + ridge
        return conjugate_gradients(
            normal, slope, start, lambda d: d / diagonal, steps=STEPS, least=1e-16
        )
