"""Truncated singular value decompositions of many matrices of one size, at one rank.

A whole spectrum is far more than a few directions need. Of blocks of low rank a sketch holds all
there is, and of those that are that but for noise it holds what stands out; the rest is left to the
Gram of what remains, in which small singular values are no longer rounded away beside large ones.
Each of these says by how much it may miss the optimum. LAPACK's SVD takes what is left in doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._batched import gram_doubt
from tensorlrf.decomposition.linalg._gram import descending_eigh, short_gram, thin_svd
from tensorlrf.decomposition.linalg._krylov import EXCESS, krylov_svd
from tensorlrf.decomposition.linalg._solver import choose
from tensorlrf.decomposition.linalg._stacked_svd import StackedSVD
from tensorlrf.decomposition.linalg.parallel import PIECE, over_batch

LARGE = 384
"""The shorter side of matrices from which on one is worth a Krylov space."""

FEW, SHARE = 4, 16
"""Matrices that are tried first: so many, and no larger part of them."""

TINY = 1e-300

Triples = tuple[Tensor, Tensor, Tensor]


def truncated(stack: Tensor, r: int) -> StackedSVD:
    """The r leading directions of each matrix (B, rows, columns).

    The residual of all together is at most 1 + `EXCESS` times the least possible one, but for the
    rounding of sums.
    """
    work = 6.0 * stack.numel() * min(stack.shape[1:])
    left, values, right = over_batch(partial(_truncated, r=r), (stack,), work)
    return StackedSVD(left, values, right, values.to(torch.float64) ** 2)


def _truncated(stack: Tensor, r: int) -> Triples:
    if stack.shape[1] > stack.shape[2]:
        right, values, left = _truncated(stack.mT.contiguous(), r)
        return left.mT, values, right.mT
    if stack.shape[1] >= LARGE:
        return _joined([_one(matrix, r) for matrix in stack])
    shortcuts = Shortcuts.of(stack, r)
    parts = torch.split(stack, max(1, PIECE // stack[0].numel()))
    return _joined([shortcuts.cut(part, r) for part in parts])


@dataclass(frozen=True)
class Shortcuts:
    """What is tried before LAPACK.

    sketch   for how many directions there is a sketch: r, or those that stand out; none for 0
    grams    whether Grams take apart what that leaves
    """

    sketch: int
    grams: bool

    @classmethod
    def of(cls, stack: Tensor, r: int) -> Shortcuts:
        """By a trial, where there are enough matrices for one to cost little; else a sketch if it
        is small, and Grams after it."""
        count = len(stack) // SHARE
        if not count:
            small = _is_small(r, stack)
            return cls(r if small else 0, small)
        draws = torch.Generator().manual_seed(0)
        some = torch.randperm(len(stack), generator=draws, device=draws.device)[: min(FEW, count)]
        return cls.tried(stack[some.to(stack.device)], r)

    @classmethod
    def tried(cls, some: Tensor, r: int) -> Shortcuts:
        """Those that leave no more than half of some matrices in doubt."""

        def serves(cut: Cut) -> bool:
            return 2 * len(cut.again()) <= len(some)

        found = _sketched(some, r)
        if found is not None and serves(found[1]):
            return cls(r, True)
        if serves(_by_grams(some, r)):
            return cls(0, True)
        standing = 0 if found is None else int(found[0].standing.max())
        if found is None or not standing or not serves(_by_grams(some, r, found[0])):
            return cls(0, False)
        return cls(standing, True)

    def cut(self, stack: Tensor, r: int) -> Triples:
        """The triplets of each matrix."""
        found = _sketched(stack, self.sketch) if self.sketch else None
        if found is not None and self.sketch == r:
            parts, again = found[1].triples, found[1].again()
        else:
            parts, again = _empty(stack, r), torch.arange(len(stack), device=stack.device)
        if self.grams and len(again):
            known = None if found is None else found[0].of(again)
            cut = _by_grams(stack[again], r, known)
            _put(parts, again, cut.triples)
            again = again[cut.again()]
        if len(again):
            left, values, right = thin_svd(stack[again])
            _put(parts, again, (left[:, :, :r], values[:, :r], right[:, :r]))
        return parts


class Cut(NamedTuple):
    """Truncations of matrices and what is known of them, squares all: what each leaves, by how much
    that may exceed the least possible one, and what sums of its numbers are rounded by."""

    triples: Triples
    loss: Tensor
    excess: Tensor
    rounding: Tensor

    def again(self) -> Tensor:
        """The fewest without which the others are together as near as they have to be."""
        excess = torch.where(self.excess > self.rounding, self.excess, 0)
        order = excess.argsort(descending=True)
        tails = excess[order].flip(0).cumsum(0).flip(0)  # tails[k] is missed by all but the first k
        least = (self.loss - self.excess).clamp(min=0).sum()
        return order[: int((tails > 2 * EXCESS * least).sum())]


class Sketch(NamedTuple):
    """A sketch of matrices A = Q Q^T A + R.

    left, right   Ritz vectors U (B, rows, w) and U^T A (B, w, columns)
    standing      how many of them stand out (B,), as if they were singular vectors
    missed        by how much their squared singular values may exceed those of the sketch (B,)
    """

    left: Tensor
    right: Tensor
    standing: Tensor
    missed: Tensor

    def of(self, some: Tensor) -> Sketch:
        """That of some of them."""
        return Sketch(*(part[some] for part in self))


def _sketched(stack: Tensor, r: int) -> tuple[Sketch, Cut] | None:
    """By the range of the products with a few more than r random vectors (Halko, Martinsson & Tropp
    2011), after one power iteration where those do not do; None where it would not be small."""
    if not _is_small(r, stack):
        return None
    width = _width(r)
    draws = torch.Generator(stack.device).manual_seed(0)
    start = torch.randn(
        stack.shape[2], width, generator=draws, dtype=stack.dtype, device=stack.device
    )
    basis = torch.linalg.qr(stack @ start)[0]
    coordinates, rest = _parted(stack, basis)
    rounding = _rounding(stack, width)
    if bool((_squares(rest).sum(1) > rounding).any()):
        rows = torch.linalg.qr(coordinates.mT)[0]
        basis = torch.linalg.qr(stack @ rows)[0]
        coordinates, rest = _parted(stack, basis)
    return _within(basis, coordinates, rest, r, rounding)


def _width(r: int) -> int:
    """Of a sketch for r directions."""
    return r + max(8, r // 4)


def _is_small(r: int, stack: Tensor) -> bool:
    """Whether a sketch takes less than the whole of each matrix (B, rows, columns)."""
    return 5 * _width(r) <= 2 * int(stack.shape[1])


def _parted(stack: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates Q^T A (B, w, columns) in orthonormal bases (B, rows, w), and what is left."""
    coordinates = basis.mT @ stack
    return coordinates, torch.baddbmm(stack, basis, coordinates, alpha=-1)


