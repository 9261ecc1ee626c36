"""Columns one after the other: each time the one of which the others leave most.

References: Golub 1965 (pivots); Drmac & Bujanovic 2008 (norms that are told again when they have
cancelled); Farahat, Ghodsi & Kamel 2013 (columns of one matrix for another).
"""

from __future__ import annotations

import torch
from torch import Tensor

CANCELLED = 1e-7
"""What is left of a square that is taken down is told anew below this share of what it was."""

FIRST = 32
"""Steps for which there is room at first."""


class Pivots:
    """W P = Q R of W (m, n), column by column, as far as it is asked for.

    With `image` A (m, n') columns of W are sought that span those of A: each time the one whose
    direction takes most away from what the others leave of A. Without, A is W, and that column is
    the longest that is left.

    matrix    W, float64
    image     A, float64
    rounding  relative, of the entries of W: what is shorter than that is no direction
    """

    def __init__(
        self, matrix: Tensor, image: Tensor | None = None, rounding: float | None = None
    ) -> None:
        self.matrix, self.image = matrix, image
        m, n = matrix.shape
        self.limit = int(min(m, n))
        eps = max(float(torch.finfo(matrix.dtype).eps), rounding or 0.0)
        self.left = matrix.square().sum(0)  # (n,) what is left of each column, squared
        whole = float(self.left.sum())
        self.floor = 4 * eps * whole**0.5
        self.energy = whole if image is None else float(image.square().sum())
        self.chosen: list[int] = []
        self.gains: list[float] = []
        """What each of them takes away from the squared norm of A."""
        self.exhausted = False
        self._basis = matrix.new_zeros(min(FIRST, self.limit), m)  # Q^T
        self._upper = matrix.new_zeros(min(FIRST, self.limit), n)  # R
        self._known = float(self.left.max())
        if image is not None:
            self._scores = (image.T @ matrix).square().sum(0)  # |A^T w|^2 of what is left of both
            self._scored = float(self._scores.max())

    # ---- how far -----------------------------------------------------------------------------

    def extend(self, rank: int) -> None:
        """Until there are so many, or all else is rounding."""
        while len(self.chosen) < min(rank, self.limit) and not self.exhausted:
            self.exhausted = not self._step()

    def extend_within(self, budget: float) -> None:
        """Until no more than `budget` is left of the squared norm of A."""
        while self.rest > budget and len(self.chosen) < self.limit and not self.exhausted:
            self.exhausted = not self._step()

    @property
    def rest(self) -> float:
        """What is left of the squared norm of A."""
        if self.image is None:
            return float(self.left.sum())
        return max(0.0, self.energy - sum(self.gains))

    # ---- what is known -----------------------------------------------------------------------

    def order(self, rank: int) -> Tensor:
        """So many columns, int64: those that were chosen, then the first of all others, which add
        nothing."""
        self.extend(rank)
        taken = self.chosen[:rank]
        if len(taken) < rank:
            known = set(taken)
            others = [j for j in range(self.matrix.shape[1]) if j not in known]
            taken = taken + others[: rank - len(taken)]
        return torch.tensor(taken, dtype=torch.int64, device=self.matrix.device)

    def coefficients(self, rank: int) -> Tensor:
        """X (rank, n), by which the columns in `order` come nearest to all of W: the identity in
        them."""
        order = self.order(rank)
        k = min(rank, len(self.chosen))
        found = solved(self._upper[:k, order[:k]], self._upper[:k])
        return with_identity(found, order)

    def energies(self) -> Tensor:
        """(limit,): what each adds to the squared norm, all that is left in the next one."""
        energies = self.left.new_zeros(self.limit)
        k = len(self.gains)
        energies[:k] = torch.tensor(self.gains, dtype=energies.dtype, device=energies.device)
        if k < self.limit:
            energies[k] = self.rest
        return energies

    # ---- one step ----------------------------------------------------------------------------

    def _step(self) -> bool:
        """One more column; False where all that is left is rounding."""
        k, j = len(self.chosen), self._next()
        if j is None:
            return False
        basis = self._basis[:k]
        direction = self.matrix[:, j].clone()
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            direction -= basis.T @ (basis @ direction)
        norm = float(torch.linalg.vector_norm(direction))
        if not norm > self.floor:
            self.left[j] = 0.0
            return self._step() if self.image is not None else False
        direction /= norm
        row = direction @ self.matrix  # (n,)
        if k:
            row[self.chosen] = 0.0
        self._write(k, direction, row)
        self.chosen.append(j)
        self.left.sub_(row.square()).clamp_(min=0.0)
        if self.image is None:
            self.gains.append(float(row.square().sum()))
        else:
            self._take(direction, row)
        self.left[self.chosen] = 0.0
        self._tell_anew()
        return True

    def _next(self) -> int | None:
        """The column to be chosen; None where none is left."""
        found = self.left > self.floor**2
        if not bool(found.any()):
            return None
        if self.image is None:
            return int(self.left.argmax())
        taken_away = torch.where(found, self._scores / self.left.clamp(min=self.floor**2), -1.0)
        return int(taken_away.argmax())

    def _take(self, direction: Tensor, row: Tensor) -> None:
        """|A^T w|^2 for w and A with this direction q taken out: F = A^T W loses a r^T, with
        a = A^T q and r = W^T q."""
        assert self.image is not None
        a = self.image.T @ direction
        basis, upper = self._basis[: len(self.chosen) - 1], self._upper[: len(self.chosen) - 1]
        # F^T a of what is left of both before: W^T A a, less what lies in the directions so far.
        seen = self.image @ a
        met = self.matrix.T @ seen - upper.T @ (basis @ seen)
        square = float(a.square().sum())
        self._scores += row.square() * square - 2 * row * met
        self._scores.clamp_(min=0.0)
        self.gains.append(square)

    def _tell_anew(self) -> None:
        """Squares that have been taken down to their rounding."""
        k = len(self.chosen)
        basis, upper = self._basis[:k], self._upper[:k]
        if float(self.left.max()) < CANCELLED * self._known:
            self.left = (self.matrix - basis.T @ upper).square().sum(0)
            self.left[self.chosen] = 0.0
            self._known = float(self.left.max())
        if self.image is not None and float(self._scores.max()) < CANCELLED * self._scored:
            rest = self.image - basis.T @ (basis @ self.image)
            self._scores = (rest.T @ self.matrix).square().sum(0)
            self._scored = float(self._scores.max())

    def _write(self, k: int, direction: Tensor, row: Tensor) -> None:
        if k == len(self._basis):
            room = min(k, self.limit - k)
            self._basis = torch.cat([self._basis, self._basis.new_zeros(room, len(direction))])
            self._upper = torch.cat([self._upper, self._upper.new_zeros(room, len(row))])
        self._basis[k], self._upper[k] = direction, row


