"""Counting what a path does: the calls, their FLOPs and the bytes that they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tensorlrf_kernels.lowrank_linear.launch import MOST_DECODE_ROWS, pad

ROWS_OF_A_PROGRAM = 64  # of the kernel for many rows
# Output channels that the libraries compute together: groups with fewer leave lanes idle. Of the
# rate at 16 channels a group a CPU with AVX-512 reaches 75% at 8, 36% at 4, 10% at 2.
GROUP_TILE = 16


class Step(NamedTuple):
    """One library call, or one launch of a kernel of ours.

    Parameters
    ----------
    kind : str
        "matmul", "conv" (kernel of more than one element), "depthwise", "merge" (an elementwise
        product of factors; its multiplications are not counted as FLOPs), "gather" (rows of a
        matrix by their index), "fused" (products chained on chip), or "fused_few" (the same for few
        rows, with a grid barrier between the products).
    flops : int
        2 x multiply-adds.
    bytes : int
        Inputs and weights read once, outputs written once.
    padding : float
        How many times as many FLOPs are executed, since a tile's width is a power of two.
    programs : int
        How many blocks of work there are; 0 where they always fill the device.
    """

    kind: str
    flops: int
    bytes: int
    padding: float = 1.0
    programs: int = 0


@dataclass(frozen=True)
class Cost:
    """The calls of one path, in order.

    Parameters
    ----------
    steps : tuple of Step

    Examples
    --------
    >>> step = tensorlrf.ops.Step("matmul", flops=200, bytes=80)
    >>> cost = tensorlrf.ops.Cost((step, step))
    >>> cost.flops, cost.bytes, cost.launches
    (400, 160, 2)
    """

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


class Counter:
    """Collects steps, and stands at a place: that of the stage that counts.

    places  the rows of a layer; of a convolution batch x size at each stage of its axes
    dtype   in which sizes are counted as bytes
    """

    def __init__(self, places: Sequence[int], dtype: torch.dtype) -> None:
        self.places, self.dtype, self.itemsize = places, dtype, dtype.itemsize
        self.place = 0
        self.steps: list[Step] = []

    @property
    def rows(self) -> int:
        """Rows, or batch x positions, at this place."""
        return self.places[self.place]

    def slide(self, axes: int) -> int:
        """Go on to where the taps of so many more axes have been applied; the rows there."""
        self.place += axes
        return self.rows

    def cost(self) -> Cost:
        return Cost(tuple(self.steps))

    def _add(self, kind: str, multiply_adds: int, elements: int) -> None:
        self.steps.append(Step(kind, 2 * multiply_adds, elements * self.itemsize))

    def matmul(self, rows: int, n: int, m: int) -> None:
        """(rows, n) times (n, m)."""
        self._add("matmul", rows * n * m, rows * n + n * m + rows * m)

    def products(self, batch: int, rows: int, n: int, m: int) -> None:
        """`batch` products of (rows, n) and (n, m) in one call."""
        self._add("matmul", batch * rows * n * m, batch * (rows * n + n * m + rows * m))

    def kernel(
        self,
        multiply_adds: int,
        elements: int,
        padding: float = 1.0,
        programs: int = 0,
        *,
        few: bool = False,
    ) -> None:
        """One launch of ours: what it multiplies, and the numbers that it reads and writes. With
        `few` rows its products wait for each other."""
        kind, size = "fused_few" if few else "fused", elements * self.itemsize
        self.steps.append(Step(kind, 2 * multiply_adds, size, padding, programs))

    def fused(self, rows: int, n: int, rank: int, m: int) -> None:
        """(rows, n) times (n, rank) times (rank, m) in one kernel."""
        flops, elements = 2 * rows * rank * (n + m), rows * n + rank * (n + m) + rows * m
        padding, few = pad(rank) / rank, rows <= MOST_DECODE_ROWS
        kind, programs = ("fused_few", 0) if few else ("fused", -(-rows // ROWS_OF_A_PROGRAM))
        step = Step(kind, flops, elements * self.itemsize, 1.0 if few else padding, programs)
        self.steps.append(step)

    def fused_conv(self, read: int, written: int, n: int, rank: int, m: int, each: int) -> None:
        """n channels at `read` positions to `rank`, with `each` multiply-adds a rank and `written`
        position, and on to m channels, in one kernel; with m = 0 the ranks are what is written."""
        elements = read * n + rank * (each + m) + written * (m or rank)
        programs = -(-written // ROWS_OF_A_PROGRAM)
        self.kernel(written * rank * (each + m), elements, pad(rank) / rank, programs)

    def conv(
        self,
        read: int,
        written: int,
        n: int,
        m: int,
        taps: int,
        groups: int = 1,
        *,
        adjoint: bool = False,
    ) -> None:
        """n channels of each group at `read` positions to m channels at `written` positions.

        The `adjoint`, a transposed convolution, costs what that one does which it is the adjoint
        of.
        """
        if adjoint:
            read, written, n, m = written, read, m, n
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

    def depthwise(
        self, read: int, written: int, channels: int, taps: int, *, adjoint: bool = False
    ) -> None:
        """One filter a channel; the `adjoint` as of `conv`."""
        if adjoint:
            read, written = written, read
        elements = (read + taps + written) * channels
        self._add("depthwise", written * channels * taps, elements)

    def work(self, multiply_adds: int, elements: int) -> None:
        """A product of factors alone: a matrix product, or with no multiply-adds an elementwise
        one of `elements` elements."""
        if multiply_adds:
            self._add("matmul", multiply_adds, elements)
        else:
            self.merge(elements)

    def merge(self, elements: int) -> None:
        """An elementwise product of factors of `elements` elements."""
        self._add("merge", 0, 2 * elements)

    def gather(self, rows: int, width: int) -> None:
        """`rows` rows of `width` elements, by an index of 8 bytes each."""
        self.steps.append(Step("gather", 0, rows * (8 + 2 * width * self.itemsize)))

    def fused_gather(self, rows: int, gathered: int, weights: int, flops: int, m: int) -> None:
        """`gathered` elements found by `rows` indices, multiplied into (rows, m) in one kernel that
        reads `weights` more."""
        elements = gathered + weights + rows * m
        self.steps.append(Step("fused", flops, rows * 8 + elements * self.itemsize))
