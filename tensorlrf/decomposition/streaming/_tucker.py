"""A Tucker model of a tensor that grows along its first mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tensorlrf.decomposition._input import as_tensor, working_dtype
from tensorlrf.decomposition.linalg._gram import keep_within, left_singular
from tensorlrf.decomposition.linalg.threads import entries, problem
from tensorlrf.decomposition.rank import as_tuple_of_ints, check_rank_or_error, plain
from tensorlrf.decomposition.streaming._rows import GrowingRows, check_alike
from tensorlrf.errors import ArgumentError, RankError, ShapeError
from tensorlrf.factors import TuckerFactors
from tensorlrf.factors.algebra import mode_product
from tensorlrf.factors.autocast import without_autocast


class OnlineTucker:
    """A Tucker model of a tensor that grows along its first mode, slab by slab.

    No slab is kept. What is held are the core, the factors, and of the growing mode the rows of all
    slabs. An update puts the model of what came before, in the few directions of its growing mode,
    upon the slab, and decomposes these (r_0 + m, n_1, ...) by the sequentially truncated HOSVD:
    work and memory are those of the slab and the model, however long the tensor has become.

    Parameters
    ----------
    rank : int or tuple of int, optional
        Of each mode, the growing one first, or of all; at most what has been seen; or instead
    error : float, optional
        Relative error that the whole stays within after every update.

    Attributes
    ----------
    bound : float
        No less than the Frobenius norm of all slabs less `factors`.
    rel_error : float
        The same over the norm of all slabs.
    n_rows : int
        Size of the growing mode so far.

    Raises
    ------
    ArgumentError, RankError
        For ranks or an error that cannot be.

    Notes
    -----
    Each update's truncation is known exactly (the energies that it leaves out), and those of
    several add up by the triangle inequality, for what one leaves out in a mode need not be
    orthogonal to what others do: so `bound` is an upper one, while that of `IncrementalSVD` is the
    error. Where the ranks suffice for all that comes, nothing is lost.

    References
    ----------
    Vannieuwenhoven, Vandebril & Meerbergen 2012 for an update; Iwen & Ong 2016 for models upon
    what follows them; Sun, Tao & Faloutsos 2006 (incremental tensor analysis).

    Examples
    --------
    >>> stream = tensorlrf.OnlineTucker(rank=(3, 2, 2))
    >>> for slab in torch.rand(60, 6, 5).split(20):
    ...     stream.update(slab)
    >>> stream.factors.shape, stream.factors.rank, stream.n_rows
    ((60, 6, 5), (3, 2, 2), 60)
    """

    def __init__(
        self, rank: int | Sequence[int] | None = None, *, error: float | None = None
    ) -> None:
        rank, error = check_rank_or_error(rank, error)  # type: ignore[assignment]  # ints
        self._ranks: int | tuple[int, ...] | None = None if rank is None else as_tuple_of_ints(rank)
        self._error: float | None = plain(error, "error")
        self._dtype: torch.dtype | None = None
        self._rows = GrowingRows()
        self._core: Tensor | None = None
        self._others: list[Tensor] = []
        self._whole = 0.0  # squared
        self.bound = 0.0
        self.n_rows = 0

    @without_autocast()
    def update(self, slab: Any) -> None:
        """Take more of the tensor.

        Parameters
        ----------
        slab : Tensor or array of shape (m, n_1, ...)
            Of the other sizes, the dtype and the device of those before.

        Raises
        ------
        ShapeError
            For fewer than two modes, and for other sizes.
        RankError
            For ranks of another number of modes, or above its sizes.
        ArgumentError
            For another dtype or device, and what cannot be decomposed. Nothing is changed then.
        """
        given = as_tensor(slab, "slab").detach()
        self._check(given)
        with problem(entries((given,))):
            self._take(given.to(working_dtype(given.dtype)))
        self._dtype = given.dtype
        self.n_rows += int(given.shape[0])
        vars(self).pop("factors", None)

    def _take(self, slab: Tensor) -> None:
        stack, before = slab, 0
        if self._core is not None:
            spread = self._core
            for k, factor in enumerate(self._others, 1):
                spread = mode_product(spread, factor, k)
            before = spread.shape[0]
            stack = torch.cat([spread, slab])
        self._whole += float(torch.linalg.vector_norm(slab, dtype=torch.float64)) ** 2
        free = max(0.0, (self._error or 0.0) * math.sqrt(self._whole) - self.bound)
        bases, lost, core = [], 0.0, stack
        for mode in range(stack.ndim):
            unfolding = core.movedim(mode, 0).flatten(1)
            most = self._most(mode)
            vectors, energies = left_singular(unfolding, most)
            # Each mode may lose an equal part of what the bound leaves.
            r = keep_within(free**2 / stack.ndim)(energies) if most is None else most
            r = max(1, min(r, vectors.shape[1], _seen(energies)))
            bases.append(vectors[:, :r])
            lost += float(energies[r:].sum())
            core = mode_product(core, vectors[:, :r].T.contiguous(), mode)
        self.bound += math.sqrt(max(0.0, lost))
        turn, *self._others = bases
        self._core = core
        self._rows.take(turn, before)

    def _most(self, mode: int) -> int | None:
        return self._ranks[mode] if isinstance(self._ranks, tuple) else self._ranks

    def _check(self, slab: Tensor) -> None:
        shape = tuple(slab.shape)
        if len(shape) < 2:
            raise ShapeError(f"slab has shape {shape}; it must be (m, n_1, ...)")
        if isinstance(self._ranks, tuple) and len(self._ranks) != len(shape):
            raise RankError(
                f"rank={self._ranks} has {len(self._ranks)} entries for the {len(shape)} modes of "
                "a slab; give one each"
            )
        if isinstance(self._ranks, tuple):
            for mode in range(1, len(shape)):
                if self._ranks[mode] > shape[mode]:
                    raise RankError(
                        f"rank={self._ranks} is above the size {shape[mode]} of mode {mode}; use "
                        "at most that"
                    )
        if self._core is None:
            return
        sizes = tuple(f.shape[0] for f in self._others)
        if shape[1:] != sizes:
            raise ShapeError(
                f"slab has shape {shape}; it must be (m, {', '.join(map(str, sizes))}) as those "
                "before"
            )
        check_alike("slab", slab, self._dtype, self._core.device)

    @property
    def rel_error(self) -> float:
        """The bound over the norm of all slabs; 0 before the first and for zeros."""
        return self.bound / math.sqrt(self._whole) if self._whole > 0 else 0.0

    @cached_property
    def factors(self) -> TuckerFactors:
        """Of all that has come, (n_rows, n_1, ...); columns of all factors are orthonormal.

        Raises
        ------
        ArgumentError
            Before the first update.
        """
        if self._core is None or self._dtype is None:
            raise ArgumentError("there is no slab yet; call update(slab) first")
        factors = (self._rows.whole(), *self._others)
        return TuckerFactors(self._core.to(self._dtype), tuple(f.to(self._dtype) for f in factors))


def _seen(energies: Tensor) -> int:
    """How many directions are no rounding."""
    return int((energies > energies[0] * torch.finfo(torch.float64).eps ** 2).sum())
