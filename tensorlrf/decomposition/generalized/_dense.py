"""The loss of a CP model over all entries of a tensor, and its gradient: the derivatives of all
entries, times Khatri-Rao products (MTTKRP; Hong, Kolda & Duersch 2020, theorem 3).

The modes are cut in two groups, and the tensor is a matrix (P, Q). A block of its rows at a time,
the model is made, then the derivatives in its place, and these are contracted with both groups
while they are in the cache: they never exist as a whole. Two contractions serve all modes, which
are told apart within their group (the dimension tree of Phan, Tichavsky & Cichocki 2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tensorlrf.decomposition.generalized._entries import total
from tensorlrf.decomposition.generalized._loss import KnownLoss, Loss, Part
from tensorlrf.decomposition.generalized._stack import apart, contract_others
from tensorlrf.factors.algebra import khatri_rao
from tensorlrf_kernels.mttkrp import contract_modes, kernel_wins

BLOCK = 1 << 16
"""Entries of a block on a CPU, of which a few buffers stay in the cache of a core."""

BLOCK_ON_DEVICE = 1 << 26


class Objective(Protocol):
    """What is minimised over factors, one below the other (sum n_k, r) in float64."""

    def __call__(self, stack: Tensor) -> tuple[float, Tensor]:
        """The loss, and its gradient of the shape of the stack."""


class Rows(Protocol):
    """A tensor of which some rows at a time are in memory, as a matrix (P, Q) of modes cut in two.

    shape  of the tensor
    cut    how many of its modes are the rows
    dtype, device  of the entries
    """

    shape: tuple[int, ...]
    cut: int
    dtype: torch.dtype
    device: torch.device

    def entries(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Of these rows the entries, and their weights or None where all count alike."""


def cut_of(shape: Sequence[int]) -> int:
    """How many leading modes are the rows of a matrix that is nearest to a square."""

    def width(cut: int) -> int:
        return math.prod(shape[:cut]) + math.prod(shape[cut:])

    return min(range(1, len(shape)), key=width)


class DenseRows:
    """Of a tensor in memory."""

    def __init__(self, data: Tensor, weights: Tensor | None = None) -> None:
        self.shape, self.cut = tuple(data.shape), cut_of(data.shape)
        self.dtype, self.device = data.dtype, data.device
        rows = math.prod(self.shape[: self.cut])
        self._data = data.reshape(rows, -1)
        self._weights = None if weights is None else weights.reshape(rows, -1)

    def entries(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        weights = None if self._weights is None else self._weights[start:stop]
        return self._data[start:stop], weights


class DenseObjective:
    """Over all entries, in their dtype; sums of blocks are added in float64.

    base  whether the loss of a model whose data are zero is left to its factors
    """

    def __init__(self, rows: Rows, loss: Loss, base: bool) -> None:
        self.rows, self.loss = rows, loss
        self.base = base and isinstance(loss, KnownLoss) and loss.base == "linear"
        self.p = math.prod(rows.shape[: rows.cut])
        self.q = math.prod(rows.shape[rows.cut :])
        if rows.device.type == "cpu":
            self.step = max(1, BLOCK // self.q)
        else:  # whole slices of the first mode, as the kernel takes them
            slice_ = self.p // rows.shape[0]
            self.step = slice_ * max(1, BLOCK_ON_DEVICE // (self.q * slice_))
        self.step = min(self.step, self.p)

    def __call__(self, stack: Tensor) -> tuple[float, Tensor]:
        rows = self.rows
        factors = apart(stack.to(rows.dtype), rows.shape)
        front, back = factors[: rows.cut], factors[rows.cut :]
        left, right = khatri_rao(front), khatri_rao(back)  # (P, r), (Q, r)
        of_left, of_right = torch.empty_like(left), torch.zeros_like(right)
        summed = torch.zeros((), dtype=torch.float64, device=stack.device)
        model = left.new_empty(self.step, self.q)
        spare = torch.empty_like(model)
        turned = right.T
        for start in range(0, self.p, self.step):
            own = left[start : start + self.step]
            made = torch.mm(own, turned, out=model[: len(own)])
            value, slope = self._part(start, made, spare[: len(own)])
            summed += value
            if self._by_kernel(slope, back):
                grid = slope.view(-1, *rows.shape[1:])
                first = start * rows.shape[0] // self.p
                some = [front[0][first : first + len(grid)], *front[1:]]
                modes = range(len(rows.shape))
                of_left[start : start + len(own)] = contract_modes(grid, back, modes[rows.cut :])
                of_right += contract_modes(grid, some, modes[: rows.cut])
            else:
                torch.mm(slope, right, out=of_left[start : start + len(own)])
                of_right.addmm_(slope.T, own)
        gradient = torch.cat([*contract_others(of_left, front), *contract_others(of_right, back)])
        if not self.base:
            return float(summed), gradient.double()
        value, more = linear_base(apart(stack, rows.shape))
        return float(summed + value), more.add_(gradient)

    def _part(self, start: int, model: Tensor, spare: Tensor) -> Part:
        x, weights = self.rows.entries(start, start + len(model))
        if self.base and isinstance(self.loss, KnownLoss) and self.loss.beyond is not None:
            return self.loss.beyond(x, model, spare)
        return total(self.loss, x, model, weights, spare)

    def _by_kernel(self, slope: Tensor, back: Sequence[Tensor]) -> bool:
        """Whether the kernel takes Khatri-Rao products in its registers, on a device."""
        if slope.device.type == "cpu":
            return False
        shape = self.rows.shape
        modes = range(self.rows.cut, len(shape))
        return kernel_wins(slope.view(-1, *shape[1:]), modes, back[0].shape[1])


def linear_base(factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of all entries of the model, and its gradient (sum n_k, r)."""
    sums = torch.stack([f.sum(0) for f in factors])  # (N, r)
    every, apart_from = products(sums)
    rows = [c.expand_as(f) for c, f in zip(apart_from, factors, strict=True)]
    return every.sum(), torch.cat(rows)


def quadratic_base(factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of their squares, and its gradient."""
    grams = torch.stack([f.T @ f for f in factors])  # (N, r, r)
    every, apart_from = products(grams)
    rows = [2 * f @ g for g, f in zip(apart_from, factors, strict=True)]
    return every.sum(), torch.cat(rows)


def products(parts: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Of (N, ...) the product of all, and for each that of all others."""
    order = len(parts)
    apart_from = [torch.cat([parts[:k], parts[k + 1 :]]).prod(0) for k in range(order)]
    return apart_from[0] * parts[0], apart_from
