"""What a path costs: FLOPs, bytes moved and launches. The one place where they are counted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tensorlrf.factors import CPFactors, Factors, Grouped, LowRank, TuckerFactors
from tensorlrf.ops._check import check_path
from tensorlrf.ops._conv import conv_paths
from tensorlrf.ops._geometry import (
    Axes,
    IntOrAxes,
    PaddingArgument,
    output_sizes,
    per_axis,
    resolve_padding,
)
from tensorlrf.ops._linear import LINEAR_PATHS, linear_paths
from tensorlrf_kernels._chip import H200
from tensorlrf_kernels._launch import Problem
from tensorlrf_kernels.lowrank_linear.launch import MOST_DECODE_ROWS, pad
from tensorlrf_kernels.lowrank_linear.launch import forward as lowrank_linear_launch

ROWS_OF_A_PROGRAM = 64  # of the kernel for many rows
# Output channels that the libraries compute together: groups with fewer leave lanes idle. Of the
# rate at 16 channels a group a CPU with AVX-512 reaches 75% at 8, 36% at 4, 10% at 2.
GROUP_TILE = 16


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


class Positions(tuple[int, ...]):
    """Where a convolution is evaluated: batch x size at each stage of its axes, first to last.

    Entry k is after the taps of the first k axes alone: entry 0 is the input, the last one the
    output, and of a two-dimensional one the entry between is after the vertical taps.
    """

    __slots__ = ()

    @property
    def input(self) -> int:
        """What a pointwise convolution before the kernel sees."""
        return self[0]

    @property
    def vertical(self) -> int:
        """After the taps of the first axis alone."""
        return self[1]

    @property
    def output(self) -> int:
        """The rows M of the layer."""
        return self[-1]

    @classmethod
    def of(
        cls,
        size: Iterable[int],
        kernel: Axes,
        stride: IntOrAxes = 1,
        padding: PaddingArgument = 0,
        dilation: IntOrAxes = 1,
    ) -> Positions:
        """For an input of `size` (batch, height, width), or (batch, length), or (batch, depth,
        height, width); the other arguments as in `conv2d`."""
        batch, *lengths = size
        n_axes = len(kernel)
        strides, dilations = (
            per_axis("stride", stride, 1, n_axes),
            per_axis("dilation", dilation, 1, n_axes),
        )
        zeros = resolve_padding(padding, kernel, strides, dilations)
        # The zeros that the two sides do not share are there before the first stage.
        read = [
            n + more - 2 * shared
            for n, more, shared in zip(lengths, zeros.total, zeros.shared, strict=True)
        ]
        written = output_sizes(tuple(lengths), kernel, strides, zeros.total, dilations)
        return cls(batch * math.prod(written[:k]) * math.prod(read[k:]) for k in range(n_axes + 1))

    @classmethod
    def from_rows(cls, rows: int, stride: Axes) -> Positions:
        """Estimated from the rows M alone: as many input positions as strides skip."""
        stages = [rows]
        for s in reversed(stride):
            stages.append(stages[-1] * s)
        return cls(reversed(stages))


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


def conv_cost(factors: Factors, path: str, positions: Positions, *, rebuild: bool = True) -> Cost:
    """Cost of `ops.conv1d`, `conv2d` or `conv3d` by `path` at `positions`, of one axis fewer than
    these have entries; meta tensors serve as factors.

    `rebuild=False` leaves out what "dense" spends on rebuilding the kernel.
    """
    check_path(path, conv_paths(factors, len(positions) - 1))
    counter = _Counter(factors.dtype.itemsize)
    groups, one = 1, factors
    if isinstance(factors, Grouped):
        groups, one = factors.groups, factors.group(0)
    O, I, *kernel = one.shape
    taps = math.prod(kernel)
    if path == "dense":
        if rebuild:
            counter.to_dense(factors)
        counter.conv(positions.input, positions.output, I, O, taps, groups)
    elif isinstance(one, CPFactors):
        _cp_conv_cost(counter, one, path, positions, groups)
    elif isinstance(one, LowRank):
        counter.conv(positions.input, positions.output, I, one.rank, taps, groups)
        counter.pointwise(positions.output, one.rank, O, groups)
    else:
        assert isinstance(one, TuckerFactors)
        r_out, r_in = one.core.shape[:2]
        size = list(one.core.shape)
        for k in one.modes:
            if k >= 2:
                size[k] = one.shape[k]
                others = groups * math.prod(size) // size[k]
                counter.matmul(others, one.core.shape[k], size[k])
        if 1 in one.modes:
            counter.pointwise(positions.input, I, r_in, groups)
        counter.conv(positions.input, positions.output, r_in, r_out, taps, groups)
        if 0 in one.modes:
            counter.pointwise(positions.output, r_out, O, groups)
    return counter.cost()


conv2d_cost = conv_cost


def _cp_conv_cost(
    counter: _Counter, one: CPFactors, path: str, positions: Positions, groups: int
) -> None:
    O, I, *kernel = one.shape
    r = one.rank
    if path == "fold":
        kh, kw = kernel
        counter.merge(I * r * kh)
        counter.merge(O * r * kw)
        counter.conv(positions.input, positions.vertical, I, r, kh)
        counter.conv(positions.vertical, positions.output, r, O, kw)
        return
    counter.merge(math.prod(kernel if path == "fold_depthwise" else kernel[:1]) * groups * r)
    counter.pointwise(positions.input, I, r, groups)
    if path == "fold_depthwise":
        counter.depthwise(positions.input, positions.output, r, math.prod(kernel))
    else:
        for k, taps in enumerate(kernel):
            counter.depthwise(positions[k], positions[k + 1], groups * r, taps)
    counter.pointwise(positions.output, r, O, groups)


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

    def conv(self, read: int, written: int, n: int, m: int, taps: int, groups: int = 1) -> None:
        """n channels of each group at `read` positions to m channels at `written` positions."""
        if taps == 1 and read == written and groups == 1:
            self.matmul(written, n, m)
            return
        elements = groups * (read * n + n * m * taps + written * m)
        flops = 2 * groups * written * n * m * taps
        padding = 1.0 if groups == 1 else -(-m // GROUP_TILE) * GROUP_TILE / m
        self.steps.append(Step("conv", flops, elements * self.itemsize, padding))

    def pointwise(self, rows: int, n: int, m: int, groups: int) -> None:
        """A 1 x 1 convolution: a matrix product where there is one group."""
        if groups == 1:
            self.matmul(rows, n, m)
        else:
            self.conv(rows, rows, n, m, 1, groups)

    def depthwise(self, read: int, written: int, channels: int, taps: int) -> None:
        """One filter a channel."""
        elements = (read + taps + written) * channels
        self._add("depthwise", written * channels * taps, elements)

    def merge(self, elements: int) -> None:
        """An elementwise product of factors of `elements` elements."""
        self._add("merge", 0, 2 * elements)

    def to_dense(self, factors: Factors) -> None:
        """`dense_weight(factors)`."""
        if isinstance(factors, Grouped):
            for k in range(factors.groups):
                self.to_dense(factors.group(k))
        elif isinstance(factors, LowRank):
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