def facing(image: Tensor, basis: Tensor, count: int) -> Tensor:
    """Rows of A (m, n) that span best what an orthonormal basis Q (m, r) has of it, Q^T A: pivots
    of A in the leading directions of that, r at a time, and then of what these leave. Both in
    float64; indices (count,), count <= m."""
    seen = basis.T @ image  # (r, n)
    free = torch.arange(len(image), device=image.device)
    chosen = free[:0]
    while True:
        k = min(count - len(chosen), basis.shape[1])
        sides, upper = torch.linalg.qr(seen.T)
        directions = sides @ torch.linalg.svd(upper)[0][:, :k]  # (n, k)
        coordinates = (image @ directions)[free]
        found = Pivots(coordinates.T).order(k)
        chosen = torch.cat([chosen, free[found]])
        if len(chosen) == count:
            return chosen
        kept = torch.ones_like(free, dtype=torch.bool)
        kept[found] = False
        free = free[kept]
        span = torch.linalg.qr(image[chosen].T)[0]
        seen = seen - (seen @ span) @ span.T


def sketched(matrix: Tensor, rank: int, more: int, draws: torch.Generator) -> Tensor:
    """Random sums (rank + more, n) of the rows of W (m, n), float64, in which columns are near each
    other as they are in W (Liberty et al. 2007, section 3; Martinsson et al. 2011)."""
    sums = torch.randn(
        rank + more, matrix.shape[0], generator=draws, dtype=matrix.dtype, device=matrix.device
    )
    return (sums @ matrix).to(torch.float64)


def squared_off(matrix: Tensor) -> Tensor:
    """What has the same columns but for a rotation, (k, n) with k <= n, float64."""
    wide = matrix.to(torch.float64)
    upper: Tensor = wide
    if wide.shape[0] > wide.shape[1]:
        upper = torch.linalg.qr(wide, mode="r")[1]
    return upper


def nearest(matrix: Tensor, order: Tensor, independent: int) -> Tensor:
    """X (r, n) by least squares: W[:, order] X is nearest to W (m, n), the identity in `order`.

    Of these only the first `independent` are used: the others depend on them. In float64; products
    with W are in its dtype.
    """
    picked = matrix[:, order[:independent]].to(torch.float64)
    basis, upper = torch.linalg.qr(picked)
    seen = (basis.to(matrix.dtype).T @ matrix).to(torch.float64)
    return with_identity(solved(upper, seen), order)


def solved(upper: Tensor, right: Tensor) -> Tensor:
    """upper^-1 right, of no rows where there are none."""
    if not len(upper):
        return right
    found: Tensor = torch.linalg.solve_triangular(upper, right, upper=True)
    return found


def with_identity(found: Tensor, order: Tensor) -> Tensor:
    """Coefficients (k, n) of the first of `order` (r,), as those of all of them, (r, n)."""
    r, k = len(order), len(found)
    whole = found.new_zeros(r, found.shape[1])
    whole[:k] = found
    whole[:, order] = torch.eye(r, dtype=found.dtype, device=found.device)
    return whole
