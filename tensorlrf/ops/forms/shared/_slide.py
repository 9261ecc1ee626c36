"""What is done to an image: the stages of convolutions.

x is (B, channels, *size). Of g groups every weight is a stack, (g, ...), and each stage is one
convolution with groups. The intermediates are linear in x, so zeros may wait for the axis that they
belong to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.ops._counter import Counter
from tensorlrf.ops.forms._symbol import leaf
from tensorlrf.ops.forms.stages import Library, Stage, Stages, count, run_within
from tensorlrf.ops.geometry import CONVOLUTION, Geometry, Sliding, TransposedGeometry
from tensorlrf_kernels.pointwise import pointwise as in_two_axes


@dataclass(frozen=True)
class Conv:
    """A convolution: what its factors stand for, and how it slides. Its methods make stages.

    Parameters
    ----------
    shape : tuple of int
        Of the kernel, (O, I, ...): all output channels, the input channels of a group.
    groups : int
        The number of groups g; the factors of more than one are stacks.
    geometry : Geometry or TransposedGeometry
        Stride, padding and dilation along every axis.
    """

    shape: tuple[int, ...]
    groups: int
    geometry: Sliding

    @classmethod
    def resting(cls, shape: tuple[int, ...], groups: int, *, transposed: bool = False) -> Conv:
        """One that does not stride, pad or dilate."""
        ones = (1,) * (len(shape) - 2)
        zeros = tuple(0 for _ in ones)
        if transposed:
            return cls(shape, groups, TransposedGeometry(ones, zeros, zeros, ones))
        return cls(shape, groups, Geometry(ones, zeros, ones))

    @property
    def fuses(self) -> bool:
        """Whether kernels of ours serve: in two axes, without groups, not transposed."""
        return self.axes == 2 and self.groups == 1 and not self.geometry.transposed

    @property
    def axes(self) -> int:
        """How many axes it slides along."""
        return len(self.shape) - 2

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of the kernel along them."""
        return self.shape[2:]

    def pointwise(self, matrix: Tensor, *, inner: bool = False) -> Pointwise:
        """Of a matrix (m, n), or a stack (g, m, n)."""
        return Pointwise(matrix, self.axes, self.groups, inner)

    def taps(self, kernel: Tensor, axes: range | None = None, *, made: bool = False) -> Taps:
        """A kernel `(g m, n, *k)` that slides along `axes`, all of them by default.

        With `made` it is made in the call, and not a tensor that is kept.
        """
        axes = range(self.axes) if axes is None else axes
        return Taps(kernel, self.groups, axes, self.geometry.along(axes), made)

    def depthwise(self, kernel: Tensor, axes: range | None = None) -> Depthwise:
        """Likewise of one filter a channel, `(channels, 1, *k)`."""
        axes = range(self.axes) if axes is None else axes
        channels = int(kernel.shape[0])
        return Depthwise(kernel, channels, axes, self.geometry.along(axes))

    def line(self, size: int, axis: int) -> list[int]:
        """The sizes of a kernel along one axis, 1 x .. x size x .. x 1."""
        return [size if k == axis else 1 for k in range(self.axes)]


