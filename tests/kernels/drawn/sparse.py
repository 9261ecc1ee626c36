"""Operands of `sparse_mttkrp` for tests, its exact value, and how far rounding may carry it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf_kernels.sparse_mttkrp import reference
from tests.draws import generator
from tests.kernels.drawn.lowrank import roundoff


@dataclass
class Nonzeros:
    """Nonzeros sorted by row, and the factors of the other modes."""

    values: Tensor
    indices: Tensor
    starts: Tensor
    factors: list[Tensor]

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """As the op takes them."""
        return self.values, self.indices, self.starts, self.factors


def draw(
    lengths: Sequence[int],
    sizes: Sequence[int],
    columns: int,
    dtype: torch.dtype = torch.float32,
    *,
    index: torch.dtype = torch.int32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Nonzeros:
    """Normal entries; rows of so many nonzeros, which stand anywhere along modes of `sizes`."""
    g, nnz = generator(seed), sum(lengths)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64, device="cpu").to(device, dtype)

    at = [torch.randint(n, (nnz,), generator=g, dtype=index, device="cpu") for n in sizes]
    ends = torch.tensor([0, *lengths], dtype=torch.int64, device="cpu").cumsum(0)
    return Nonzeros(
        normal(nnz),
        torch.stack(at).to(device),
        ends.to(device),
        [normal(n, columns) for n in sizes],
    )


def exact(o: Nonzeros) -> Tensor:
    """The value in float64, by the definition."""
    values, indices, starts, factors = _wide(o)
    return reference.sparse_mttkrp(values, indices, starts, factors)


def bound(o: Nonzeros) -> Tensor:
    """How far each element may be off: by one roundoff of the sum over absolute values for each
    term of it and each product (Higham 2002, section 3.1)."""
    values, indices, starts, factors = _wide(o)
    size = reference.sparse_mttkrp(values.abs(), indices, starts, [f.abs() for f in factors])
    terms = torch.diff(starts)[:, None] + len(factors) + 1
    own = 2 if o.values.dtype is torch.float64 else 1  # the value above is off by as much again
    return own * terms * roundoff(o.values.dtype) * size + 1e-300


def _wide(o: Nonzeros) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    values, indices, starts, factors = o.operands
    wide = [t.detach().double().cpu() for t in (values, *factors)]
    return wide[0], indices.cpu(), starts.cpu(), wide[1:]
