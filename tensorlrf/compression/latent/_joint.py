"""Keys and values of an attention on one right factor.

With x the input of both layers, R of r rows and z = R x, what is lost of keys and values is

    |L_k^T (W_k - A_k R) G^(1/2)|^2 + |L_v^T (W_v - A_v R) G^(1/2)|^2,      G = E[x x^T],

with L L^T what an error of the outputs costs the model (`metric="loss"`), or what makes it one
relative to its layer's outputs. It is least for the truncated SVD of both matrices above each
other, whose singular values, squared, are what each further number of z saves: over all attentions
alike, so that numbers go where they save most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tensorlrf.compression.bases._left import on_right
from tensorlrf.compression.calibration._calibrate import at_once
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration, check_statistics
from tensorlrf.compression.calibration._statistics import OutputError, Statistics
from tensorlrf.compression.calibration._trace import record
from tensorlrf.compression.fit._factor import INPUT_SHRINKAGE
from tensorlrf.compression.latent._recognised import Site
from tensorlrf.compression.modular._outlook import Costs
from tensorlrf.decomposition import shared_svd
from tensorlrf.decomposition.linalg.compact import dense
from tensorlrf.errors import ArgumentError
from tensorlrf.factors import LowRank


@dataclass(frozen=True)
class Joint:
    """An attention with all that is known of what its keys and values are made of.

    weights   (W_k, W_v), as the layers have them
    stretched (L_k^T W_k, L_v^T W_v), in float64
    gram      G, drawn towards its mean eigenvalue as its samples warrant
    energies  what each number of z saves, falling
    judging   inputs by which errors are told
    samples   rows that G is made of
    """

    site: Site
    weights: tuple[Tensor, Tensor]
    stretched: tuple[Tensor, Tensor]
    gram: Tensor
    energies: Tensor
    judging: Statistics
    samples: int

    @property
    def full(self) -> int:
        """The rank at which nothing is lost."""
        return len(self.energies)

    @property
    def numbers(self) -> int:
        """That keys and values of a token have."""
        return sum(len(weight) for weight in self.weights)

    def lost(self, rank: int) -> float:
        """Of the metric, at a rank."""
        return float(self.energies[rank:].sum())

    def factors(self, rank: int) -> tuple[LowRank, LowRank]:
        """Of keys and of values, with one right factor."""
        first = shared_svd(self.stretched, rank, grams=self.gram)[0]
        # Orthonormal rows: every number of z is of the scale of the inputs.
        right = torch.linalg.qr(first.right.T)[0].T.to(self.weights[0].dtype).contiguous()
        keys, values = (on_right(weight, self.gram, right) for weight in self.weights)
        return keys, values

    def errors(self, factors: Sequence[LowRank]) -> tuple[float, float]:
        """Relative, of the outputs of both layers."""
        keys, values = (
            OutputError([weight], [self.judging]).of([one])
            for weight, one in zip(self.weights, factors, strict=True)
        )
        return keys, values


def joints(
    model: nn.Module, sites: Sequence[Site], data: Calibration, costs: Costs
) -> Iterator[Joint]:
    """Of each attention, in no order; what they hold is not kept.

    Raises ArgumentError where inputs of a layer are not finite, or no batch reaches it.
    """
    names = {site.keys: site for site in sites}
    trace = record(model, list(names), data.batches[0])
    for seen in at_once(model, list(names), trace, data):
        for name, moments in seen:
            fit, held = moments.taken()
            check_statistics(name, fit)
            check_statistics(name, held or ())
            site = names.pop(name)
            yield _joint(model, site, fit[0], held[0] if held else fit[0], costs)
    if names:
        raise ArgumentError(
            f"calibration does not reach {', '.join(names)}; give batches that take the model "
            "through these layers, or skip= them"
        )


def _joint(model: nn.Module, site: Site, fit: Statistics, held: Statistics, costs: Costs) -> Joint:
    weights = (
        dense_layer_at(model, site.keys).weight, dense_layer_at(model, site.values).weight,
    )  # fmt: skip
    if not fit.known:
        raise ArgumentError(
            f"calibration: the inputs of {site.keys} are all zero; give other batches, or leave "
            f"it out with skip=[{site.keys!r}]"
        )
    amount = max(fit.warranted, INPUT_SHRINKAGE) if costs else fit.warranted
    gram = dense(fit.shrunk(amount).gram)
    stretched = (
        _stretched(weights[0], gram, site.keys, costs),
        _stretched(weights[1], gram, site.values, costs),
    )
    root = torch.linalg.cholesky(gram)
    energies = torch.linalg.svdvals(torch.cat(stretched) @ root).square()
    return Joint(site, weights, stretched, gram, energies, held, fit.count)


def _stretched(weight: Tensor, gram: Tensor, name: str, costs: Costs) -> Tensor:
    """L^T W: what the plain norm of is what an error costs."""
    wide = weight.to(torch.float64)
    if costs:
        cost = costs[name].matrix.to(torch.float64)
        found: Tensor = torch.linalg.cholesky(cost / 2).T @ wide
        return found
    whole = ((wide @ gram) * wide).sum().sqrt()
    return wide / whole if whole > 0 else wide


# ---- who gets how many ------------------------------------------------------------------------


def ranks_within(
    energies: Mapping[str, Tensor], digits: Mapping[str, int], numbers: int
) -> dict[str, int]:
    """The ranks, one at least, of which least is lost with so many numbers of a token at most, the
    digits of its positions among them.

    Raises ArgumentError where these are too few.
    """
    left = numbers - sum(digits.values()) - len(energies)
    if left < 0:
        least = sum(digits.values()) + len(energies)
        raise ArgumentError(
            f"keep_cache= leaves {numbers:,} numbers a token for {len(energies)} attentions, which "
            f"take {least:,} at the least: one each, and the digits of rotary positions"
        )
    saved = [(float(e), name) for name, own in energies.items() for e in own[1:]]
    saved.sort(key=lambda one: -one[0])  # stable: of one attention in order
    ranks = dict.fromkeys(energies, 1)
    for _, name in saved[:left]:
        ranks[name] += 1
    return ranks