@dataclass(frozen=True, eq=False)
class Taps(Stage):
    """A convolution along some axes, its kernel one wide along the others.

    Parameters
    ----------
    kernel : Tensor of shape (g m, n, ...)
    groups : int
    axes : range
        Those it slides along.
    geometry : Geometry or TransposedGeometry
        Stride, padding and dilation along every axis.
    made : bool
        Whether the kernel is made in the call, and not a tensor that is kept.
    """

    kernel: Tensor
    groups: int
    axes: range
    geometry: Sliding
    made: bool = False
    adds_bias = True

    @property
    def keeps_layout(self) -> bool:  # type: ignore[override]
        """Whether the result lies in memory as x."""
        return self.made and not self.geometry.transposed

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        # A kernel in channels_last would turn the result so, whatever the input.
        kernel = lying_as(self.kernel, first) if self.made else self.kernel
        return self.geometry.convolve(x, kernel, bias, self.groups)

    def count(self, counter: Counter) -> None:
        m, n, *kernel = self.kernel.shape
        read = counter.rows
        written = counter.slide(len(self.axes))
        taps, adjoint = math.prod(kernel), self.geometry.transposed
        counter.conv(read, written, n, m // self.groups, taps, self.groups, adjoint=adjoint)

    def library(self) -> Library:
        options = {**self.geometry._asdict(), "groups": self.groups}
        kind = "ConvTranspose" if self.geometry.transposed else "Conv"
        kernel = self.geometry.as_torch_has(self.kernel, self.groups)
        return Library(f"{kind}{self.kernel.ndim - 2}d", kernel, options)


@dataclass(frozen=True, eq=False)
class Depthwise(Taps):
    """The same as `Taps`, one filter a channel.

    Parameters
    ----------
    kernel, groups, axes, geometry, made
        As of `Taps`.
    """

    def count(self, counter: Counter) -> None:
        channels, _, *kernel = self.kernel.shape
        read = counter.rows
        written = counter.slide(len(self.axes))
        adjoint = self.geometry.transposed
        counter.depthwise(read, written, channels, math.prod(kernel), adjoint=adjoint)


@dataclass(frozen=True, eq=False)
class Pointwise(Stage):
    """A matrix for every place: `y[b, (k, :), s] = matrices[k] @ x[b, (k, :), s] + bias`.

    Parameters
    ----------
    matrix : Tensor of shape (m, n) or (g, m, n)
    axes : int
    groups : int
    inner : bool
        Whether the result is an intermediate of a chain in two axes, which is in channels_last:
        convolutions run best in it.
    """

    matrix: Tensor
    axes: int
    groups: int
    inner: bool
    adds_bias = True

    @property
    def in_two_axes(self) -> bool:
        """Whether it is one in two axes without groups."""
        return self.axes == 2 and self.groups == 1

    @property
    def keeps_layout(self) -> bool:  # type: ignore[override]
        """Whether the result lies in memory as x."""
        return self.in_two_axes

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        if self.groups > 1:
            return CONVOLUTION[self.axes](x, self._kernel(), bias, groups=self.groups)
        matrix = self.matrix[0] if self.matrix.ndim == 3 else self.matrix
        last = (self.inner and self.axes == 2) or is_channels_last(first)
        product = leaf(in_two_axes) if self.axes == 2 else everywhere
        y: Tensor = product(x, matrix, bias, channels_last=last)
        return y

    def _kernel(self) -> Tensor:
        """(g m, n, 1, ..)."""
        n = self.matrix.shape[-1]
        return self.matrix.reshape(-1, n, *(1,) * self.axes)

    def count(self, counter: Counter) -> None:
        m, n = self.matrix.shape[-2:]
        counter.pointwise(counter.rows, n, m, self.groups)

    def library(self) -> Library:
        ones = (1,) * self.axes
        options = {"stride": ones, "padding": (0,) * self.axes, "dilation": ones}
        return Library(f"Conv{self.axes}d", self._kernel(), {**options, "groups": self.groups})


@dataclass(frozen=True, eq=False)
class Groups(Stage):
    """The channels of each group on a path of their own: where no single call does all.

    Parameters
    ----------
    paths : tuple of tuple of Stage
        One a group.
    """

    paths: tuple[Stages, ...]
    keeps_layout = False

    def run(self, x: Tensor, bias: Tensor | None, first: Tensor) -> Tensor:
        parts = torch.chunk(x, len(self.paths), 1)
        ends = [run_within(path, parts[k], first) for k, path in enumerate(self.paths)]
        return torch.cat(ends, 1)

    def count(self, counter: Counter) -> None:
        place = counter.place
        for path in self.paths:
            counter.place = place
            count(path, counter)


@leaf
def everywhere(x: Tensor, matrix: Tensor, bias: Tensor | None, channels_last: bool) -> Tensor:
    """matrix (m, n) times x (B, n, *size) at every place: a product, which reads its operand in
    either memory format and writes the one asked for."""
    if channels_last:
        y = F.linear(x.movedim(1, -1), matrix, bias)
        return y.movedim(-1, 1)
    batch, columns = x.shape[0], x.flatten(2)  # (B, n, S)
    each: Any = matrix.expand(batch, -1, -1)
    y = torch.bmm(each, columns) if bias is None else torch.baddbmm(bias[:, None], each, columns)
    return y.view(batch, matrix.shape[0], *x.shape[2:])


@leaf
def is_channels_last(x: Tensor) -> bool:
    """Channels last and nothing else, for any number of axes."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


@leaf
def lying_as(y: Tensor, x: Tensor) -> Tensor:
    """y in the memory format of x. The library keeps that of its input in most calls, but not with
    groups on one thread, nor where a kernel happens to lie the other way."""
    if not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
        return y.movedim(1, -1).contiguous().movedim(-1, 1)
    return y.contiguous()
