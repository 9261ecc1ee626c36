"""A tensor compressed to the leading directions of its modes, and the way back (CANDELINC: Carroll,
Pruzansky & Kruskal 1980; Bro & Andersson 1998)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition.cp._problem import Problem
from tensorlrf.decomposition.cp._sketch import leading_directions
from tensorlrf.decomposition.cp._state import CPState, make_state
from tensorlrf.factors.algebra import mode_product

SPARE = 4
"""Directions of a mode beyond the rank: what the best model of a rank needs lies a little outside
the leading ones."""

WORTH = 0.75
"""Share of a mode from which on its directions are not worth the change of basis."""

SHORT = 128
"""Fibres of a mode up to which it is compressed to their span, which loses nothing."""

SMALL = 1 << 13
"""Entries up to which a tensor is left as it is."""

SLAB = 1 << 20
"""Entries that are raised to float64 at a time."""


@dataclass(frozen=True)
class Core:
    """X x_1 Q_1^T x_2 ... in the dtype float64 and the memory of the host.

    entries  (m_1, ..., m_N)
    bases    Q_k (n_k, m_k) orthonormal, on the device of X; None for a mode that is whole
    lost     ||X||^2 less that of the core, as a share of ||X||^2: none where all modes are spanned
    """

    entries: Tensor
    bases: tuple[Tensor | None, ...]
    lost: float

    def expanded(self, factors: Sequence[Tensor], weights: Tensor, like: Tensor) -> CPState:
        """A model of the core, (m_k, r) float64 and (r,), as the one of X that it stands for."""
        whole = []
        for basis, u in zip(self.bases, factors, strict=True):
            there = u.to(like.device)
            wide = there if basis is None else basis @ there
            whole.append(wide.to(like.dtype)[:, None])
        return make_state(whole, weights[None].to(like.device))


def widths(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """The directions that are kept of each mode; the longest, which costs a step nothing, keeps
    more of them."""
    longest = max(range(len(shape)), key=shape.__getitem__)
    entries = math.prod(shape)
    if entries <= SMALL:
        return tuple(shape)
    kept = []
    for k, n in enumerate(shape):
        others = entries // n
        m = min(n, rank + SPARE, others)
        if k == longest:
            m = min(n, others) if others <= SHORT else min(n, 2 * (rank + SPARE), others)
        kept.append(m if m < WORTH * n else n)
    return tuple(kept)


def compressed(problem: Problem, kept: Sequence[int]) -> Core:
    """One mode after the other, the one that shrinks most first (sequentially truncated, as in
    Vannieuwenhoven, Vandebril & Meerbergen 2012)."""
    core = problem.tensor
    bases: list[Tensor | None] = [None] * core.ndim
    exact = True
    for k in sorted(range(core.ndim), key=lambda k: kept[k] / core.shape[k]):
        n, m = core.shape[k], kept[k]
        if m == n:
            continue
        others = core.numel() // n
        if m == others:
            basis: Tensor = torch.linalg.qr(_unfolded(core, k).to(torch.float64)).Q
        else:
            basis, exact = _leading(core, k, m), False
        bases[k] = basis
        core = mode_product(core, basis.T.to(core.dtype).contiguous(), k).to(torch.float64)
    core = core.to("cpu", torch.float64).contiguous()
    square = float(torch.linalg.vector_norm(core)) ** 2
    lost = 0.0 if exact else max(0.0, 1 - square / problem.norm**2)
    return Core(core, tuple(bases), lost)


def _unfolded(tensor: Tensor, mode: int) -> Tensor:
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def _leading(tensor: Tensor, mode: int, count: int) -> Tensor:
    """Leading left singular vectors of X_(mode), from a Gram matrix in float64."""
    n = tensor.shape[mode]
    if n > tensor.numel() // n:
        return leading_directions(_unfolded(tensor, mode).T, count).to(torch.float64)
    vectors: Tensor = torch.linalg.eigh(wide_gram(tensor, mode)).eigenvectors
    return vectors.flip(1)[:, :count].contiguous()


def wide_gram(tensor: Tensor, mode: int) -> Tensor:
    """X_(mode) X_(mode)^T (n, n) in float64: in float32 directions of little energy, which the fit
    of a nearly exact tensor needs, would be lost. Raised slab by slab."""
    n = tensor.shape[mode]
    blocks = tensor.reshape(math.prod(tensor.shape[:mode]), n, -1)  # (P, n, Q)
    p, _, q = blocks.shape
    gram = tensor.new_zeros(n, n, dtype=torch.float64)
    if p == 1:
        for part in torch.split(blocks[0], max(1, SLAB // n), dim=1):
            wide = part.to(torch.float64)
            gram += wide @ wide.T
        return gram
    for part in torch.split(blocks, max(1, SLAB // (n * q))):
        wide = part.to(torch.float64)
        rows = wide.transpose(0, 1).reshape(n, -1) if q < n else wide
        gram += rows @ rows.T if q < n else torch.bmm(rows, rows.mT).sum(0)
    return gram