def _within(
    basis: Tensor, coordinates: Tensor, rest: Tensor, r: int, rounding: Tensor
) -> tuple[Sketch, Cut]:
    """The best of rank r within a basis Q.

    No r squared singular values of A sum to more than those of Q^T A and all of |R|^2 (Fan 1949).
    The s largest ones sum to no more than those of Q^T A, theta_j, and |R A^T u_j|^2 over
    theta_j - k for each of its Ritz vectors u_1 to u_s, where k bounds A A^T beside these: what
    couples the two counts by its square, over the gap (as in Mathias 1998).
    """
    wide = coordinates.to(torch.float64)
    energies, turn = descending_eigh(wide @ wide.mT)
    turn = turn.to(basis.dtype)
    left, right = basis @ turn, turn.mT @ coordinates
    unseen, beyond = _squares(rest).sum(1), energies[:, r:].sum(1)
    coupling = _squares(right @ rest.mT)  # (B, w)
    after = coupling.flip(1).cumsum(1).flip(1)[:, 1 : r + 1].sqrt()
    beside = torch.maximum(energies[:, 1 : r + 1], unseen[:, None]) + after  # k for each s
    gaps = energies[:, None, :r] - beside[:, :, None]  # (B, s, j)
    missed = (coupling[:, None, :r] / gaps.clamp(min=TINY)).tril().sum(2)  # (B, r)
    missed = torch.where(energies[:, :r] > beside, missed, torch.inf)
    loss = beyond + unseen
    ample = missed <= EXCESS / 4 * loss[:, None] + rounding[:, None]
    standing = (ample * torch.arange(1, r + 1, device=basis.device)).amax(1)
    of_standing = missed.gather(1, (standing - 1).clamp(min=0)[:, None])[:, 0]
    sketch = Sketch(left, right, standing, torch.where(standing > 0, of_standing, 0))
    excess = torch.minimum(unseen, missed[:, -1])
    return sketch, Cut(_triples(left[:, :, :r], right[:, :r]), loss, excess, rounding)


