"""Entries that are drawn, with weights that make sums over them unbiased (Kolda & Hong 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._data import Data
from tensorlrf.decomposition.generalized._loss import Loss
from tensorlrf.decomposition.generalized._nonzeros import Nonzeros, linear_index, rows_of
from tensorlrf.decomposition.generalized._stack import offsets, others

SAMPLINGS = ("uniform", "stratified", "semi_stratified")


@dataclass(frozen=True)
class Sample:
    """Entries at `places` (N, s) of a stack, x (s,) of the data, and what each counts for (s,).

    corrected  so many in front are nonzeros that count beside being taken for zeros elsewhere: of
               each the loss at zero is subtracted
    """

    places: Tensor
    x: Tensor
    counts: Tensor
    corrected: int = 0

    def loss(self, loss: Loss, stack: Tensor) -> float:
        """The estimate of the sum over all entries."""
        model = rows_of(stack, self.places).prod(0).sum(1)
        found = loss.value(self.x, model)
        if self.corrected:
            head = model[: self.corrected]
            found[: self.corrected] -= loss.value(torch.zeros_like(head), head)
        return float(torch.dot(found.double(), self.counts.double()))

    def gradient(self, loss: Loss, stack: Tensor) -> Tensor:
        """The estimate of the gradient, of the shape of the stack."""
        product, rest = others(rows_of(stack, self.places))  # (s, r), (N, s, r)
        model = product.sum(1)
        slope = loss.slope(self.x, model)
        if self.corrected:
            head = model[: self.corrected]
            slope[: self.corrected] -= loss.slope(torch.zeros_like(head), head)
        rest *= (slope * self.counts)[:, None]
        made = torch.zeros_like(stack)
        return made.index_add_(0, self.places.reshape(-1), rest.flatten(0, 1))


class Sampler:
    """Draws from data by one of the three rules.

    uniform          all entries alike
    stratified       nonzeros, and apart from them zeros, found by drawing until they are none
    semi_stratified  nonzeros, and all entries alike as if they were zero, which is made good at the
                     nonzeros
    """

    def __init__(self, data: Data, sampling: str, rng: torch.Generator) -> None:
        self.data, self.sampling, self.rng = data, sampling, rng
        self.sizes = torch.tensor(data.shape, device=rng.device)[:, None]
        self.offsets = offsets(data.shape, rng.device)
        self._linear: Tensor | None = None
        if sampling == "stratified" and data.sparse is not None:
            self._linear = data.sparse.linear()

    def draw(self, counts: tuple[int, int]) -> Sample:
        """So many nonzeros and so many of the others; of all alike, as many as both together."""
        sparse = self.data.sparse
        if sparse is None or self.sampling == "uniform":
            return self._uniform(sum(counts))
        some, rest = counts[0] if len(sparse.values) else 0, counts[1]
        own = self._nonzeros(sparse, some) if some else None
        if self.sampling == "semi_stratified":
            everywhere = self._indices(rest)
            size, corrected = sparse.size, some
        else:
            rest = rest if sparse.zeros else 0
            everywhere, size, corrected = self._zeros(sparse, rest), sparse.zeros, 0
        values = sparse.values
        x = values.new_zeros(some + rest)
        weights = values.new_full((some + rest,), size / max(1, rest))
        if own is not None:
            x[:some] = values[own]
            weights[:some] = len(values) / some
            everywhere = torch.cat([sparse.indices[:, own], everywhere], 1)
        return Sample(everywhere + self.offsets, x, weights, corrected)

    def _uniform(self, count: int) -> Sample:
        indices = self._indices(count)
        place = linear_index(indices, self.data.shape)
        values = self.data.values
        counts = values.new_full((count,), self.data.size / count)
        if self.data.sparse is None:
            x = values.view(-1)[place]
            if self.data.weights is not None:
                counts *= self.data.weights.reshape(-1)[place]
        else:
            at, found = _among(place, self._all_linear(self.data.sparse))
            x = values.new_zeros(count)
            x[found] = values[at[found]]
        return Sample(indices + self.offsets, x, counts)

    def _indices(self, count: int) -> Tensor:
        """(N, count), uniformly and with replacement."""
        made = [
            torch.randint(n, (count,), generator=self.rng, device=self.rng.device)
            for n in self.data.shape
        ]
        return torch.stack(made)

    def _nonzeros(self, data: Nonzeros, count: int) -> Tensor:
        return torch.randint(len(data.values), (count,), generator=self.rng, device=self.rng.device)

    def _zeros(self, data: Nonzeros, count: int) -> Tensor:
        """(N, count) that are none of the nonzeros."""
        kept = [data.indices[:, :0]]
        missing = count
        share = data.zeros / data.size
        while missing > 0:
            drawn = self._indices(math.ceil(1.1 * missing / share) + 4)
            _, found = _among(linear_index(drawn, data.shape), self._all_linear(data))
            kept.append(drawn[:, ~found][:, :missing])
            missing -= kept[-1].shape[1]
        return torch.cat(kept, 1)

    def _all_linear(self, data: Nonzeros) -> Tensor:
        if self._linear is None:
            self._linear = data.linear()
        return self._linear


def _among(place: Tensor, ascending: Tensor) -> tuple[Tensor, Tensor]:
    """Where each stands in an ascending vector, and whether it is there."""
    if not len(ascending):
        return torch.zeros_like(place), torch.zeros_like(place, dtype=torch.bool)
    at = torch.searchsorted(ascending, place).clamp_max(len(ascending) - 1)
    return at, ascending[at] == place
