"""A tensor in bases of its modes, in which sweeps cost little: where descents begin.

What a non-negative model can meet of a tensor lies near its leading subspaces, while noise is
spread over all directions. Sweeps over the tensor in bases of these (Zhou, Cichocki & Xie 2012,
"Fast nonnegative matrix/tensor factorization based on low-rank approximation"; Cohen, Farias &
Comon 2015; Erichson, Mendible, Wihlborn & Kutz 2018, by sketches) lead near a minimum; sweeps over
the tensor itself go on from there, and these alone decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import unfold
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor
from tensorlrf.decomposition.nonnegative._data import CANCELLED, Data
from tensorlrf.factors.algebra import mode_product

BEYOND = 10
"""Directions of a basis beyond the rank."""

ROUNDS = 2
"""Over the columns of a factor, by default: contractions cost no more than one of them."""

WORTH = 6
"""Times fewer entries, in core and bases, from which on it is made: it costs four products."""


@dataclass(frozen=True)
class Compressed(Data):
    """`core` x_k bases[k], nearly the tensor; None stands for a mode that is whole. Errors are of
    the model within the bases, over the norm of the tensor."""

    bases: tuple[Tensor | None, ...] = ()
    whole: float = 0.0
    most: int = ROUNDS

    @property
    def shape(self) -> tuple[int, ...]:
        pairs = zip(self.bases, self.cut.shape, strict=True)
        return tuple(n if q is None else q.shape[0] for q, n in pairs)

    @property
    def square(self) -> float:
        """Of the tensor itself."""
        return self.whole

    @property
    def enough(self) -> float:
        """An error below which sums of squares tell too little, and the tensor itself is needed."""
        return math.sqrt(CANCELLED[self.tensor.dtype])

    def seen(self, mode: int, factor: Tensor) -> Tensor:
        basis = self.bases[mode]
        return factor if basis is None else basis.T @ factor

    def grown(self, mode: int, rhs: Tensor) -> Tensor:
        basis = self.bases[mode]
        return rhs if basis is None else basis @ rhs

    def rounds(self, n: int, r: int) -> int:
        return self.most

    def tells(self, square: float) -> bool:
        return True  # there is no other way; below `enough` no sweep is made


def compressed(
    data: Data, ranks: Sequence[int], draws: torch.Generator, rounds: int = ROUNDS
) -> Compressed | None:
    """In bases of somewhat more directions than the ranks, one a mode; None where little is saved.

    A mode after the other, each on what the others have left (Vannieuwenhoven, Vandebril &
    Meerbergen 2012), by a Gaussian sketch and a power iteration (Halko, Martinsson & Tropp 2011).
    """
    shape = data.shape
    sizes = [min(n, r + BEYOND) for n, r in zip(shape, ranks, strict=True)]
    kept = math.prod(sizes) + sum(n * s for n, s in zip(shape, sizes, strict=True) if s < n)
    if kept * WORTH > math.prod(shape):
        return None
    core, bases = data.tensor, list[Tensor | None]()
    for mode, (n, s) in enumerate(zip(shape, sizes, strict=True)):
        basis = _basis(unfold(core, mode), s, draws) if s < n else None
        core = core if basis is None else mode_product(core, basis.T, mode)
        bases.append(basis)
    cut = CutTensor.of(core.contiguous())
    return Compressed(cut, data.scale, data.dtype, tuple(bases), data.square, rounds)


def _basis(matrix: Tensor, s: int, draws: torch.Generator) -> Tensor:
    """Orthonormal (n, s), nearly the leading left singular space of a matrix (n, rest)."""
    found: Tensor
    if matrix.shape[1] <= s:
        found, _ = torch.linalg.qr(matrix)
        return found
    sketch = torch.randn(
        matrix.shape[1], s, generator=draws, dtype=matrix.dtype, device=matrix.device
    )
    found, _ = torch.linalg.qr(matrix @ sketch)
    found, _ = torch.linalg.qr(matrix @ (matrix.T @ found))
    return found
