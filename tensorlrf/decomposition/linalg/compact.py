"""Second moments G (n, n) that are held in less room than n^2: what fits ask of a matrix, they do.

    block-diagonal         G_bb alone for some blocks b of columns, as if inputs of two blocks had
                           nothing to do with each other. With k blocks 0 <= G <= k diag(G_bb).
    low rank and diagonal  S^T S + diag(d), a sketch S (l, n) and what it leaves of each variance
    drawn                  share G + ridge I of a matrix G that others hold as well, without a copy

`matrix @ compact` is the product with G, as with a tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from tensorlrf.errors import TensorlrfError

BLOCK = 1 << 18
"""Numbers of some rows of a matrix that are at work at once."""


class Compact(ABC):
    """Symmetric, positive semidefinite, in float64."""

    @abstractmethod
    def __len__(self) -> int:
        """n."""

    @abstractmethod
    def __rmatmul__(self, matrix: Tensor) -> Tensor:
        """D G for D (..., n)."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """(n,)."""

    @abstractmethod
    def square(self) -> float:
        """|G|^2, the sum of squares of its entries."""

    @abstractmethod
    def times(self, factor: float) -> Self:
        """`factor` G, for a factor that is not negative."""

    @abstractmethod
    def added(self, other: Self) -> Self:
        """The sum with another of the same form."""

    @abstractmethod
    def plus(self, ridge: float) -> Self:
        """G + ridge I."""

    @abstractmethod
    def about(self, mean: Tensor, eps: float) -> Self:
        """G - mean mean^T, where variances that are rounding `eps` of what cancels are zero."""

    @abstractmethod
    def solve(self, matrix: Tensor) -> Tensor:
        """D G^-1 for D (m, n), where G is definite."""

    @abstractmethod
    def is_definite(self, shift: float) -> bool:
        """Whether G + shift I is known to be positive definite."""

    @abstractmethod
    def dense(self) -> Tensor:
        """G itself, (n, n)."""


Gram = Tensor | Compact


def dense(gram: Gram) -> Tensor:
    """As a matrix (n, n)."""
    return gram if isinstance(gram, Tensor) else gram.dense()


def squared(gram: Gram) -> float:
    """|G|^2."""
    if isinstance(gram, Compact):
        return gram.square()
    return float(torch.linalg.vector_norm(gram)) ** 2


def mixed(one: Gram, other: Gram, share: float) -> Gram:
    """`share` of the first and the rest of the second, both of one form."""
    if isinstance(one, Compact) and isinstance(other, Compact):
        return one.times(share).added(other.times(1 - share))
    return dense(other).lerp(dense(one), share)


def has_cholesky(gram: Tensor, shift: float) -> bool:
    """Whether G + shift I is positive definite, (n, n): whether it has a Cholesky factor."""
    shifted = gram.clone()
    shifted.diagonal().add_(shift)
    return cholesky_(shifted) is not None


def cholesky_(gram: Tensor) -> Tensor | None:
    """The Cholesky factor of a symmetric G (n, n), in the memory of G; None where it has none, and
    G is destroyed."""
    own = gram.mT if gram.is_contiguous() else gram  # LAPACK has columns; G is its own transpose
    info = torch.empty((), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(own, out=(own, info))
    return None if bool(info) else own


def some_rows(m: int, n: int) -> Iterator[slice]:
    """Rows of a matrix (m, n) that are at work at once: an eighth of them at the most, so that what
    is made of them is small beside the matrix, however small that is."""
    step = max(1, min(BLOCK // max(1, n), -(-m // 8)))
    yield from (slice(start, min(start + step, m)) for start in range(0, m, step))


def solved(factor: Tensor, matrix: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """D G^-1 for D (m, n) and the Cholesky factor of G, some rows at a time: which, and they."""
    for rows in some_rows(*matrix.shape):
        block = matrix[rows].to(factor.dtype, copy=True).contiguous().mT  # in LAPACK's order
        torch.linalg.solve_triangular(factor, block, upper=False, out=block)
        torch.linalg.solve_triangular(factor.mT, block, upper=True, out=block)
        yield rows, block.mT


def about_mean(gram: Tensor, mean: Tensor, eps: float) -> Tensor:
    """G - mean mean^T, (n, n), where inputs that do not vary have no variance: what is left of it
    when values of relative rounding `eps` cancel has either sign."""
    centred = gram - torch.outer(mean, mean)
    constant = centred.diagonal() <= 16 * eps * gram.diagonal()
    centred[constant] = 0.0
    centred[:, constant] = 0.0
    return centred


@dataclass(frozen=True)
class BlockDiagonal(Compact):
    """blocks  (b, b) each, along the diagonal; as many columns as they have together"""

    blocks: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def __str__(self) -> str:
        return f"{len(self.blocks)} blocks of at most {max(map(len, self.blocks))} columns"

    def __rmatmul__(self, matrix: Tensor) -> Tensor:
        return torch.cat([part @ block for part, block in self._parts(matrix)], dim=-1)

    def diagonal(self) -> Tensor:
        return torch.cat([block.diagonal() for block in self.blocks])

    def square(self) -> float:
        return sum(squared(block) for block in self.blocks)

    def times(self, factor: float) -> Self:
        return replace(self, blocks=tuple(block * factor for block in self.blocks))

    def added(self, other: Self) -> Self:
        pairs = zip(self.blocks, other.blocks, strict=True)
        return replace(self, blocks=tuple(one + more for one, more in pairs))

    def plus(self, ridge: float) -> Self:
        blocks = tuple(block.clone() for block in self.blocks)
        for block in blocks:
            block.diagonal().add_(ridge)
        return replace(self, blocks=blocks)

    def about(self, mean: Tensor, eps: float) -> Self:
        blocks = tuple(about_mean(block, mu, eps) for mu, block in self._parts(mean))
        return replace(self, blocks=blocks)

    def solve(self, matrix: Tensor) -> Tensor:
        parts = [
            torch.cholesky_solve(part.T, torch.linalg.cholesky(block)).T
            for part, block in self._parts(matrix)
        ]
        return torch.cat(parts, dim=1)

    def is_definite(self, shift: float) -> bool:
        return all(has_cholesky(block, shift) for block in self.blocks)

    def dense(self) -> Tensor:
        n = len(self)
        gram = self.blocks[0].new_zeros(n, n)
        for part, block in self._parts(torch.arange(n, device=gram.device, dtype=torch.int64)):
            gram[part[0] : part[-1] + 1, part[0] : part[-1] + 1] = block
        return gram

    def _parts(self, matrix: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The columns of each block of (..., n), and the block."""
        widths = [len(block) for block in self.blocks]
        return zip(torch.split(matrix, widths, dim=-1), self.blocks, strict=True)


