"""What a path costs: FLOPs, bytes moved and launches. The one place where they are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.ops._check import check_path
from tensorlrf.ops._conv2d import conv2d_paths
from tensorlrf.ops._geometry import Pair, output_size, pair, resolve_padding
from tensorlrf.ops._linear import LINEAR_PATHS, linear_paths
from tensorlrf_kernels._chip import H200
from tensorlrf_kernels._launch import Problem
from tensorlrf_kernels.lowrank_linear.launch import MOST_DECODE_ROWS, pad
from tensorlrf_kernels.lowrank_linear.launch import forward as lowrank_linear_launch

ROWS_OF_A_PROGRAM = 64  # of the kernel for many rows


class Step(NamedTuple):
    """One library call, or one launch of a kernel of ours.

    kind      "matmul", "conv" (kernel of more than one element), "depthwise", "merge" (an
              elementwise product of factors; its multiplications are not counted as FLOPs),
              "fused" (products chained on chip), or "fused_few" (the same for few rows, with a
              grid barrier between the products)
    flops     2 x multiply-adds
    bytes     inputs and weights read once, outputs written once
    padding   how many times as many FLOPs are executed, since a tile's width is a power of two
    programs  how many blocks of work there are; 0 where they always fill the device
    """

    kind: str
    flops: int
    bytes: int
    padding: float = 1.0
    programs: int = 0


@dataclass(frozen=True)
class Cost:
    """The calls of one path, in order."""

    steps: tuple[Step, ...]

    @property
    def flops(self) -> int:
        """2 x multiply-adds of all matrix products and convolutions."""
        return sum(step.flops for step in self.steps)

    @property
    def bytes(self) -> int:
        """Bytes read and written, each tensor of each call once."""
        return sum(step.bytes for step in self.steps)

    @property
    def launches(self) -> int:
        """Library calls; on a GPU at least one kernel launch each."""
        return len(self.steps)

    def __str__(self) -> str:
        return f"{self.flops:,} FLOPs, {self.bytes:,} bytes, {self.launches} launches"


class Positions(NamedTuple):
    """Where a convolution is evaluated: batch x height x width at three stages."""

    input: int  # what a 1 x 1 convolution before the kernel sees
    vertical: int  # after the vertical taps alone
    output: int  # the rows M of the layer

    @classmethod
    def of(
        cls,
        size: Sequence[int],
        kernel: Pair,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
    ) -> Positions:
        """For an input of `size` (batch, height, width); the other arguments as in `conv2d`."""
        batch, height, width = size
        stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
        zeros = resolve_padding(padding, kernel, stride, dilation)
        padded = (height + zeros.excess[0], width + zeros.excess[1])
        rows, columns = (
            output_size(padded[k], kernel[k], stride[k], 2 * zeros.each_side[k], dilation[k])
            for k in (0, 1)
        )
        return cls(batch * padded[0] * padded[1], batch * rows * padded[1], batch * rows * columns)

    @classmethod
    def from_rows(cls, rows: int, stride: Pair) -> Positions:
        """Estimated from the rows M alone: as many input positions as strides skip."""
        return cls(rows * stride[0] * stride[1], rows * stride[1], rows)


def linear_cost(factors: Factors, path: str, rows: int, *, rebuild: bool = True) -> Cost:
    """Cost of `ops.linear` by `path` on `rows` rows; meta tensors serve as factors.

    `rebuild=False` leaves out what "dense" spends on rebuilding the weight, as in a layer that
    keeps it. "fused" is counted as on a GPU, wherever the factors are.
    """
    check_path(path, LINEAR_PATHS)
    linear_paths(factors)  # refuses what is no linear layer
    counter = _Counter(factors.dtype.itemsize)
    m, n = factors.shape
    if path == "fused" and _runs_fused(factors, rows):
        if isinstance(factors, CPFactors):
            counter.merge(n * _fused_rank(factors))
        elif isinstance(factors, TuckerFactors) and len(factors.modes) == 2:
            r_out, r_in = factors.core.shape
            counter.matmul(r_in, r_out, m if r_in <= r_out else n)
        counter.fused(rows, n, _fused_rank(factors), m)
    elif path == "dense":
        if rebuild:
            counter.to_dense(factors)
        counter.matmul(rows, n, m)
    elif isinstance(factors, TuckerFactors):
        r_out, r_in = factors.core.shape
        if 1 in factors.modes:
            counter.matmul(rows, n, r_in)
        counter.matmul(rows, r_in, r_out)
        if 0 in factors.modes:
            counter.matmul(rows, r_out, m)
    else:
        rank = factors.rank
        assert isinstance(rank, int)
        if isinstance(factors, CPFactors):
            counter.merge(n * rank)
        counter.matmul(rows, n, rank)
        counter.matmul(rows, rank, m)
    return counter.cost()


def _fused_rank(factors: Factors) -> int:
    """The rank between the two matrices that the kernel multiplies by."""
    rank = factors.rank
    return rank if isinstance(rank, int) else min(rank, default=0)


def _runs_fused(factors: Factors, rows: int) -> bool:
    """Whether the path "fused" runs the kernel; where it does not, it is the chain."""
    m, n = factors.shape
    problem = Problem(rows, m, n, _fused_rank(factors), factors.dtype)
    return lowrank_linear_launch(problem, H200) is not None


def conv2d_cost(factors: Factors, path: str, positions: Positions, *, rebuild: bool = True) -> Cost:
    """Cost of `ops.conv2d` by `path` at `positions`; meta tensors serve as factors.

    `rebuild=False` leaves out what "dense" spends on rebuilding the kernel.
    """
    check_path(path, conv2d_paths(factors))
    counter = _Counter(factors.dtype.itemsize)
    O, I, kh, kw = factors.shape
    if path == "dense":
        if rebuild:
            counter.to_dense(factors)
        counter.conv(positions.input, positions.output, I, O, kh * kw)
    elif isinstance(factors, CPFactors):
        _cp_conv2d_cost(counter, factors, path, positions)
    elif isinstance(factors, LowRank):
        counter.conv(positions.input, positions.output, I, factors.rank, kh * kw)
        counter.matmul(positions.output, factors.rank, O)
    else:
        assert isinstance(factors, TuckerFactors)
        r_out, r_in = factors.core.shape[:2]
        size = list(factors.core.shape)
        for k in (2, 3):
            if k in factors.modes:
                size[k] = factors.shape[k]
                counter.matmul(math.prod(size) // size[k], factors.core.shape[k], size[k])
        if 1 in factors.modes:
            counter.matmul(positions.input, I, r_in)
        counter.conv(positions.input, positions.output, r_in, r_out, kh * kw)
        if 0 in factors.modes:
            counter.matmul(positions.output, r_out, O)
    return counter.cost()


def _cp_conv2d_cost(counter: _Counter, factors: CPFactors, path: str, positions: Positions) -> None:
    O, I, kh, kw = factors.shape
    r = factors.rank
    if path == "fold":
        counter.merge(I * r * kh)
        counter.merge(O * r * kw)
        counter.conv(positions.input, positions.vertical, I, r, kh)
        counter.conv(positions.vertical, positions.output, r, O, kw)
        return
    counter.merge(kh * kw * r if path == "fold_depthwise" else kh * r)
    counter.matmul(positions.input, I, r)
    if path == "fold_depthwise":
        counter.depthwise(positions.input, positions.output, r, kh * kw)
    else:
        counter.depthwise(positions.input, positions.vertical, r, kh)
        counter.depthwise(positions.vertical, positions.output, r, kw)
    counter.matmul(positions.output, r, O)


class _Counter:
    """Collects steps; sizes are in elements of `itemsize` bytes."""

    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize
        self.steps: list[Step] = []

    def cost(self) -> Cost:
        return Cost(tuple(self.steps))

    def _add(self, kind: str, multiply_adds: int, elements: int) -> None:
        self.steps.append(Step(kind, 2 * multiply_adds, elements * self.itemsize))

    def matmul(self, rows: int, n: int, m: int) -> None:
        """(rows, n) times (n, m)."""
        self._add("matmul", rows * n * m, rows * n + n * m + rows * m)

    def fused(self, rows: int, n: int, rank: int, m: int) -> None:
        """(rows, n) times (n, rank) times (rank, m) in one kernel."""
        flops, elements = 2 * rows * rank * (n + m), rows * n + rank * (n + m) + rows * m
        padding, few = pad(rank) / rank, rows <= MOST_DECODE_ROWS
        kind, programs = ("fused_few", 0) if few else ("fused", -(-rows // ROWS_OF_A_PROGRAM))
        step = Step(kind, flops, elements * self.itemsize, 1.0 if few else padding, programs)
        self.steps.append(step)

    def conv(self, read: int, written: int, n: int, m: int, taps: int) -> None:
        """n channels at `read` positions to m channels at `written` positions."""
        if taps == 1 and read == written:
            self.matmul(written, n, m)
            return
        elements = read * n + n * m * taps + written * m
        self._add("conv", written * n * m * taps, elements)

    def depthwise(self, read: int, written: int, channels: int, taps: int) -> None:
        """One filter a channel."""
        elements = (read + taps + written) * channels
        self._add("depthwise", written * channels * taps, elements)

    def merge(self, elements: int) -> None:
        """An elementwise product of factors of `elements` elements."""
        self._add("merge", 0, 2 * elements)

    def to_dense(self, factors: Factors) -> None:
        """`dense_weight(factors)`."""
        if isinstance(factors, LowRank):
            self.matmul(factors.left.shape[0], factors.rank, factors.right.shape[1])
        elif isinstance(factors, CPFactors):
            others = math.prod(factors.shape[1:])
            self.merge(others * factors.rank)
            self.matmul(factors.shape[0], factors.rank, others)
        elif isinstance(factors, TuckerFactors):
            size = list(factors.core.shape)
            for k, f in zip(reversed(factors.modes), reversed(factors.factors), strict=True):
                size[k] = int(f.shape[0])
                self.matmul(math.prod(size[:k] + size[k + 1 :]), int(f.shape[1]), size[k])
