"""A ring: the cores of the columns take x in, one product each, and those of the rows give y; or
both sides merged into one matrix each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.factors import TRFactors
from tensorlrf.factors.algebra import chain_product
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._form import Form, Terms, no_network
from tensorlrf.ops.forms.stages import Paths, Stage

Cores = tuple[Tensor, ...]


class TRForm(Form[TRFactors]):
    """Round the ring from the columns to the rows."""

    def linear(self, f: TRFactors) -> Paths:
        assert f.splits is not None
        out, into = f.cores[: f.splits[0]], f.cores[f.splits[0] :]
        first = chain_product(into).transpose(1, 2).flatten(0, 1)  # (r_p r_0, n)
        last = chain_product(out).permute(1, 2, 0).flatten(1)  # (m, r_p r_0)
        return {"chain": (Take(into), Give(out)), "fold": (Side(first), Side(last))}

    def network(self, f: TRFactors, modes: str, fresh: Iterator[str]) -> Terms:
        if len(f.cores) != len(modes):
            raise no_network(f)
        bonds = [next(fresh) for _ in f.cores]
        bonds.append(bonds[0])
        return [
            (bonds[k] + mode + bonds[k + 1], core)
            for k, (mode, core) in enumerate(zip(modes, f.cores, strict=True))
        ]


@dataclass(frozen=True, eq=False)
class Side(Stage):
    """x @ side^T, for one side of the ring as a matrix (m, n)."""

    side: Tensor

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        return F.linear(x, self.side)

    def count(self, counter: Counter) -> None:
        m, n = self.side.shape
        counter.matmul(counter.rows, n, m)


@dataclass(frozen=True, eq=False)
class Take(Stage):
    """(..., n) to (..., r_p, r_0). The state is (..., r_p, r_k n_k, rest)."""

    cores: Cores

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        start, *others = self.cores
        rest = math.prod([core.shape[1] for core in others])
        r, n, after = start.shape
        t = torch.unflatten(x, -1, (n, rest))
        t = torch.matmul(start.transpose(1, 2).flatten(0, 1), t)
        t = torch.unflatten(t, -2, (r, after))  # (..., r_p, r', rest)
        for core in others:
            rest //= core.shape[1]
            t = torch.unflatten(t, -1, (core.shape[1], rest)).flatten(-3, -2)
            t = torch.matmul(core.permute(2, 0, 1).flatten(1), t)
        return t.squeeze(-1)

    def count(self, counter: Counter) -> None:
        rows, first = counter.rows, self.cores[0].shape[0]
        rest = math.prod([core.shape[1] for core in self.cores])
        for k, core in enumerate(self.cores):
            r, n, after = core.shape
            rest //= n
            if k == 0:
                counter.products(rows, r * after, n, rest)
            else:
                counter.products(rows * first, after, r * n, rest)


@dataclass(frozen=True, eq=False)
class Give(Stage):
    """(..., r_p, r_0) to (..., m). The state is (..., r_p, m_0 .. m_{k-1}, r_k)."""

    cores: Cores

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        *others, end = self.cores
        t = x.unsqueeze(-2)
        for core in others:
            t = F.linear(t, core.flatten(1).T)
            t = torch.unflatten(t, -1, (core.shape[1], core.shape[2])).flatten(-3, -2)
        weight = end.permute(1, 2, 0).flatten(1)  # (m, r_p r)
        return F.linear(t.transpose(-3, -2).flatten(-2), weight).flatten(-2)

    def count(self, counter: Counter) -> None:
        *others, end = self.cores
        rows, first, done = counter.rows, end.shape[2], 1
        for core in others:
            r, m, after = core.shape
            counter.matmul(rows * first * done, r, m * after)
            done *= m
        counter.matmul(rows * done, first * end.shape[0], end.shape[1])
