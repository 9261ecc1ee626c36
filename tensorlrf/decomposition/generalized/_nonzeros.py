"""Entries of a tensor by their indices: where a model has them, and what they give its factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._dense import cut_of, linear_base, quadratic_base
from tensorlrf.decomposition.generalized._loss import KnownLoss
from tensorlrf.decomposition.generalized._stack import apart, offsets, others

CHUNK = 1 << 14
"""Entries that are worked on at a time, for the cache of a core."""

CHUNK_ON_DEVICE = 1 << 20


@dataclass(frozen=True)
class Nonzeros:
    """A tensor of which all other entries are zero.

    indices  (N, s) int64, in lexicographic order, none twice
    values   (s,)
    """

    shape: tuple[int, ...]
    indices: Tensor
    values: Tensor

    @property
    def size(self) -> int:
        """Entries of the whole tensor."""
        return math.prod(self.shape)

    @property
    def zeros(self) -> int:
        """Entries that are not stored."""
        return self.size - len(self.values)

    def linear(self) -> Tensor:
        """(s,): where each stands in the tensor as a vector; ascending."""
        return linear_index(self.indices, self.shape)

    def dense(self) -> Tensor:
        """The whole tensor."""
        whole = self.values.new_zeros(self.size)
        whole[self.linear()] = self.values
        return whole.view(self.shape)

    def first_zero(self) -> tuple[int, ...]:
        """The index of the first entry that is not stored, where there is one."""
        places = self.linear()
        off = (places != torch.arange(len(places), device=places.device)).nonzero()
        return index_at(int(off[0, 0]) if len(off) else len(places), self.shape)


def linear_index(indices: Tensor, shape: Sequence[int]) -> Tensor:
    """(N, s) to (s,), the last mode fastest."""
    place = indices[0].clone()
    for k in range(1, len(shape)):
        place.mul_(shape[k]).add_(indices[k])
    return place


def index_at(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of an entry from where it stands in the tensor as a vector."""
    index: list[int] = []
    for n in reversed(shape):
        place, own = divmod(place, n)
        index.insert(0, own)
    return tuple(index)


def rows_of(stack: Tensor, places: Tensor) -> Tensor:
    """The rows (N, s, r) of a stack at places (N, s) in it."""
    return stack.index_select(0, places.reshape(-1)).view(*places.shape, -1)


class SparseRows:
    """Of nonzeros, as `Rows`: a block of rows is made dense when it is asked for."""

    def __init__(self, data: Nonzeros) -> None:
        self.shape, self.cut = data.shape, cut_of(data.shape)
        self.dtype, self.device = data.values.dtype, data.values.device
        self.q = math.prod(self.shape[self.cut :])
        self._places, self._values = data.linear(), data.values

    def entries(self, start: int, stop: int) -> tuple[Tensor, None]:
        ends = torch.tensor([start * self.q, stop * self.q], device=self.device)
        first, last = torch.searchsorted(self._places, ends).tolist()
        block = torch.zeros((stop - start) * self.q, dtype=self.dtype, device=self.device)
        block[self._places[first:last] - start * self.q] = self._values[first:last]
        return block.view(stop - start, self.q), None


class SparseObjective:
    """Over all entries of a sparse tensor, in time and memory linear in its nonzeros: of a loss
    whose sum over a tensor of zeros the factors give at once."""

    def __init__(self, data: Nonzeros, loss: KnownLoss) -> None:
        self.data, self.loss = data, loss
        self.places = data.indices + offsets(data.shape, data.indices.device)
        self.chunk = CHUNK if data.values.device.type == "cpu" else CHUNK_ON_DEVICE

    def __call__(self, stack: Tensor) -> tuple[float, Tensor]:
        loss, values = self.loss, self.data.values
        base = linear_base if loss.base == "linear" else quadratic_base
        total, gradient = base(apart(stack, self.data.shape))
        near = stack.to(values.dtype)
        made = torch.zeros_like(near)
        for start in range(0, len(values), self.chunk):
            x = values[start : start + self.chunk]
            places = self.places[:, start : start + self.chunk]
            product, rest = others(rows_of(near, places))
            model = product.sum(1)
            assert loss.beyond is not None  # where there is a base
            value, slope = loss.beyond(x, model, torch.empty_like(model))
            total = total + value
            rest *= slope[:, None]
            made.index_add_(0, places.reshape(-1), rest.flatten(0, 1))
        return float(total), gradient + made
