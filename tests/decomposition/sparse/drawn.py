"""Sparse tensors for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from tensorlrf import CPFactors, SparseTensor
from tests.draws import generator, seeded


def thinned(tensor: Tensor, share: float, seed: int = 0) -> Tensor:
    """Some of the entries, zeros elsewhere."""
    g = generator(seed)
    there = torch.rand(tensor.shape, generator=g, dtype=torch.float64, device="cpu") < share
    return tensor * there


def planted(*shape: int, rank: int, seed: int = 0, share: float = 0.4) -> Tensor:
    """A CP model of sparse factors, dense (float64)."""
    pairs = enumerate(shape)
    factors = tuple(thinned(seeded(n, rank, seed=seed + k), share, seed + k) for k, n in pairs)
    return CPFactors(seeded(rank, seed=seed).abs() + 1, factors).to_dense()


def noisy(*shape: int, rank: int = 2, seed: int = 0) -> Tensor:
    """The same, and some entries that are no model."""
    return planted(*shape, rank=rank, seed=seed) + thinned(0.3 * seeded(*shape, seed=9), 0.1)


def huge(size: int = 10**6, order: int = 3, nnz: int = 40) -> SparseTensor:
    """Whose entries no memory holds."""
    g = generator(0)
    places = torch.randint(size, (order, nnz), generator=g, dtype=torch.int64, device="cpu")
    return SparseTensor.from_coordinates(places, seeded(nnz).float(), (size,) * order)
