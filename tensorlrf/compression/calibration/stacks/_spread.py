"""How far the second moments of experts differ, and how far each of them is known.

What the experts of a stack have in common may be much, as of their first matrices, which read one
and the same tensor, or nothing, as of those behind, whose columns are hidden units of an expert's
own in an order of its own. With S_e the moments of expert e and S their mean over all N rows, in
columns of unit variance so that none counts more than another, let

    a = sum_e n_e |S_e - S|^2 / N,    b = sum_e n_e |S_e - m_e I|^2 / N,    m_e = tr(S_e) / n.

S serves where it is clearly nearer than what is known without any inputs, a multiple of the
identity: where a is well below b. Then it is worth k = s^2 / a rows of each, with s^2 the variance
of x x^T within an expert. Moments G_e over few rows are off S_e by s^2 / n_e, which is taken off
again (Bühlmann & Straub 1970):

    s^2 = sum_e sum_x |x x^T - G_e|^2 / (N - K)
    a   = (sum_e n_e |G_e - G|^2 - (K - 1) s^2) / (N - sum_e n_e^2 / N)
    b   = (sum_e n_e |G_e - m_e I|^2 - K s^2) / N

over the K experts with rows. All norms are of matrices times a few random directions Z (n, s) with
entries of unit variance, |A Z|^2 = s |A|^2 in the mean: that takes s numbers for each column of an
expert, where its moments would take n.

Tried on the inputs of a feed-forward layer of MiniLM, of which clusters stand for experts
(bench/seldom_experts.py): without unit variance k is too small by half, for the columns that are
loudest differ most. Whitened in full, S says the same as the identity and k is n or more, which
takes too much from experts with some hundred rows. As many rows as there are columns, or a quarter
of these, are as good for first matrices and harm the second ones where hidden units have orders of
their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tensorlrf.compression.group._group import Alone

DIRECTIONS = 16
"""s: k is known to a few tenths then, and enters by n_e + k. Of fewer columns there are as many
directions as these."""

NEARER = 0.1
"""1 - a / b, at the least. Of inputs that experts share it was .28 and more, of hidden units in
orders of their own .03 and less."""


@dataclass
class _Own:
    """What is summed up of one expert.

    count    rows x
    product  sum of x x^T Z, (n, s)
    length   sum of |x|^2
    """

    count: int
    product: Tensor
    length: Tensor


@dataclass
class Spread:
    """Sums over the rows of each expert of a stack.

    scales   what columns are multiplied by, (n,)
    squares  sum of |x x^T Z|^2 over all rows
    """

    scales: Tensor
    experts: dict[str, _Own] = field(default_factory=dict)
    squares: float = 0.0

    def __post_init__(self) -> None:
        n, draws = len(self.scales), torch.Generator("cpu").manual_seed(0)
        drawn = torch.eye(n, dtype=torch.float32, device="cpu")
        if n > DIRECTIONS:
            shape = (n, DIRECTIONS)
            drawn = torch.randn(shape, generator=draws, dtype=torch.float32, device="cpu")
        self._directions = drawn.to(self.scales.device)

    def count_of(self, expert: str) -> int:
        """Rows so far."""
        return self.experts[expert].count if expert in self.experts else 0

    def add(self, expert: str, rows: Tensor) -> None:
        """Rows (N, n) of one of them, in float32 or float64."""
        rows = rows * self.scales.to(rows.dtype)
        seen = rows @ self._directions.to(rows.dtype)  # (N, s)
        product = (rows.T @ seen).to(torch.float64)  # (n, s)
        lengths, told = (
            torch.linalg.vector_norm(t, dim=1).to(torch.float64).square() for t in (rows, seen)
        )
        self.squares += float((lengths * told).sum())
        if expert not in self.experts:
            self.experts[expert] = _Own(0, torch.zeros_like(product), lengths.new_zeros(()))
        own = self.experts[expert]
        own.count += len(rows)
        own.product += product
        own.length += lengths.sum()

    def over(self, group: Alone, names: Sequence[str]) -> None:
        """Take what this one of every rank has seen of these experts."""
        blank = self._directions.to(torch.float64)
        for name in names:
            if name not in self.experts:
                self.experts[name] = _Own(0, torch.zeros_like(blank), blank.new_zeros(()))
        found = [self.experts[name] for name in names]
        group.total([t for own in found for t in (own.product, own.length)])
        *counts, self.squares = group.totals([*(own.count for own in found), self.squares])
        for name, own, count in zip(names, found, counts, strict=True):
            own.count = int(count)
            if not own.count:
                del self.experts[name]

    def credit(self) -> float:
        """k; infinite where experts differ by no more than their few rows make them, and zero where
        what they have in common does not serve."""
        seen = [own for own in self.experts.values() if own.count]
        total, experts = sum(own.count for own in seen), len(seen)
        if experts < 2 or total <= experts:
            return 0.0
        directions = self._directions.to(torch.float64)
        whole = torch.zeros_like(seen[0].product)
        own_energy = apart = 0.0
        for own in seen:
            whole += own.product
            own_energy += float(own.product.square().sum()) / own.count
            plain = own.length / len(directions) * directions
            apart += float((own.product - plain).square().sum()) / own.count
        within = max(0.0, self.squares - own_energy) / (total - experts)
        even = sum(own.count**2 for own in seen) / total
        differ = own_energy - float(whole.square().sum()) / total - (experts - 1) * within
        differ /= total - even
        apart = (apart - experts * within) / total
        if not differ < (1 - NEARER) * apart:
            return 0.0
        return within / differ if differ > 0 else float("inf")
