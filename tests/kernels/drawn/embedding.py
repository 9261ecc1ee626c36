"""Operands of `lowrank_embedding` and `tt_embedding` for tests, exact values, and how far rounding
may carry them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.draws import seeded
from tests.kernels.drawn.lowrank import roundoff


def wide(t: Tensor) -> Tensor:
    return t.detach().double().cpu()


@dataclass
class Lookup:
    """indices (...), and the table as left (n, r) right (r, d), or as first (n1, d1, R) and second
    (R, n2, d2) with its `shape` (n, d)."""

    indices: Tensor
    one: Tensor
    other: Tensor
    shape: tuple[int, int]
    padding_idx: int | None = None

    def table(self, f: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
        """(n, d) in float64, of factors that `f` was applied to."""
        return self._table(f(wide(self.one)), f(wide(self.other)))

    def _table(self, one: Tensor, other: Tensor) -> Tensor:
        if one.ndim == 2:
            return one @ other
        (n1, d1, _), (_, n2, d2) = one.shape, other.shape
        whole = torch.einsum("adR,Rbe->abde", one, other).reshape(n1 * n2, d1 * d2)
        return whole[: self.shape[0], : self.shape[1]]

    @property
    def rank(self) -> int:
        return self.one.shape[-1]

    def gradients(
        self, dy: Tensor, f: Callable[[Tensor], Tensor] = lambda t: t
    ) -> tuple[Tensor, Tensor]:
        """In float64, by autograd through the dense table; of absolute values with f = abs."""
        leaves = [f(wide(t)).requires_grad_() for t in (self.one, self.other)]
        y = F.embedding(self.indices.cpu(), self._table(*leaves), self.padding_idx)
        one, other = torch.autograd.grad(y, leaves, f(wide(dy)).view_as(y))
        return one, other


def matrices(
    n: int, d: int, r: int, indices: Tensor, dtype: torch.dtype, padding_idx: int | None = None
) -> Lookup:
    """Factors near one, on the device of the indices."""
    left, right = seeded(n, r, seed=1), seeded(r, d, seed=2) / max(1, r) ** 0.5
    left, right = (t.to(indices.device, dtype) for t in (left, right))
    return Lookup(indices, left, right, (n, d), padding_idx)


def trains(
    sizes: tuple[int, int, int, int],
    R: int,
    indices: Tensor,
    dtype: torch.dtype,
    shape: tuple[int, int],
    padding_idx: int | None = None,
) -> Lookup:
    """Cores near one of a table with n1, n2 and d1, d2 = `sizes`."""
    n1, n2, d1, d2 = sizes
    first, second = seeded(n1, d1, R, seed=1), seeded(R, n2, d2, seed=2) / R**0.5
    first, second = (t.to(indices.device, dtype) for t in (first, second))
    return Lookup(indices, first, second, shape, padding_idx)


def draw_indices(count: int, n: int, seed: int = 0, spread: int | None = None) -> Tensor:
    """`count` rows of a table of n, among `spread` of them alone where that is given."""
    generator = torch.Generator().manual_seed(seed)
    among = n if spread is None else min(n, spread)
    return (torch.randint(0, among, (count,), generator=generator) * 7919) % n


def forward_bound(o: Lookup) -> Tensor:
    """How far each element of the rows may be off: a sum of r products in float32 is off by r u of
    the same sum over absolute values (Higham 2002, section 3.1), and is rounded once."""
    size = o.table(torch.abs)[o.indices.cpu()]
    dtype = o.other.dtype
    mixed = roundoff(dtype) if o.one.dtype != dtype else 0.0  # left is rounded to right's dtype
    off = ((o.rank + 4) * roundoff(torch.float32) + roundoff(dtype) + mixed) * size
    return off + least(dtype) + 1e-30


def gradient_bounds(o: Lookup, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The same for both gradients. Sums go over columns or ranks, and over indices; their terms are
    rounded to the dtype once, and the result again."""
    u, u32 = roundoff(o.other.dtype), roundoff(torch.float32)
    terms = o.shape[1] + o.rank + o.indices.numel() + 8
    # t itself is rounded where left is of another dtype.
    off = terms * u32 + 2 * u + (u if o.one.dtype != o.other.dtype else 0.0)
    small = least(o.other.dtype) * (1 + o.indices.numel()) + 1e-30
    one, other = o.gradients(dy, torch.abs)
    return off * one + small, off * other + small


def least(dtype: torch.dtype) -> float:
    """Of what lies beneath float16's normal numbers only absolute precision is left."""
    return torch.finfo(dtype).smallest_normal if dtype is torch.float16 else 0.0
