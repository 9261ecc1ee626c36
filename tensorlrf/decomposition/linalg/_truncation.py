"""A matrix taken apart to be cut, by the solver asked for or the one that should take least.

What `svd` does below its checks, for whoever has a matrix of its own that needs none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.linalg._gram import scale_of
from tensorlrf.decomposition.linalg._krylov import krylov_svd
from tensorlrf.decomposition.linalg._rangefinder import range_of
from tensorlrf.decomposition.linalg._solver import Choice, choose, exact_solver
from tensorlrf.decomposition.linalg._spectrum import FullSVD, ShortSideEigh, SketchedSVD, Spectrum

SOLVERS = ("auto", "exact", "eigh", "krylov", "randomized")

POWER_STEPS = 8
"""Of a sketch, by default."""

SEED = 0
"""Of the random vectors of "auto", so that it repeats where no `random_state` is given."""


@dataclass(frozen=True)
class SVDSolver:
    """How a matrix is taken apart, see `svd`."""

    solver: str
    n_power_iter: int
    n_oversample: int
    draws: torch.Generator

    def spectrum(
        self, matrix: Tensor, r: int | None, *, graph: bool = False
    ) -> tuple[Spectrum, str]:
        """To be cut at rank r, or anywhere, and how it went; of a `matrix` in a working dtype.

        What a `graph` is kept of are singular vectors, not nearly the best vectors that there are.
        """
        if self.solver == "randomized":
            basis = range_of(matrix, r or 1, self.n_power_iter, self.n_oversample, self.draws)
            return SketchedSVD(matrix, basis), "solver 'randomized'"
        solver = exact = exact_solver(matrix.dtype)
        tried = ""
        if self.solver in ("exact", "eigh"):
            solver = self.solver
        elif r is not None:
            choice = Choice(exact)
            if not graph:
                shape = (int(matrix.shape[0]), int(matrix.shape[1]))
                forced = self.solver == "krylov"
                choice = choose(shape, r, matrix.dtype, torch.get_num_threads(), forced=forced)
            if choice.solver == "krylov":
                found = krylov_svd(matrix, r, choice, self.draws)
                if found is not None:
                    return found, f"solver 'krylov', {found.products} products"
                tried = ", since a Krylov space took too many products"
        if solver == "exact":
            return FullSVD(matrix), f"solver 'exact'{tried}"
        return ShortSideEigh(matrix, None if graph else r), f"solver 'eigh'{tried}"


@dataclass(frozen=True)
class Scaled:
    """A tensor in its working dtype over a power of four, away from overflow and underflow.

    root   of that power: what either side of a truncation of `work` takes to be one of the tensor
    dtype  of the tensor
    """

    work: Tensor
    root: float
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor, largest: float) -> Scaled:
        """`largest` is max|x|."""
        work = tensor.to(working_dtype(tensor.dtype))
        scale = scale_of(work, largest)
        return cls(work if scale == 1.0 else work / scale, math.sqrt(scale), tensor.dtype)

    def cast(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Sides of a truncation of `work`, as those of the tensor."""
        if self.root != 1.0:
            left, right = left * self.root, right * self.root
        return left.to(self.dtype), right.to(self.dtype)

    def rel_error(self, spectrum: Spectrum, left: Tensor, right: Tensor) -> float:
        """Of sides that were cast."""
        left, right = (side.to(self.work.dtype) / self.root for side in (left, right))
        return spectrum.rel_error(left, right)
