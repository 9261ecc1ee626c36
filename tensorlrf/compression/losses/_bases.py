"""Of each layer the directions of its outputs, by energy: U with E[y y^T] = W G W^T = U S U^T.

The truncation of rank r whose outputs are nearest is U_r U_r^T W (Hsu et al. 2022; Wang et al.
2024), so that its error is seen in the outputs alone: the parts of y along all other directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration._statistics import Metrics
from tensorlrf.compression.group._group import Alone
from tensorlrf.compression.losses._enough import OUTPUT_ROWS
from tensorlrf.factors import LowRank


@dataclass(frozen=True)
class Basis:
    """Of every group of a layer.

    vectors   U (groups, m, k), orthonormal columns, in float32
    energies  (groups, k), of the mean square of the outputs along each, falling, in float64
    duals     V (groups, m, k) with V^T U = I, where outputs have a metric: parts along the u_k are
              those that the v_k measure
    samples   rows of outputs that they are made of
    """

    vectors: Tensor
    energies: Tensor
    duals: Tensor | None = None
    samples: int = 0

    @property
    def full(self) -> int:
        """The full rank k of each group."""
        return self.vectors.shape[-1]

    @property
    def measures(self) -> Tensor:
        """V, of orthonormal directions U itself."""
        return self.vectors if self.duals is None else self.duals

    def factors(self, site: DenseLayer, rank: int) -> list[LowRank]:
        """Of each group U_r times V_r^T W, in float32."""
        groups = zip(self.vectors, self.measures, site.group_weights(), strict=True)
        return [
            LowRank(u[:, :rank], v[:, :rank].T @ weight.flatten(1).to(u.dtype), tuple(weight.shape))
            for u, v, weight in groups
        ]

    def truncated(self, site: DenseLayer, rank: int) -> Tensor:
        """U_r V_r^T W in the shape of the site's weight."""
        parts = [one.to_dense().to(site.weight.dtype) for one in self.factors(site, rank)]
        return torch.cat(parts)

    def error(self, rank: int) -> float:
        """Relative error of the outputs at a rank, root mean square."""
        whole = float(self.energies.sum())
        return math.sqrt(float(self.energies[:, rank:].sum()) / whole) if whole > 0 else 0.0

    def rank_within(self, error: float) -> int:
        """The least rank at which the outputs have this relative error, or less."""
        energies = self.energies.sum(0)
        tails = energies.flip(0).cumsum(0).flip(0)
        return max(1, int((tails > error**2 * energies.sum()).sum()))

    def within(self, metrics: Metrics) -> Basis:
        """In metrics <y, R y> = |L^T y|^2 of the groups' outputs, with Q the directions of L^T y by
        energy, U = L^-T Q and V = L Q. The truncation is then the nearest in these."""
        if metrics is None:
            return self
        vectors, energies, duals = [], [], []
        for u, energy, metric in zip(self.vectors, self.energies, metrics, strict=True):
            if metric is None:
                vectors.append(u)
                energies.append(energy)
                duals.append(u)
                continue
            root = metric.root
            q, turned = leading(root.T @ (u.double() * energy.sqrt()))
            vectors.append(torch.linalg.solve_triangular(root.T, q, upper=True).to(u.dtype))
            energies.append(turned)
            duals.append((root @ q).to(u.dtype))
        return Basis(torch.stack(vectors), torch.stack(energies), torch.stack(duals))


