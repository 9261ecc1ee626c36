"""The layers of a model in training that are or become factored, and what is replaced there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tensorlrf.compression._survey import ROOT, survey, without_skipped
from tensorlrf.compression.training._optimiser import Change, tell
from tensorlrf.decomposition import svd
from tensorlrf.decomposition.rank import Rank, matrix_rank
from tensorlrf.errors import ArgumentError
from tensorlrf.factors.kinds import two_matrices
from tensorlrf.nn import FactoredLayer, factorize
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.plain import Plain
from tensorlrf.nn.ranks.leading import set_factors


@dataclass
class Weight:
    """A layer with one weight that is a matrix (m, n), or is seen as one: dense, or on low rank.

    places  all its qualified names
    """

    model: nn.Module
    places: tuple[str, ...]
    layer: Any

    @property
    def is_factored(self) -> bool:
        return isinstance(self.layer, FactoredLayer)

    @property
    def shape(self) -> tuple[int, int]:
        m, *others = self.layer.factors.shape if self.is_factored else self.layer.weight.shape
        return m, math.prod(others)

    @property
    def rank(self) -> int:
        """Of its factors; of a dense one the most that it can have."""
        return int(self.layer.factors.rank) if self.is_factored else min(self.shape)

    def target(self, rank: Rank) -> int:
        """What a rank, or a share of the parameters, is for it. Raises RankError, named."""
        m, n = self.shape
        most = min(m, n)
        return matrix_rank(min(rank, most) if type(rank) is int and rank > 0 else rank, m, n)

    def saves(self, rank: int) -> bool:
        """Whether factors of this rank have fewer numbers than the dense weight."""
        m, n = self.shape
        return rank * (m + n) < m * n

    @torch.no_grad()
    def lower(self, rank: int, optimizer: Optimizer) -> None:
        """Go on with factors of this rank, the best for the weight as it is."""
        if self.is_factored:
            self._cut(rank, optimizer)
        else:
            self._factor(rank, optimizer)

    def _cut(self, rank: int, optimizer: Optimizer) -> None:
        layer = self.layer
        factors = layer.factors
        left, right = (t.double() for t in (factors.left, factors.right))
        cut = factors.by_energy().leading(rank)
        old = [layer._parameters[name] for name in layer._names.values()]
        set_factors(layer, cut)
        new = [layer._parameters[name] for name in layer._names.values()]
        # left' = left A and right' = B right, so that gradients are G B^T and A^T G.
        a = torch.linalg.lstsq(left, cut.left.double(), driver="gelsd").solution
        b = torch.linalg.lstsq(right.T, cut.right.double().T, driver="gelsd").solution.T
        tell(optimizer, old[0], [Change(new[0], tuple(left.shape), right=b.T)])
        tell(optimizer, old[1], [Change(new[1], tuple(right.shape), left=a.T)])

    def _factor(self, rank: int, optimizer: Optimizer) -> None:
        old = self.layer.weight
        made: Any = factorize(self.layer, "svd", rank)
        factors = made.factors
        left, right = factors.left.detach(), factors.right.detach()
        tell(
            optimizer,
            old,
            [
                Change(made._parameters["left"], self.shape, right=right.T),
                Change(made._parameters["right"], self.shape, left=left.T),
            ],
        )
        made._parameters["bias"] = self.layer._parameters["bias"]
        for place in self.places:
            parent, _, name = place.rpartition(".")
            setattr(self.model.get_submodule(parent), name, made)
        self.layer = made


def weights_of(
    model: nn.Module, skip: str | Sequence[str] | None, *, factored: bool
) -> list[Weight]:
    """Linear layers and convolutions of one group that can be replaced and are not skipped; of
    factored ones, where these are asked for, those on low rank. Raises ArgumentError where there is
    none."""
    found = []
    for one in without_skipped(survey(model), model, skip):
        if isinstance(one.module, FactoredLayer):
            if factored and two_matrices(one.module.factors):
                found.append(Weight(model, one.places, one.module))
        elif not one.reason and not one.is_table:
            plain = plain_of(one.module)
            # Sides in the order of the factors, and no layout of others'.
            if isinstance(plain, Plain) and plain.groups == 1 and plain.kind in _KINDS:
                found.append(Weight(model, one.places, one.module))
    if not found:
        raise ArgumentError(
            "model has no linear layer or convolution that can become factored; look at "
            "tensorlrf.plan(model, keep_params=0.5) for the reasons"
        )
    if any(place == ROOT for one in found for place in one.places):
        raise ArgumentError(
            "model is one layer, which cannot be replaced in place; wrap it, as in "
            "torch.nn.Sequential(model)"
        )
    return found


_KINDS = ("Linear", "Conv1d", "Conv2d", "Conv3d")


def truncated(weight: Tensor, rank: int | None, error: float | None) -> tuple[Tensor, Tensor]:
    """left (m, r) and right (r, n) of the nearest matrix of a rank, or within an error."""
    factors: Any = svd(weight.detach(), rank, error=error)
    return factors.left, factors.right
