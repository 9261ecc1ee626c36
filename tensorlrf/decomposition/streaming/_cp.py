"""A CP model of a tensor that grows along its first mode."""

from __future__ import annotations

import math
from functools import reduce
from operator import mul
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor
from tensorlrf.decomposition._options import check_count
from tensorlrf.decomposition.linalg._solve import proximal_step
from tensorlrf.decomposition.linalg.threads import entries, problem
from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import CPFactors
from tensorlrf.factors.autocast import without_autocast
from tensorlrf_kernels.mttkrp import mttkrp


class OnlineCP:
    """A CP model of a tensor that grows along its first mode, slab by slab, none of which is kept.

    An update solves for the new rows of the growing factor, adds what the slab says to the sums of
    products that the other factors follow from, and solves for these: work and memory are those of
    the slab and the factors, however long the tensor has become.

    Parameters
    ----------
    init : CPFactors
        A model of the first slab, as `tensorlrf.cp` gives it.
    n_iter : int
        Passes over the factors in each update, of one (as published) or more.

    Attributes
    ----------
    n_rows : int
        Size of the growing mode so far.

    Raises
    ------
    ArgumentError
        For what are no CPFactors of two modes or more.

    Notes
    -----
    Rows of earlier slabs are not solved for again, so the model follows factors that drift and is
    no better than least squares for all rows at once; `slab_error` tells how well it fits what came
    last.

    References
    ----------
    Zhou, Vinh, Bailey, Jia & Davidson 2016, algorithm 2.

    Examples
    --------
    >>> planted = tensorlrf.CPFactors(torch.ones(2), tuple(torch.randn(n, 2) for n in (40, 6, 5)))
    >>> first, *others = planted.to_dense().split(10)
    >>> stream = tensorlrf.OnlineCP(tensorlrf.cp(first, 2, random_state=0))
    >>> for slab in others:
    ...     stream.update(slab)
    >>> stream.factors.shape, stream.n_rows
    ((40, 6, 5), 40)
    """

    @without_autocast()
    def __init__(self, init: CPFactors, *, n_iter: int = 1) -> None:
        if not hasattr(init, "weights") or len(getattr(init, "factors", ())) < 2:
            raise ArgumentError(
                f"init is a {type(init).__name__}; pass CPFactors of two modes or more, a model of "
                "the first slab, as tensorlrf.cp gives it"
            )
        check_count("n_iter", n_iter, 1)
        self._n_iter, self._dtype = n_iter, init.dtype
        weights, *factors = (t.detach().to(torch.float64) for t in (init.weights, *init.factors))
        if not all(bool(t.isfinite().all()) for t in (weights, *factors)):
            raise ArgumentError("init contains NaN or Inf; find where it came from")
        growing, *self._others = factors
        self._blocks = [growing * weights]
        self.n_rows = int(growing.shape[0])
        self.slab_error = math.nan
        # Of every mode but the growing one: what MTTKRPs and Grams of all slabs have summed to. The
        # first slab is known by its model alone, which is its best fit.
        square = self._blocks[0].T @ self._blocks[0]
        self._grams = [square * self._product(k) for k in range(len(self._others))]
        self._rights = [f @ g for f, g in zip(self._others, self._grams, strict=True)]

    @without_autocast()
    def update(self, slab: Any) -> None:
        """Take more of the tensor.

        Parameters
        ----------
        slab : Tensor or array of shape (m, n_1, ...)
            Of the other sizes, the dtype and the device of the model.

        Raises
        ------
        ShapeError
            For other sizes.
        ArgumentError
            For another dtype or device, and what cannot be decomposed. Nothing is changed then.
        """
        given = as_tensor(slab, "slab").detach()
        sizes = tuple(f.shape[0] for f in self._others)
        if tuple(given.shape[1:]) != sizes:
            raise ShapeError(
                f"slab has shape {tuple(given.shape)}; it must be (m, {', '.join(map(str, sizes))})"
            )
        if given.dtype != self._dtype or given.device != self._others[0].device:
            raise ArgumentError(
                f"slab is {given.dtype} on {given.device}, the model is {self._dtype} on "
                f"{self._others[0].device}; bring them together with .to()"
            )
        with problem(entries((given,))):
            self._take(given.to(torch.float64))

    def _take(self, slab: Tensor) -> None:
        others, rows = list(self._others), slab.new_zeros(slab.shape[0], self.rank)
        for _ in range(self._n_iter):
            rows = self._rows(slab, others)
            grams, rights = [], []
            square = rows.T @ rows
            for k in range(len(others)):
                alone = reduce(mul, (f.T @ f for j, f in enumerate(others) if j != k), square)
                grams.append(self._grams[k] + alone)
                rights.append(self._rights[k] + mttkrp(slab, [rows, *others], k + 1))
                others[k] = proximal_step(grams[k], rights[k].T, others[k].T).T
        self._others, self._grams, self._rights = others, grams, rights
        rows = self._rows(slab, others)
        self._blocks.append(rows)
        self.n_rows += int(slab.shape[0])
        ones = rows.new_ones(self.rank)
        self.slab_error = CPFactors(ones, (rows, *others)).rel_error(slab)

    def _rows(self, slab: Tensor, others: list[Tensor]) -> Tensor:
        """Those of the growing factor that fit a slab best."""
        start = slab.new_zeros(slab.shape[0], self.rank)
        gram = reduce(mul, (f.T @ f for f in others))
        right = mttkrp(slab, [start, *others], 0)
        found = proximal_step(gram, right.T, start.T)
        return proximal_step(gram, right.T, found).T  # what the proximal term held back

    def _product(self, skipped: int) -> Tensor:
        grams = (f.T @ f for k, f in enumerate(self._others) if k != skipped)
        return reduce(mul, grams, self._blocks[0].new_ones(self.rank, self.rank))

    @property
    def rank(self) -> int:
        """Components."""
        return int(self._blocks[0].shape[1])

    @property
    def factors(self) -> CPFactors:
        """Of all that has come, (n_rows, n_1, ...); columns have unit length."""
        if len(self._blocks) > 1:
            self._blocks = [torch.cat(self._blocks)]
        weights, columns = self._blocks[0].new_ones(self.rank), []
        for f in (self._blocks[0], *self._others):
            norms = torch.linalg.vector_norm(f, dim=0)
            columns.append((f / torch.where(norms > 0, norms, 1)).to(self._dtype))
            weights = weights * norms
        return CPFactors(weights.to(self._dtype), tuple(columns))