def leading(half: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, s): left singular vectors of H (m, k) and the squares of its singular values, falling, by
    the smaller of the two products of H with itself. The columns of Q (m, min(m, k)) are
    orthonormal, where the singular value is nothing but rounding too."""
    m, k = half.shape
    if m <= k:
        values, left = torch.linalg.eigh(half @ half.T)
        return left.flip(-1), values.flip(-1).clamp(min=0)
    values, right = torch.linalg.eigh(half.T @ half)
    left = torch.linalg.qr(half @ right.flip(-1))[0]
    return left, values.flip(-1).clamp(min=0)


def sums_bytes(site: DenseLayer) -> int:
    """Of the `OutputMoments` of a layer, which are more than what they come to."""
    return 8 * site.groups * _side(site) ** 2


def basis_bytes(site: DenseLayer) -> int:
    """Of the `Basis` of a layer."""
    m = site.shape[0] // site.groups
    return 4 * site.shape[0] * min(m, site.columns)


def _side(site: DenseLayer) -> int:
    """Of the outputs of a group; of the inputs of a linear layer that is taller than wide."""
    m = site.shape[0] // site.groups
    return site.columns if _of_inputs(site) else m


def _of_inputs(site: DenseLayer) -> bool:
    linear = site.taps is None and not site.is_table
    return linear and site.columns < site.shape[0] // site.groups


class OutputMoments:
    """Sums of y y^T over the outputs of a layer, without its bias; of a linear layer that is taller
    than wide, of x x^T over its inputs in their place."""

    def __init__(self, site: DenseLayer) -> None:
        self._site = site
        self.of_inputs, n = _of_inputs(site), _side(site)
        self._sums = torch.zeros(site.groups, n, n, dtype=torch.float64, device=site.device)
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Rows (N, groups, n) of one call."""
        part = rows.transpose(0, 1)  # (groups, N, n)
        part = part if part.dtype == torch.float64 else part.float()
        self._sums += (part.mT @ part).to(torch.float64)
        self.count += len(rows)

    @property
    def settled(self) -> bool:
        """Whether more rows would tell little more."""
        return self.is_enough(self.count)

    def is_enough(self, rows: float) -> bool:
        """Whether more than so many would tell little more."""
        return rows >= OUTPUT_ROWS * self._sums.shape[-1]

    def over(self, group: Alone) -> None:
        """Take what this one of every rank has been given."""
        group.total([self._sums])
        self.count = int(group.totals([self.count])[0])

    def basis(self) -> Basis:
        """What has been added up, taken apart."""
        sums = self._sums / max(1, self.count)
        if not torch.isfinite(sums.diagonal(dim1=-2, dim2=-1)).all():
            raise FloatingPointError
        values, vectors = torch.linalg.eigh(sums)
        values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
        if not self.of_inputs:
            k = min(self._site.columns, sums.shape[-1])
            return Basis(vectors[..., :k].float(), values[..., :k], samples=self.count)
        # W G^1/2 has the same left singular vectors as W G W^T.
        weight = self._site.weight.to(torch.float64)
        left, energies = leading(weight @ (vectors[0] * values[0].sqrt()))  # of (m, n)
        return Basis(left[None].float(), energies[None], samples=self.count)


def rows_of(site: DenseLayer, y: Tensor, samples: int) -> Tensor | None:
    """The outputs (samples, positions, groups, m) of one call of a layer, from its own layout; None
    where they do not divide into the samples of a batch."""
    if site.taps is not None:
        y = y.movedim(-site.taps.axes - 1, -1)  # (*batch, *positions, O)
        y = y if y.ndim == site.taps.axes + 2 else y[None]
    groups, m = site.groups, y.shape[-1] // site.groups
    if y.ndim > 2 and y.shape[0] != samples and y.shape[1] == samples:
        y = y.transpose(0, 1)  # tokens come first
    rows = y.reshape(-1, groups, m)
    if len(rows) % samples:
        return None
    return rows.reshape(samples, -1, groups, m)


def spectra(bases: Mapping[str, Basis]) -> dict[str, Sequence[float]]:
    """Of each layer the share of its outputs' energy beyond each rank, from 0 on to the full."""
    found: dict[str, Sequence[float]] = {}
    for name, basis in bases.items():
        energies = basis.energies.sum(0)
        tails = torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])
        found[name] = (tails / tails[0] if float(tails[0]) > 0 else tails).tolist()
    return found
