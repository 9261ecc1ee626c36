"""A truncated singular value decomposition from a block Krylov space.

Block Golub-Kahan bidiagonalisation (Golub, Luk & Overton 1981) from random vectors (Musco & Musco
2015), with full reorthogonalisation. The first product is a randomised sketch, each further one
half a power iteration that forgets none of those before it; how many there are is decided by an
estimate of what is still to be gained.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition._gram import descending_eigh, thin_svd
from tensorlrf.decomposition._ritz import Values, still_to_gain
from tensorlrf.decomposition._solver import Choice, reserve
from tensorlrf.decomposition._spectrum import balanced, frobenius_error, squared_norm

EXCESS = 1e-3
"""By what share the residual may exceed the least possible one."""

NOISE = 8
"""Rounding of Ritz values, in units of that of the largest one."""

SURPRISE = 0.2
"""Share of what may be left ungained that fresh vectors may win."""


class KrylovSVD:
    """U S V^T of a matrix (m, n), to be cut at rank r at most.

    products   with the matrix that it took
    """

    def __init__(self, space: Bidiagonal, r: int) -> None:
        self.matrix = space.matrix
        self.products = space.products
        self.left, self.values, self.right = space.cut(r)
        self.energies = self.values.to(torch.float64) ** 2

    def split(self, r: int) -> tuple[Tensor, Tensor]:
        return balanced(self.left[:, :r], self.values[:r], self.right[:r])

    def rel_error(self, left: Tensor, right: Tensor) -> float:
        return frobenius_error(self.matrix, left, right)


def krylov_svd(matrix: Tensor, r: int, choice: Choice, draws: torch.Generator) -> KrylovSVD | None:
    """The r leading directions of `matrix`, with a residual of at most 1 + `EXCESS` times the least
    possible one.

    None where the exact way is the shorter one: where more than `choice.products` products are to
    be expected still.
    """
    space = Bidiagonal(matrix, choice.width, draws)
    watch = Watch(r, squared_norm(matrix), torch.finfo(matrix.dtype).eps)
    while True:
        doubt = watch.look(space.ritz())
        if doubt <= 1 and (choice.width >= r or watch.surprised(space) <= 1):
            return KrylovSVD(space, r)
        if space.full or watch.to_come() > choice.products:
            return None
        space.advance()


class Watch:
    """What a space whose Ritz values it sees has yet to gain at rank r.

    In units of what may be left ungained: a squared residual within (1 + EXCESS)^2 of the least
    possible one misses no more than about 2 EXCESS of itself.
    """

    def __init__(self, r: int, total: float, eps: float) -> None:
        self.r, self.total, self.eps = r, total, eps
        self.held = r + reserve(r)
        self.history: list[Values] = []
        self.doubts: list[float] = []

    def look(self, values: Values) -> float:
        """The doubt after one more product, from all squared Ritz values."""
        if len(values) < self.held:
            return math.inf
        self.history.append(values[: self.held])
        noise = self._noise(values)
        # No truncation gains more than all that the space does not hold (Fan 1949).
        unseen = max(self.total - float(values.sum()), 0.0) + float(noise.sum())
        gain = min(still_to_gain(self.history, self.r, noise), unseen)
        self.doubts.append(gain / self._allowed(values))
        return self.doubts[-1]

    def to_come(self) -> float:
        """Products that are to be expected still, at the rate of the last two; as many as there
        were where these have won nothing."""
        if len(self.doubts) < 4:
            return 0.0
        rate = math.sqrt(self.doubts[-1] / self.doubts[-3])
        if rate >= 1:
            return float(len(self.doubts))
        return math.log(self.doubts[-1]) / -math.log(rate)

    def surprised(self, space: Bidiagonal) -> float:
        """The doubt that fresh random vectors raise.

        Of a singular value that many directions share, a space holds no more than the block has
        vectors, and shows no sign of it. Where they raise some, all begins anew from there.
        """
        space.draw()
        space.advance()
        values = space.ritz()
        won = values[: self.r] - self.history[-1][: self.r] - self._noise(values)
        doubt = float(np.maximum(won, 0).sum()) / (SURPRISE * self._allowed(values))
        self.history, self.doubts = [values[: self.held]], []
        return doubt

    def _noise(self, values: Values) -> Values:
        # Of a singular value: that of the largest; of its square, twice itself times that.
        noise: Values = NOISE * self.eps * np.sqrt(values[0] * values[: self.r])
        return noise

    def _allowed(self, values: Values) -> float:
        # What the space holds beyond rank r is lost for certain, and free of cancellation.
        known = float(values[self.r :].sum())
        noise = float(self._noise(values).sum())
        left = known + max(self.total - float(values.sum()) - noise, 0.0)
        return 2 * EXCESS * left + (4 * self.eps) ** 2 * self.total or math.inf


class Bidiagonal:
    """U M V = the part of A (m, n) that a block Krylov space sees; rows of U (p, m) and V (q, n)
    are orthonormal.

    Blocks of vectors are rows: products with them run at up to ten times the speed that BLAS
    libraries reach with a few columns.
    """

    def __init__(self, matrix: Tensor, width: int, draws: torch.Generator) -> None:
        self.matrix, self.width, self.draws = matrix, width, draws
        self.left = matrix.new_zeros(0, matrix.shape[0])
        self.right = matrix.new_zeros(0, matrix.shape[1])
        self.middle = matrix.new_zeros(0, 0)
        self.met = 0, 0  # rows of U and of V that have met A
        self.products = 0
        self.draw()
        self.advance()

    @property
    def full(self) -> bool:
        """Whether fresh vectors and what comes of them might not fit."""
        return max(self.middle.shape) + 3 * self.width > min(self.matrix.shape)

    def draw(self) -> None:
        """Random vectors, through A, join U."""
        start = self._random(self.width, self.matrix.shape[1])
        self.left, _ = self._extended(self.left, start @ self.matrix.T)
        self.middle = _grown(self.middle, self.width, 0)
        self.products += 1

    def advance(self) -> None:
        """The next product with A: from the left if there are vectors that have not met it, else
        from the right."""
        of_left, of_right = self.met
        p, q = self.middle.shape
        if of_left < p:
            self.right, seen = self._extended(self.right, self.left[of_left:] @ self.matrix)
            self.middle = torch.cat([_grown(self.middle[:of_left], 0, p - of_left), seen])
            self.met = p, of_right
        else:
            self.left, seen = self._extended(self.left, self.right[of_right:] @ self.matrix.T)
            self.middle = torch.cat([_grown(self.middle[:, :of_right], q - of_right, 0), seen.T], 1)
            self.met = of_left, q
        self.products += 1

    def ritz(self) -> Values:
        """Squared singular values of M, descending."""
        wide = self.middle.to(torch.float64)
        square = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
        values: Values = torch.linalg.eigvalsh(square).cpu().numpy()[::-1]
        return np.maximum(values, 0)

    def cut(self, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """U_r (m, r), S (r,), V_r^T (r, n): the best of rank r within the space."""
        if self.matrix.dtype == torch.float64:
            left, values, right = thin_svd(self.middle)
            return self.left.T @ left[:, :r], values[:r], right[:r] @ self.right
        wide = self.middle.to(torch.float64)
        turned = wide.shape[0] > wide.shape[1]
        if turned:
            wide = wide.T
        short = descending_eigh(wide @ wide.T)[1][:, :r]
        long = short.T @ wide  # S V^T, rows of length s_j
        values = torch.linalg.vector_norm(long, dim=1)
        long = long / torch.where(values > 0, values, 1)[:, None]
        left, right = (long.T, short.T) if turned else (short, long)
        dtype = self.matrix.dtype
        return self.left.T @ left.to(dtype), values.to(dtype), right.to(dtype) @ self.right

    def _extended(self, basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        """`basis` (k, n) and the rows of `block` (b, n) made orthonormal to it and to each other,
        (k + b, n); and the coordinates of `block` in that, (b, k + b)."""
        along, rest = _parted(basis, block)
        again, rest = _parted(basis, rest)
        rows, across = _orthonormal(rest)
        smallest = across.diagonal().abs().min()
        largest = torch.linalg.vector_norm(block, dim=1).max()
        if smallest >= REPEAT * largest:
            return torch.cat([basis, rows]), torch.cat([along + again, across], 1)
        # Rounding along the basis, small beside the block, is not small beside such a direction.
        if smallest <= RANDOM * largest:
            # What is nothing but rounding is better random.
            _, sizes, turn = torch.linalg.svd(across)
            noise = sizes <= torch.finfo(block.dtype).eps * largest
            drawn = self._random(*rows.shape) / math.sqrt(rows.shape[1])
            rows = torch.where(noise[:, None], drawn, turn @ rows)
            rows, _ = _orthonormal(_parted(basis, rows)[1])
        rows, _ = _orthonormal(_parted(basis, rows)[1])
        basis = torch.cat([basis, rows])
        return basis, block @ basis.T

    def _random(self, rows: int, columns: int) -> Tensor:
        dtype, device = self.matrix.dtype, self.matrix.device
        return torch.randn(rows, columns, generator=self.draws, dtype=dtype, device=device)


REPEAT, RANDOM = 0.1, 1e-4
"""Shares of its block below which a direction is made orthogonal once more, and looked at whether
it is one."""


def _parted(basis: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """The coordinates of `block` along `basis`, and what is left."""
    along = block @ basis.T
    return along, torch.addmm(block, along, basis, alpha=-1)


def _orthonormal(block: Tensor) -> tuple[Tensor, Tensor]:
    """block (b, n) = L Q with L (b, b) lower triangular and rows of Q orthonormal."""
    columns, upper = torch.linalg.qr(block.T)
    return columns.T, upper.T


def _grown(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """With so many rows and columns of zeros more."""
    return torch.nn.functional.pad(matrix, (0, columns, 0, rows))
