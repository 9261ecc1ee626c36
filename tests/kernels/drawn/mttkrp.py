"""Operands of `mttkrp` for tests, its exact value, and how far rounding may carry it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.kernels.drawn.lowrank import LAYOUTS, roundoff


@dataclass
class Contraction:
    """A tensor, the modes that are contracted, and their factors (n, c)."""

    tensor: Tensor
    factors: list[Tensor]
    modes: tuple[int, ...]

    @property
    def terms(self) -> int:
        """Of the sum behind each entry."""
        return math.prod(self.tensor.shape[k] for k in self.modes)


def draw(
    sizes: Sequence[int],
    modes: Sequence[int],
    columns: int,
    dtype: torch.dtype = torch.float32,
    *,
    order: Sequence[int] | None = None,
    gap: int = 1,
    layout: str = "rows",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Contraction:
    """Normal entries.

    order   of the modes in memory, the slowest first
    gap     step between entries of the last mode in memory
    layout  of the factors, one of LAYOUTS
    """
    g = torch.Generator().manual_seed(seed)
    order = range(len(sizes)) if order is None else order

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64).to(device, dtype)

    stored = [sizes[k] for k in order]
    whole = normal(*stored[:-1], gap * stored[-1])
    back = [list(order).index(k) for k in range(len(sizes))]
    tensor = whole[..., ::gap].permute(back)
    return Contraction(
        tensor, [LAYOUTS[layout](normal(sizes[k], columns)) for k in modes], tuple(modes)
    )


def others(order: int, mode: int) -> tuple[int, ...]:
    """All modes but one: what MTTKRP contracts."""
    return tuple(k for k in range(order) if k != mode)


def exact(o: Contraction) -> Tensor:
    """The value in float64, by the definition."""
    return _sum(o.tensor.detach().double().cpu(), [f.detach().double().cpu() for f in o.factors], o)


def bound(o: Contraction) -> Tensor:
    """How far each element may be off, by the roundings that are made.

    A sum of n terms is off by n u of the same sum over absolute values (Higham 2002, section 3.1),
    by 2 n u where the additions round towards zero, as tensor cores do. In front of it a product of
    m factors takes m roundings, and three products of TF32 for one lose 12 u: 4 u where the low
    half of each operand is cut off after 11 bits, and 4 u for the product of both low halves.
    float64's own reference is off by as much again.
    """
    u = roundoff(o.tensor.dtype)
    absolute = _sum(
        o.tensor.detach().double().cpu().abs(),
        [f.detach().double().cpu().abs() for f in o.factors],
        o,
    )
    twice = 2 if o.tensor.dtype is torch.float64 else 1
    return twice * (2 * o.terms + len(o.modes) + 12) * u * absolute + 1e-30


def norm_bound(o: Contraction) -> float:
    """The same in the Frobenius norm, relative, where signs of entries and roundings are random.

    Sums that walk at random, and their roundings with them, end with about u sqrt(n) / 2 of
    themselves; so does the reference in float64. To it comes what is lost of a product.
    """
    return (math.sqrt(o.terms) + 12) * roundoff(o.tensor.dtype)


def _sum(tensor: Tensor, factors: Sequence[Tensor], o: Contraction) -> Tensor:
    letters = "abcdefgh"[: tensor.ndim]
    kept = "".join(x for k, x in enumerate(letters) if k not in o.modes)
    spec = ",".join([letters, *(letters[k] + "r" for k in o.modes)])
    return torch.einsum(f"{spec}->{kept}r", tensor, *factors).reshape(-1, factors[0].shape[1])
