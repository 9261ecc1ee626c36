"""Matricised tensor times Khatri-Rao product (MTTKRP) for all modes, by a dimension tree.

The modes are cut once into an inner and an outer group. The tensor is contracted with the
Khatri-Rao product of the outer factors, which serves every inner mode, and with that of the inner
factors, which serves every outer mode: a sweep over all modes costs two full contractions (Phan,
Tichavsky, Cichocki 2013, "Fast alternating LS algorithms for high order CANDECOMP/PARAFAC"). Both
are plain matrix products on views of the tensor; nothing is unfolded by copying. On a GPU a kernel
makes them, the Khatri-Rao products in its registers, wherever it should be the faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from tensorlrf.factors.algebra import khatri_rao
from tensorlrf_kernels.mttkrp import contract_modes, kernel_wins

# A group in the middle of the modes needs one matrix product for every index in front of it.
_MAX_SLICES = 64
_MIDDLE_MUST_GAIN = 3


@dataclass(frozen=True)
class ModeCut:
    """Modes [start, stop) are the inner group, all others the outer one.

    With P, M, Q the products of the sizes before, in and after the inner group, the largest
    intermediate of a sweep has max(M, P Q) r entries.
    """

    shape: tuple[int, ...]
    start: int
    stop: int

    @cached_property
    def inner(self) -> tuple[int, ...]:
        return tuple(range(self.start, self.stop))

    @cached_property
    def outer(self) -> tuple[int, ...]:
        return tuple(k for k in range(len(self.shape)) if not self.start <= k < self.stop)

    @cached_property
    def blocks(self) -> tuple[int, int, int]:
        """(P, M, Q)."""
        before, within = self.shape[: self.start], self.shape[self.start : self.stop]
        return math.prod(before), math.prod(within), math.prod(self.shape[self.stop :])

    @property
    def width(self) -> int:
        """Rows of both Khatri-Rao products together, M + P Q: work outside the two products."""
        p, m, q = self.blocks
        return m + p * q


def cut_modes(shape: Sequence[int]) -> ModeCut:
    """The cut whose two Khatri-Rao products have the fewest rows.

    Cutting off leading modes keeps each contraction one matrix product. A group in the middle is
    taken only where it is several times smaller, as for 4 x 10^6 x 4.
    """
    return _cut_modes(tuple(shape))


@lru_cache
def _cut_modes(shape: tuple[int, ...]) -> ModeCut:
    leading = min(
        (ModeCut(shape, 0, stop) for stop in range(1, len(shape))), key=lambda cut: cut.width
    )
    middle = [
        cut
        for start in range(1, len(shape) - 1)
        for stop in range(start + 1, len(shape))
        if (cut := ModeCut(shape, start, stop)).blocks[0] <= _MAX_SLICES
    ]
    best = min(middle, key=lambda cut: cut.width, default=leading)
    return best if best.width * _MIDDLE_MUST_GAIN <= leading.width else leading


@dataclass(frozen=True)
class CutTensor:
    """A tensor seen through a `ModeCut`: `blocks` is a (P, M, Q) view of it."""

    cut: ModeCut
    blocks: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> CutTensor:
        cut = _cut_modes(tuple(tensor.shape))
        return cls(cut, tensor.reshape(cut.blocks))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.cut.shape

    def contract_outer(self, factors: Sequence[Tensor]) -> Tensor:
        """Contract the outer modes with their factors: (M, c) from factors[k] (n_k, c)."""
        if by_kernel(self.blocks, factors, self.cut, self.cut.outer):
            return self._contract(factors, self.cut.outer)
        slices = self.blocks.shape[0]
        outer = khatri_rao(tuple(factors[k] for k in self.cut.outer))
        outer = outer.view(slices, self.blocks.shape[2], -1)  # (P, Q, c)
        total = self.blocks[0] @ outer[0]
        for p in range(1, slices):
            total = torch.addmm(total, self.blocks[p], outer[p])
        return total

    def contract_inner(self, factors: Sequence[Tensor]) -> Tensor:
        """Contract the inner modes with their factors: (P Q, c) from factors[k] (n_k, c)."""
        if by_kernel(self.blocks, factors, self.cut, self.cut.inner):
            return self._contract(factors, self.cut.inner)
        inner = khatri_rao(tuple(factors[k] for k in self.cut.inner))  # (M, c)
        if self.blocks.shape[0] == 1:
            return self.blocks[0].T @ inner
        return torch.cat([block.T @ inner for block in self.blocks])

    def _contract(self, factors: Sequence[Tensor], modes: tuple[int, ...]) -> Tensor:
        return contract_modes(self.blocks.view(self.shape), [factors[k] for k in modes], modes)


def by_kernel(
    blocks: Tensor, factors: Sequence[Tensor], cut: ModeCut, modes: tuple[int, ...]
) -> bool:
    """Whether a contraction of `modes` is left to the kernel: on a GPU, by the model of its time
    and the library's; not where it is differentiated, since the kernel's op is only so once."""
    if not blocks.is_cuda or (
        torch.is_grad_enabled()
        and (blocks.requires_grad or any(factors[k].requires_grad for k in modes))
    ):
        return False
    return kernel_wins(blocks.view(cut.shape), modes, factors[modes[0]].shape[1])


@lru_cache
def split(sizes: tuple[int, ...]) -> int:
    """Where to cut a group of modes in two so that the two products of sizes sum to least."""
    return min(range(1, len(sizes)), key=lambda c: math.prod(sizes[:c]) + math.prod(sizes[c:]))


def contract_right(partial: Tensor, right: Tensor) -> Tensor:
    """(a b, c) with (b, c) over b -> (a, c), column by column."""
    b, c = right.shape
    return (partial.view(-1, b, c) * right).sum(1)


def contract_left(partial: Tensor, left: Tensor) -> Tensor:
    """(a b, c) with (a, c) over a -> (b, c), column by column."""
    a, c = left.shape
    return (partial.view(a, -1, c) * left.unsqueeze(1)).sum(0)


def mode_gram(tensor: Tensor, mode: int) -> Tensor:
    """Gram matrix X_(k) X_(k)^T (n_k, n_k) of an unfolding, without forming the unfolding."""
    n = tensor.shape[mode]
    blocks = tensor.reshape(math.prod(tensor.shape[:mode]), n, -1)  # (P, n, Q)
    p, _, q = blocks.shape
    if p == 1:
        return blocks[0] @ blocks[0].T
    if q == 1:
        return blocks[:, :, 0].T @ blocks[:, :, 0]
    # Batched, in groups whose Grams stay smaller than the tensor itself.
    group = max(1, min(p, tensor.numel() // (4 * n * n)))
    gram = tensor.new_zeros(n, n)
    for first in range(0, p, group):
        part = blocks[first : first + group]
        gram = gram + torch.bmm(part, part.transpose(1, 2)).sum(0)
    return gram
