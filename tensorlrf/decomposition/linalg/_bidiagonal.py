"""A block Krylov space of a matrix, from either side.

Block Golub-Kahan bidiagonalisation (Golub, Luk & Overton 1981) from random vectors (Musco & Musco
2015), with full reorthogonalisation. Blocks of vectors are rows: products with them run at up to
ten times the speed that BLAS libraries reach with a few columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._gram import descending_eigh, identity
from tensorlrf.decomposition.linalg._small import (
    Small,
    beside,
    eigenvalues,
    leading,
    on_host,
    short_gram,
    truncated,
)

SAMPLES = 8
"""Random vectors more than the first block has. Their images beside its own make it one that holds
no leading direction badly, and tell how much energy all of them leave."""

LITTLE = 1e-6
"""Share of all energy."""

AGAIN, REPEAT = 0.5, 0.1
"""Shares of itself, and of the largest vector of its block, below which what is left of a vector is
made orthogonal to the basis again, and once more after the orthogonalisation of its block."""

NOISE, DEFLATE = 16, 8
"""What is nothing but rounding, in roundings of the largest vector so far, and for a
triangular factor, whose diagonal does not tell its singular values, how many times that."""

JOINTLY = 1 << 21
"""Work, n (k + b)^2, up to which one factorisation of basis and block takes less than the calls of
several steps."""


class Bidiagonal:
    """U M V = the part of A (m, n) that a block Krylov space sees; rows of U (p, m) and V (q, n)
    are orthonormal.

    products   with A so far
    met        rows of U and of V that have met A
    beyond     squared norm of A that the first block of U leaves out, where that is little:
               estimated from random vectors, without the cancellation of ||A||^2 - ||U A||^2; else
               infinite
    """

    def __init__(
        self,
        matrix: Tensor,
        width: int,
        draws: torch.Generator,
        start: Tensor | None = None,
        products: int = 0,
    ) -> None:
        """From `start` (width, n), or from random vectors."""
        self.matrix, self.width, self.draws = matrix, width, draws
        self._left = _Rows(matrix, matrix.shape[0], width)
        self._right = _Rows(matrix, matrix.shape[1], width)
        self._middle: Small = np.zeros((0, 0))
        self._largest = 0.0
        self.met = 0, 0
        self.products = products + 1
        self.beyond = math.inf
        sketch = start is None
        if start is None:
            start = self._random(width + SAMPLES, matrix.shape[1])
        rows, across = _orthonormal(start @ matrix.T)
        if sketch:
            rows = self._leading(rows, on_host(across))
        self._left.append(rows)
        self.advance()

    def _leading(self, rows: Tensor, across: Small) -> Tensor:
        """The `width` leading directions of a Gaussian image, `across` times orthonormal `rows`;
        all of them where they leave next to nothing."""
        gram = short_gram(across.T)
        # Each vector, less all that are before it, is independent of them.
        last = across.diagonal()[-SAMPLES:]
        beyond = float(last @ last) / SAMPLES
        if beyond <= LITTLE * float(gram.trace()) / len(gram):
            self.beyond = beyond
            return rows
        return beside(leading(gram, self.width), rows).T @ rows

    def narrowed(self, width: int) -> Bidiagonal:
        """A space of narrower blocks that goes on from random vectors within this one."""
        within = self._random(width, self._left.count) @ beside(self.middle, self.matrix)
        return Bidiagonal(self.matrix, width, self.draws, within @ self.right, self.products)

    @property
    def left(self) -> Tensor:
        return self._left.held

    @property
    def right(self) -> Tensor:
        return self._right.held

    @property
    def middle(self) -> Small:
        """M (p, q)."""
        return self._middle[: self._left.count, : self._right.count]

    @property
    def full(self) -> bool:
        """Whether fresh vectors and what comes of them might not fit."""
        most = max(self._left.count, self._right.count)
        return most + 3 * self.width > min(self.matrix.shape)

    @property
    def size(self) -> int:
        """The rank of M at most."""
        return min(self._left.count, self._right.count)

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing left to advance with."""
        return self.met == (self._left.count, self._right.count)

    def draw(self) -> Tensor:
        """Random vectors, through A, join U. Returns what they add to it."""
        held = self._left.count
        self._extend(self._left, self._random(self.width, self.matrix.shape[1]) @ self.matrix.T)
        self.products += 1
        return self.left[held:]

    def advance(self) -> None:
        """The next product with A: from the left if there are vectors that have not met it, else
        from the right."""
        of_left, of_right = self.met
        p, q = self._left.count, self._right.count
        if of_left < p:
            seen = self._extend(self._right, self.left[of_left:] @ self.matrix)
            self._room()[of_left:p, : seen.shape[1]] = seen
            self.met = p, of_right
        else:
            seen = self._extend(self._left, self.right[of_right:] @ self.matrix.T)
            self._room()[: seen.shape[1], of_right:q] = seen.T
            self.met = of_left, q
        self.products += 1

    def ritz(self) -> Small:
        """Squared singular values of M, descending."""
        return eigenvalues(short_gram(self.middle))

    def cut(self, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """U_r (m, r), S (r,), V_r^T (r, n): the best of rank r within the space; zero beyond it."""
        size = min(self.middle.shape)
        if size < r:
            # Of a matrix of lower rank: the rest is nothing.
            left, values, right = self.cut(size)
            pad = torch.nn.functional.pad
            more = r - size
            return pad(left, (0, more)), pad(values, (0, more)), pad(right, (0, 0, 0, more))
        # All that float32 can hold is in a Gram in float64.
        parts = truncated(self.middle, r, roughly=self.matrix.dtype != torch.float64)
        left, values, right = (beside(part, self.matrix) for part in parts)
        return self.left.T @ left, values, right @ self.right

    def _room(self) -> Small:
        """What M is kept in, with room for all rows that there are."""
        most, held = max(self._left.count, self._right.count), len(self._middle)
        if most > held:
            grown = np.zeros((2 * most, 2 * most))
            grown[:held, :held] = self._middle
            self._middle = grown
        return self._middle

    def _extend(self, rows: _Rows, block: Tensor) -> Small:
        """What `block` (b, n) has beside the k `rows`, made orthonormal, c <= b of them, joins
        them. Returns its coordinates in all of them, (b, k + c)."""
        if block.shape[1] * (rows.count + block.shape[0]) ** 2 <= JOINTLY:
            return self._extend_jointly(rows, block)
        norms = torch.linalg.vector_norm(block, dim=1)
        noise = self._noise(float(norms.max()))
        along, rest, norms = self._beside(rows.held, block, norms)
        if bool(torch.linalg.vector_norm(rest, dim=1).max() <= noise):
            return on_host(along)
        fresh, across = _orthonormal(rest)
        least = across.diagonal().abs().min()
        repeat, deflate = torch.stack(
            [least < REPEAT * norms.max(), least <= DEFLATE * noise]
        ).tolist()
        if deflate:
            turn = _row_space(across, noise)
            fresh, across = turn @ fresh, across @ turn.T
        if repeat and rows.count:
            # Rounding along the basis, small beside the block, is not small beside such a
            # direction.
            more, fresh = _parted(rows.held, fresh)
            along += across @ more
            fresh, turn = _orthonormal_again(fresh)
            across = across @ turn
        rows.append(fresh)
        return on_host(torch.cat([along, across], 1))

    def _extend_jointly(self, rows: _Rows, block: Tensor) -> Small:
        """The same by Householder's vectors of all, orthonormal whatever they are of: what is
        rounding becomes any direction that is left."""
        held = rows.count
        everything, lower = _orthonormal(torch.cat([rows.held, block]))
        factor = on_host(lower)
        # Of an orthonormal basis it makes the same, but for signs.
        seen = factor[held:]
        seen[:, :held] *= np.sign(factor.diagonal()[:held])
        noise = self._noise(float(np.square(seen).sum(1).max()) ** 0.5)
        if np.abs(seen[:, held:]).max() <= noise:
            return seen[:, :held]
        rows.append(everything[held:])
        return seen

    def _noise(self, norm: float) -> float:
        """What is nothing but rounding once there has been a vector of this norm."""
        self._largest = max(self._largest, norm)
        return NOISE * float(torch.finfo(self.matrix.dtype).eps) * self._largest

    def _beside(self, basis: Tensor, block: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The coordinates of `block` along a basis, what is left, and the norms of its rows before
        the last step of that."""
        near = 2 * self.width
        if near < len(basis):
            # In exact arithmetic all that it has in common with the basis lies in the last blocks.
            close, rest = _parted(basis[-near:], block)
            norms = torch.linalg.vector_norm(rest, dim=1)
            along, rest = _parted(basis, rest)
            along[:, -near:] += close
        else:
            along, rest = _parted(basis, block)
        left = torch.linalg.vector_norm(rest, dim=1)
        if bool((left < AGAIN * norms).any()):
            norms = left
            more, rest = _parted(basis, rest)
            along += more
        return along, rest, norms

    def _random(self, rows: int, columns: int) -> Tensor:
        dtype, device = self.matrix.dtype, self.matrix.device
        return torch.randn(rows, columns, generator=self.draws, dtype=dtype, device=device)


class _Rows:
    """Rows of length n, and room for more."""

    def __init__(self, like: Tensor, n: int, count: int) -> None:
        self._room = like.new_empty(4 * count, n)
        self.count = 0

    @property
    def held(self) -> Tensor:
        return self._room[: self.count]

    def append(self, rows: Tensor) -> None:
        count = self.count + rows.shape[0]
        if count > self._room.shape[0]:
            grown = self._room.new_empty(2 * count, self._room.shape[1])
            grown[: self.count] = self.held
            self._room = grown
        self._room[self.count : count] = rows
        self.count = count


def _parted(basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates of `block` along `basis`, and what is left."""
    along = block @ basis.T
    return along, torch.addmm(block, along, basis, alpha=-1)


def _orthonormal(block: Tensor) -> tuple[Tensor, Tensor]:
    """block (b, n) = L Q with L (b, b) lower triangular and rows of Q orthonormal."""
    columns, upper = torch.linalg.qr(block.T)
    return columns.T, upper.T


def _orthonormal_again(block: Tensor) -> tuple[Tensor, Tensor]:
    """Q and L of a block whose rows are nearly orthonormal, by its Gram."""
    lower, failed = torch.linalg.cholesky_ex(block @ block.T)
    if bool(failed):
        rows, lower = _orthonormal(block)
        return rows, lower
    inverse = torch.linalg.solve_triangular(lower, identity(len(lower), lower), upper=False)
    return inverse @ block, lower


def _row_space(matrix: Tensor, noise: float) -> Tensor:
    """Right singular vectors, as rows, whose singular values are above `noise`."""
    if matrix.dtype == torch.float64:
        _, sizes, rows = torch.linalg.svd(matrix)
    else:
        # In float64 a Gram tells them from rounding of float32.
        wide = matrix.to(torch.float64)
        squares, vectors = descending_eigh(wide.T @ wide)
        sizes, rows = squares.sqrt(), vectors.T.to(matrix.dtype)
    kept: Tensor = rows[sizes > noise]
    return kept
