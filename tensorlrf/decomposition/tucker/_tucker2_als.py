"""Tucker-2 of a conv kernel in the metric of its inputs.

The kernel K (O, I, T), T taps, is approximated by U (O, r_out), a core (r_out, r_in, T) and
F (I, r_in), so that the mean of |(K - K_hat) x|^2 over the unfolded inputs x is small; with
G = X X^T / N that is tr(D G D^T). Given F, the best U and core follow from one symmetric
eigenproblem (reduced-rank regression); given U and core, F solves a linear system. Inside this file
the unfolded inputs are ordered tap by tap, (T, I), so that a product with F is one matrix product.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import FALL, Descent, descend
from tensorlrf.decomposition._target import Target
from tensorlrf.decomposition.linalg._gram import complete, descending_eigh
from tensorlrf.decomposition.linalg._output_spectrum import growth
from tensorlrf.decomposition.linalg._solve import cholesky, conjugate_gradients, symmetric
from tensorlrf.decomposition.linalg._spectrum import ratio


@dataclass(frozen=True)
class Regression:
    """The best output side for a given input factor, see `Tucker2ALS.regress`."""

    inputs: Tensor  # F (I, r_in), orthonormal columns
    outputs: Tensor  # U (O, r_out), orthonormal columns, by energy
    core: Tensor  # (r_out, T, r_in)
    energies: Tensor  # (r_out,) second moments of U^T K_hat x
    explained: float  # their sum


class Tucker2ALS:
    """Alternating least squares for a target whose weight is a kernel (O, I, T), given the second
    moments (I T, I T) of its unfolded inputs; float64."""

    def __init__(self, target: Target[Any], n_in: int) -> None:
        self.n_out, n = target.shape
        self.n_in, self.taps = n_in, n // n_in
        self.norm = target.norm
        self.kernel, self.moments = (self._by_taps(w) for w in (target.matrix, target.image))
        self.gram = self._by_taps(self._by_taps(target.moments).T)
        # The moments of one input pixel, as seen by all taps together.
        one_tap = self.gram.view(self.taps, self.n_in, self.taps, self.n_in)
        self.channels = one_tap.diagonal(dim1=0, dim2=2).sum(-1)  # C, (I, I)

    def less(self, outputs: Tensor, rows: Tensor) -> Tucker2ALS:
        """The same for what outputs (O, u) rows (u, T I) leaves of the kernel; `lost` is then a
        share of the norm of what is left."""
        left = copy.copy(self)
        seen = rows @ self.gram
        cross = float(((outputs.T @ self.moments) * rows).sum())
        square = float(((outputs.T @ outputs) @ seen * rows).sum())
        left.norm = max(self.norm - 2 * cross + square, 0.0)
        left.kernel = self.kernel - outputs @ rows
        left.moments = self.moments - outputs @ seen
        return left

    def recipe_inputs(self, r: int) -> Tensor:
        """The best F if taps were uncorrelated, (I, r) with orthonormal columns.

        With C = L L^T the moments of the input channels and S those of the weights over outputs
        and taps, K maps x as the rank-r map that keeps the top eigenvectors Q of L^T S L does:
        F spans S L Q. L = V sqrt(lambda) needs no inverse, so that dead channels do no harm.
        """
        values, vectors = descending_eigh(self.channels)
        root = vectors * values.sqrt()
        weights = self.kernel.view(-1, self.n_in)
        second = weights.T @ weights
        _, top = descending_eigh(root.T @ second @ root)
        spanned: Tensor = torch.linalg.qr(second @ (root @ top[:, :r]))[0]
        return complete(spanned, r)

    def regress(self, inputs: Tensor, r_out: int) -> Regression:
        """The best U and core for F: of the least-squares fit Z to K G, its top directions.

        Z = K G F_T H^+ with F_T = F at every tap and H = F_T^T G F_T; U are the top eigenvectors of
        Z H Z^T and the core is U^T Z.
        """
        n, taps, r_in = self.n_in * self.taps, self.taps, inputs.shape[1]
        spread = (self.gram.view(n * taps, self.n_in) @ inputs).view(taps, self.n_in, taps * r_in)
        inner = (inputs.T @ spread).reshape(taps * r_in, taps * r_in)  # H
        cross = (self.moments.view(-1, self.n_in) @ inputs).view(self.n_out, taps * r_in)
        fit = torch.cholesky_solve(cross.T, cholesky(inner))  # Z^T, (T r_in, O)
        energies, vectors = descending_eigh(symmetric(cross @ fit))
        outputs = vectors[:, :r_out]
        core = (fit @ outputs).T.reshape(r_out, taps, r_in)
        return Regression(inputs, outputs, core, energies[:r_out], float(energies[:r_out].sum()))

    def lost(self, at: Regression) -> float:
        """Relative error of a regression."""
        return ratio(self.norm - at.explained, self.norm)

    def improve_inputs(self, at: Regression) -> Tensor:
        """F nearer to the best one for the U and core of `at`, with orthonormal columns.

        The normal equations have I r_in unknowns; some steps of conjugate gradients from the
        present F, preconditioned by what they would be if taps were uncorrelated.
        """
        core = at.core.reshape(-1, at.core.shape[2])  # (r_out T, r_in)
        rows = at.core.shape[0]

        def normal(inputs: Tensor) -> Tensor:
            rebuilt = (core @ inputs.T).view(rows, -1)  # (r_out, T I)
            return (rebuilt @ self.gram).view(-1, self.n_in).T @ core

        target = (at.outputs.T @ self.moments).view(-1, self.n_in).T @ core
        left = cholesky(self.channels / self.taps, 1e-4)
        right = cholesky(core.T @ core, 1e-8)

        def precondition(residual: Tensor) -> Tensor:
            half = torch.cholesky_solve(residual, left)
            return torch.cholesky_solve(half.T, right).T

        residual = target - normal(at.inputs)
        solution = conjugate_gradients(normal, residual, at.inputs, precondition)
        improved: Tensor = torch.linalg.qr(solution)[0]
        return improved

    def inner_values(self, at: Regression, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """U, core (r_out, r_in, T) times `scale` and F, split for half precision.

        The inner values F^T x and then U^T K_hat x can have up to I and O times the mean square of
        an input and an output. A column whose values have more than an input (output) hands the
        excess to the core (to U). Columns of F come ordered by the energy of their core slices.
        """
        _, turn = descending_eigh(torch.einsum("otr,ots->rs", at.core, at.core))
        inputs, core = at.inputs @ turn, at.core @ turn
        passed = ((self.channels @ inputs) * inputs).sum(0)
        input_share = growth(passed, self.channels.diagonal().mean())
        output_share = growth(at.energies, passed.new_tensor(self.norm / self.n_out))
        core = core * input_share / output_share[:, None, None]
        return at.outputs * output_share, scale * core.transpose(1, 2), inputs / input_share

    def _by_taps(self, matrix: Tensor) -> Tensor:
        """Columns (I, T) of a matrix as (T, I)."""
        columns = matrix.reshape(len(matrix), self.n_in, self.taps)
        return columns.transpose(1, 2).reshape(len(matrix), -1)


def alternate(
    als: Tucker2ALS, starts: Iterable[Tensor], r_out: int, rounds: int, tol: float | None
) -> Descent[Regression]:
    """The best of the regressions from `starts` (I, r_in), improved by rounds of least squares.

    A round improves F for U and the core, and then takes the best U and core for that F.
    """

    def regress(inputs: Tensor) -> tuple[Regression, float]:
        at = als.regress(inputs, r_out)
        return at, als.lost(at)

    return descend(
        [Descent.at(*regress(inputs)) for inputs in starts],
        lambda at: regress(als.improve_inputs(at)),
        tol,
        rounds,
        rise=FALL,
        enough=0.0,
    )