@dataclass(frozen=True)
class LowRankPlusDiagonal(Compact):
    """rows  S (l, n)
    rest   d (n,), none below zero
    off    a bound of the spectral norm of what G is short of, or beyond, the moments that it
           stands for
    """

    rows: Tensor
    rest: Tensor
    off: float = 0.0

    def __len__(self) -> int:
        return len(self.rest)

    def __str__(self) -> str:
        told = f"a sketch of {len(self.rows)} rows"
        largest = float(torch.linalg.matrix_norm(self.rows, 2)) ** 2 if self.rows.numel() else 0.0
        return f"{told}, off by {self.off / largest:.2g} at most" if largest > 0 else told

    def __rmatmul__(self, matrix: Tensor) -> Tensor:
        return (matrix @ self.rows.T) @ self.rows + matrix * self.rest

    def diagonal(self) -> Tensor:
        return self._sketched + self.rest

    @cached_property
    def _sketched(self) -> Tensor:
        return self.rows.square().sum(0)

    def square(self) -> float:
        rest = (2 * self._sketched + self.rest) @ self.rest
        return squared(self.rows @ self.rows.T) + float(rest)

    def times(self, factor: float) -> Self:
        rows = self.rows * math.sqrt(factor)
        return replace(self, rows=rows, rest=self.rest * factor, off=self.off * factor)

    def added(self, other: Self) -> Self:
        rows = torch.cat([self.rows, other.rows])
        return replace(self, rows=rows, rest=self.rest + other.rest, off=self.off + other.off)

    def plus(self, ridge: float) -> Self:
        return replace(self, rest=self.rest + ridge)

    def about(self, mean: Tensor, eps: float) -> Self:
        """Within the rows and the mean, no direction may hold less than nothing then; what is taken
        off to that end is no more than `off`."""
        variances = self.diagonal() - mean.square()
        varies = (variances > 16 * eps * self.diagonal()).to(mean.dtype)
        basis = torch.linalg.qr(torch.cat([self.rows, mean[None]]).T)[0]  # (n, l + 1)
        seen, mu = self.rows @ basis, mean @ basis
        values, vectors = torch.linalg.eigh(seen.T @ seen - torch.outer(mu, mu))
        rows = values.clamp(min=0).sqrt()[:, None] * (basis @ vectors).T * varies
        rest = (variances * varies - rows.square().sum(0)).clamp(min=0)
        return replace(self, rows=rows, rest=rest, off=2 * self.off)

    def solve(self, matrix: Tensor) -> Tensor:
        """By the formula of Sherman, Morrison and Woodbury."""
        weighed = self.rows / self.rest  # S D^-1
        inner = weighed @ self.rows.T
        inner.diagonal().add_(1.0)
        short = torch.cholesky_solve(weighed @ matrix.T, torch.linalg.cholesky(inner))  # (l, m)
        return matrix / self.rest - short.T @ weighed

    def is_definite(self, shift: float) -> bool:
        return bool((self.rest + shift > 0).all())

    def dense(self) -> Tensor:
        gram = self.rows.T @ self.rows
        gram.diagonal().add_(self.rest)
        return gram


