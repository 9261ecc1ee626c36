"""A truncated singular value decomposition from a block Krylov space.

The first product is a randomised sketch, each further one half a power iteration that forgets none
of those before it; how many there are is decided by an estimate of what is still to be gained.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tensorlrf.decomposition.linalg._bidiagonal import Bidiagonal
from tensorlrf.decomposition.linalg._ritz import Look, Values, still_to_gain
from tensorlrf.decomposition.linalg._solver import Choice, reserve
from tensorlrf.decomposition.linalg._spectrum import balanced, frobenius_error, squared_norm

EXCESS = 1e-3
"""By what share the residual may exceed the least possible one."""

NOISE = 8
"""Rounding of Ritz values, in units of that of the largest one."""

SURPRISE = 0.2
"""Share of what may be left ungained that fresh vectors may win."""

STEEP = 8
"""How many times the mean squared singular value that a sketch leaves the lower quartile of those
within it is, where the spectrum is steep."""

LARGE = 128
"""Dimensions from which on Ritz values take about as long as a product, or longer."""

DEVIATION = 10.0
"""By what factor a mean of eight random vectors may understate the energy that a basis leaves: all
but 7 of 10,000 do so by less, where it lies in one direction."""


class KrylovSVD:
    """U S V^T of a matrix (m, n), to be cut at rank r at most.

    products   with the matrix that it took
    """

    def __init__(self, space: Bidiagonal, r: int) -> None:
        self.matrix = space.matrix
        self.products = space.products
        self.left, self.values, self.right = space.cut(r)

    @property
    def energies(self) -> Tensor:
        return self.values.to(torch.float64) ** 2

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
    total = squared_norm(matrix)
    space = Bidiagonal(matrix, choice.sketch, draws)
    if choice.width < choice.sketch and not steep(space.ritz(), r, total, min(matrix.shape)):
        space = space.narrowed(choice.width)
    watch = Watch(r, total, torch.finfo(matrix.dtype).eps)
    while True:
        # A space that nothing more comes of is all that there is for its block.
        if space.exhausted or watch.done(space):
            found = KrylovSVD(space, r)
            if space.width >= r or watch.surprised(space, found) <= 1:
                return found
        if space.full or watch.to_come() > choice.products:
            return None
        space.advance()


def steep(values: Values, r: int, total: float, n: int) -> bool:
    """Whether what a sketch of a matrix with n singular values holds stands out from what it leaves
    of all energy. Then few products more will do, and many narrow ones, which find as much with
    less work where the way is long, are no gain."""
    if len(values) < r:
        return True
    left = (total - float(values.sum())) / (n - len(values))
    return float(values[3 * r // 4]) >= STEEP * left


class Watch:
    """What a space whose Ritz values it sees has yet to gain at rank r.

    In units of what may be left ungained: a squared residual within (1 + EXCESS)^2 of the least
    possible one misses no more than about 2 EXCESS of itself.
    """

    def __init__(self, r: int, total: float, eps: float) -> None:
        self.r, self.total, self.eps = r, total, eps
        self.held = r + reserve(r)
        self.history: list[Look] = []
        self.doubts: list[float] = []
        self.next = 0

    def done(self, space: Bidiagonal) -> bool:
        """Whether it is time for a look, and one says so."""
        due = space.size >= self.r and space.products >= self.next
        return due and self.look(space.ritz(), space.products, space.beyond) <= 1

    def look(self, values: Values, products: int, beyond: float = math.inf) -> float:
        """The doubt after so many products, from all squared Ritz values; `beyond`, see
        `Bidiagonal`."""
        self.history.append(Look(products, values[: self.held]))
        # No truncation gains more than what random vectors say, but for their own rounding.
        gain = DEVIATION * max(beyond - (NOISE * self.eps) ** 2 * self.total, 0.0)
        if len(values) >= self.held:
            noise = self._noise(values)
            # Nor more than all that the space does not hold (Fan 1949).
            unseen = max(self.total - float(values.sum()), 0.0) + float(noise.sum())
            gain = min(gain, unseen, still_to_gain(self.history, self.r, noise))
        elif gain:
            return math.inf
        self.doubts.append(gain / self._allowed(values))
        self.next = products + self._stride(len(values))
        return self.doubts[-1]

    def to_come(self) -> float:
        """Products that are to be expected still, at the rate of the last ones; as many as were
        looked at where these have won nothing."""
        if len(self.doubts) < 4 or self.doubts[-1] <= 1:
            return 0.0
        (before, _), _, (now, _) = self.history[-3:]
        rate = (self.doubts[-1] / self.doubts[-3]) ** (1 / (now - before))
        if rate >= 1:
            return float(now - self.history[0].products + 1)
        return math.log(self.doubts[-1]) / -math.log(rate)

    def surprised(self, space: Bidiagonal, found: KrylovSVD) -> float:
        """The doubt that fresh random vectors beside those found raise.

        Of a singular value that many directions share, a space holds no more than the block has
        vectors, and shows no sign of it. Where they raise some, all begins anew from there.
        """
        image = space.draw() @ space.matrix
        both = torch.cat([found.values[:, None] * found.right, image]).to(torch.float64)
        gram = both @ both.T
        before, after = (
            torch.linalg.eigvalsh(part).clamp(min=0).cpu().numpy()[: -self.r - 1 : -1]
            for part in (gram[: self.r, : self.r], gram)
        )
        won = after - before - self._noise(before)
        doubt = float(np.maximum(won, 0).sum()) / (SURPRISE * self._allowed(before))
        found.products = space.products
        if doubt > 1:
            space.advance()
            values = space.ritz()[: self.held]
            self.history, self.doubts = [Look(space.products, values)][: len(values) >= self.r], []
            self.next = space.products + 1
        return doubt

    def _stride(self, size: int) -> int:
        """Products until the next look: in a row where that is cheap beside them and until three
        have shown a rate; else by even numbers, since products with A and with its transpose win by
        turns."""
        to_come = self.to_come()
        if size < LARGE or to_come == 0:
            return 1
        return 4 if to_come >= 6 else 2

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
