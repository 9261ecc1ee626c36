"""Alternating least squares for sums of Tucker tensors of equal ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition._descent import Descent, beyond
from tensorlrf.decomposition.linalg._gram import descending_eigh, mode_gram, unfold
from tensorlrf.decomposition.linalg._solve import conjugate_gradients, proximal_step
from tensorlrf.factors import BlockTerm
from tensorlrf.factors.algebra import mode_product

DIRECT = 1024
"""Unknowns of the cores, for each entry along modes left whole, up to which their normal matrix is
factored; beyond, they take steps of conjugate gradients."""


class Terms(NamedTuple):
    """Cores (S, r_0, ...) and the factors (S, n_k, r_k) of every mode that has one."""

    cores: Tensor
    factors: list[Tensor]  # orthonormal columns, but in steps ahead


def ahead(here: Terms, last: Terms, reach: float) -> Terms:
    cores, *factors = beyond([here.cores, *here.factors], [last.cores, *last.factors], reach)
    return Terms(cores, factors)


class BlockTermProblem:
    """A tensor in float64, and what is sought of it."""

    def __init__(
        self, tensor: Tensor, count: int, modes: Sequence[int], ranks: Sequence[int]
    ) -> None:
        self.tensor, self.count, self.modes, self.ranks = tensor, count, modes, ranks
        self.norm = float(torch.linalg.vector_norm(tensor)) ** 2

    def start(self, draws: torch.Generator) -> Descent[Terms]:
        """Random mixtures of the directions that the tensor has along each mode."""
        factors = []
        for k, r in zip(self.modes, self.ranks, strict=True):
            energies, vectors = descending_eigh(mode_gram(self.tensor, k))
            shape = self.count, len(energies), r
            drawn = torch.randn(shape, generator=draws, dtype=torch.float64, device=draws.device)
            factors.append(torch.linalg.qr(vectors @ (energies.sqrt()[:, None] * drawn))[0])
        sizes = list(self.tensor.shape)
        for k, r in zip(self.modes, self.ranks, strict=True):
            sizes[k] = r
        state = Terms(self.tensor.new_zeros(self.count, *sizes), factors)
        return Descent.at(*self._with_cores(state))

    def sweep(self, state: Terms) -> tuple[Terms, float]:
        """New factors, mode by mode, orthonormal in each term, and new cores."""
        cores, factors = state.cores, list(state.factors)
        for j, k in enumerate(self.modes):
            # What multiplies the factors of mode k: (r_k, all else) of every term, upon each other.
            stack = torch.cat([unfold(part, k) for part in self._but(cores, factors, j)])
            right = stack @ unfold(self.tensor, k).T  # (S r_k, n_k)
            old = factors[j].mT.flatten(0, 1)
            found = proximal_step(stack @ stack.T, right, old)
            whole = found.reshape(self.count, -1, found.shape[1]).mT  # (S, n_k, r_k)
            basis, upper = torch.linalg.qr(whole)
            factors[j] = basis
            cores = torch.stack([mode_product(c, u, k) for c, u in zip(cores, upper, strict=True)])
        return self._with_cores(Terms(cores, factors))

    def _with_cores(self, state: Terms) -> tuple[Terms, float]:
        """The cores for the factors there are, and the relative error."""
        seen = torch.stack([self._seen(own) for own in zip(*state.factors, strict=True)])
        grams = [torch.einsum("sni,tnj->stij", f, f) for f in state.factors]
        if self.count * math.prod(self.ranks) <= DIRECT:
            cores = self._solved(state.cores, seen, grams)
        else:
            cores = self._nearer(state.cores, seen, grams)
        made = Terms(cores, state.factors)
        off = self.tensor - BlockTerm(cores, tuple(made.factors), tuple(self.modes)).to_dense()
        squared = float(torch.linalg.vector_norm(off)) ** 2
        return made, math.sqrt(squared / (self.norm or 1.0))

    def _seen(self, own: Sequence[Tensor]) -> Tensor:
        """The tensor in the bases of one term."""
        part = self.tensor
        for k, f in zip(self.modes, own, strict=True):
            part = mode_product(part, f.T, k)
        return part

    def _solved(self, old: Tensor, seen: Tensor, grams: Sequence[Tensor]) -> Tensor:
        """The best cores, by their normal matrix."""
        whole = math.prod(self.ranks)
        left = [k for k in range(self.tensor.ndim) if k not in self.modes]
        order = [*self.modes, *left]  # those with factors first

        def rows(cores: Tensor) -> Tensor:
            moved = cores.permute(0, *(k + 1 for k in order))
            return moved.reshape(self.count * whole, -1)

        normal = seen.new_zeros(self.count, whole, self.count, whole)
        for s in range(self.count):
            for t in range(self.count):
                normal[s, :, t] = reduce(torch.kron, [g[s, t] for g in grams])
        square, right = normal.reshape(len(rows(old)), -1), rows(seen)
        found = proximal_step(square, right, rows(old))
        found = proximal_step(square, right, found)  # what the proximal term held back
        sizes = [old.shape[1 + k] for k in order]
        back = [order.index(k) + 1 for k in range(len(order))]
        return found.reshape(self.count, *sizes).permute(0, *back)

    def _nearer(self, old: Tensor, seen: Tensor, grams: Sequence[Tensor]) -> Tensor:
        """Cores nearer to the best ones; with orthonormal bases each term is scaled alike."""

        def normal(cores: Tensor) -> Tensor:
            made = torch.zeros_like(cores)
            for s in range(self.count):
                for t, part in enumerate(cores):
                    for gram, k in zip(grams, self.modes, strict=True):
                        part = mode_product(part, gram[s, t], k)
                    made[s] += part
            return made

        return conjugate_gradients(normal, seen - normal(old), old)

    def _but(self, cores: Tensor, factors: Sequence[Tensor], skipped: int) -> Iterator[Tensor]:
        """Every term without its factor of one mode."""
        for s, core in enumerate(cores):
            part = core
            for j, k in enumerate(self.modes):
                if j != skipped:
                    part = mode_product(part, factors[j][s], k)
            yield part

    def factors(self, state: Terms, scale: float, dtype: torch.dtype) -> BlockTerm:
        """By falling norms of the terms; the scale is shared by cores and factors."""
        sizes = torch.linalg.vector_norm(state.cores.flatten(1), dim=1)
        order = sizes.argsort(descending=True, stable=True)
        share = 2.0 ** round(math.log2(scale) / (1 + len(self.modes)))
        rest = scale / share ** len(self.modes)
        return BlockTerm(
            (state.cores[order] * rest).to(dtype).contiguous(),
            tuple((f[order] * share).to(dtype).contiguous() for f in state.factors),
            tuple(self.modes),
        )