@dataclass(frozen=True)
class Drawn(Compact):
    """share G + ridge I for a matrix G (n, n) that others hold as well.

    gram   G, positive semidefinite, float64; never changed
    share  not negative
    ridge  not negative
    """

    gram: Tensor
    share: float
    ridge: float

    def __len__(self) -> int:
        return len(self.gram)

    def __rmatmul__(self, matrix: Tensor) -> Tensor:
        return self.of_product(matrix @ self.gram, matrix)

    def of_product(self, product: Tensor, matrix: Tensor) -> Tensor:
        """D (share G + ridge I) for D (..., n) from D G, in the memory of that."""
        return product.mul_(self.share).add_(matrix, alpha=self.ridge)

    def diagonal(self) -> Tensor:
        return self.share * self.gram.diagonal() + self.ridge

    def square(self) -> float:
        trace, n = float(self.gram.diagonal().sum()), len(self)
        cross = 2 * self.share * self.ridge * trace
        return self.share**2 * squared(self.gram) + cross + n * self.ridge**2

    def times(self, factor: float) -> Self:
        return replace(self, share=self.share * factor, ridge=self.ridge * factor)

    def added(self, other: Self) -> Self:
        return replace(self, gram=self.dense().add_(other.dense()), share=1.0, ridge=0.0)

    def plus(self, ridge: float) -> Self:
        return replace(self, ridge=self.ridge + ridge)

    def about(self, mean: Tensor, eps: float) -> Self:
        return replace(self, gram=about_mean(self.dense(), mean, eps), share=1.0, ridge=0.0)

    def solve(self, matrix: Tensor) -> Tensor:
        factor = cholesky_(self.dense())
        if factor is None:
            raise TensorlrfError("second moments that are not definite have no inverse")
        return torch.cat([block for _, block in solved(factor, matrix)])

    def is_definite(self, shift: float) -> bool:
        if self.share == 0.0:
            return self.ridge + shift > 0
        return has_cholesky(self.gram, (self.ridge + shift) / self.share)

    def dense(self) -> Tensor:
        gram = self.gram * self.share
        gram.diagonal().add_(self.ridge)
        return gram