def _by_grams(stack: Tensor, r: int, known: Sketch | None = None) -> Cut:
    """By eigenvectors of Grams in the dtype of A; given a sketch, of A' = A - U_s U_s^T A with the
    s vectors that stand out in it, so that small values need not be told beside large ones.

    The squared singular values of A from number s + 1 on are no larger than those of A' (Cauchy).
    """
    slots = torch.arange(r, device=stack.device)
    standing = torch.zeros(len(stack), dtype=torch.int64, device=stack.device)
    missed, remains = torch.zeros_like(standing, dtype=torch.float64), stack
    if known is not None:
        standing, missed = known.standing, known.missed
        held = slots < standing[:, None]  # (B, r)
        beside = max(0, r - known.left.shape[2])
        largest = torch.nn.functional.pad(known.left, (0, beside))[:, :, :r] * held[:, None]
        seen = torch.nn.functional.pad(known.right, (0, 0, 0, beside))[:, :r] * held[:, :, None]
        remains = torch.baddbmm(stack, largest, seen, alpha=-1)
    energies, vectors = descending_eigh(short_gram(remains, stack.dtype))
    energies = energies.to(torch.float64)
    sought = r - standing
    wanted = slots < sought[:, None]  # (B, r)
    left = vectors[:, :, :r] * wanted[:, None]
    right = left.mT @ remains
    rest = torch.baddbmm(remains, left, right, alpha=-1)
    loss = _squares(rest).sum(1)
    # By what the eigenvalues leave of the norm, and by the gap: as in a sketch.
    best = _squares(remains).sum(1) - (energies[:, :r] * wanted).sum(1)
    by_values = (loss - best).clamp(min=0) + gram_doubt(energies, r, stack.dtype)
    following = torch.nn.functional.pad(energies, (0, 1)).gather(1, sought[:, None])
    gaps = energies[:, :r] - following - gram_doubt(energies, 1, stack.dtype)[:, None]
    by_gap = (_squares(right @ rest.mT) / gaps.clamp(min=TINY) * wanted).sum(1)
    by_gap = torch.where((gaps > 0).logical_or(~wanted).all(1), by_gap, torch.inf)
    excess = torch.where(sought > 0, torch.minimum(by_values, by_gap), 0) + missed
    if known is not None:
        after = (slots - standing[:, None]).clamp(min=0)  # the slot of each among its own
        left = largest + left.gather(2, after[:, None].expand_as(left)) * ~held[:, None]
        right = seen + right.gather(1, after[:, :, None].expand_as(right)) * ~held[:, :, None]
    return Cut(_triples(left, right), loss, excess, _rounding(stack, r))


def _squares(stack: Tensor) -> Tensor:
    """The squared norms of rows (B, rows), in float64."""
    norms: Tensor = torch.linalg.vector_norm(stack, dim=2)
    return norms.to(torch.float64).square()


def _rounding(stack: Tensor, width: int) -> Tensor:
    """The square that products of `width` columns and rows, which stand for matrices, are rounded
    by (B,)."""
    return float(torch.finfo(stack.dtype).eps) ** 2 * width * _squares(stack).sum(1)


def _triples(left: Tensor, right: Tensor) -> Triples:
    values = torch.linalg.vector_norm(right, dim=2)
    return left, values, right / torch.where(values > 0, values, 1)[:, :, None]


def _one(matrix: Tensor, r: int) -> Triples:
    """Those of a stack of one, (1, rows, r) and so on."""
    choice = choose((int(matrix.shape[0]), int(matrix.shape[1])), r, matrix.dtype)
    if choice.solver == "krylov":
        draws = torch.Generator(matrix.device).manual_seed(0)
        found = krylov_svd(matrix, r, choice, draws)
        if found is not None:
            return found.left[None], found.values[None], found.right[None]
    left, values, right = StackedSVD.of(matrix[None]).triples
    return left[:, :, :r], values[:, :r], right[:, :r]


def _empty(stack: Tensor, r: int) -> Triples:
    count, m, n = stack.shape
    return stack.new_empty(count, m, r), stack.new_empty(count, r), stack.new_empty(count, r, n)


def _put(parts: Triples, where: Tensor, found: Triples) -> None:
    for part, of_some in zip(parts, found, strict=True):
        part[where] = of_some


def _joined(found: list[Triples]) -> Triples:
    left, values, right = (torch.cat(parts) for parts in zip(*found, strict=True))
    return left, values, right
