"""How a transposed convolution reads its input.

Output o reads pixel i by tap t where o = i s + t d - p, with stride s, dilation d and padding p
along the axis. So the outputs fall into s phases, o modulo s, and those of one read by the taps of
one residue alone, ceil(k / s) of k where d = 1: a phase is a convolution of stride 1 by these
(Dumoulin & Visin 2016, section 4, without the zeros between pixels). Taps of two phases never meet
in an output: G is zero there, and within a phase its sums are over the pixels of the input, so that
no product grows with the stride.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.compression.calibration.taps._taps import (
    WEIGHT_GRADIENT,
    Phase,
    Sides,
    Tap,
    Taps,
    in_batch,
)
from tensorlrf.nn.plain import Plain
from tensorlrf.ops.geometry import TransposedGeometry, adjoint, flat, transposed_sizes


@dataclass(frozen=True)
class TransposedTaps:
    """channels  of one group's input
    groups
    kernel    one entry an axis
    geometry  stride, padding, output padding, dilation
    """

    channels: int
    groups: int
    kernel: tuple[int, ...]
    geometry: TransposedGeometry

    @classmethod
    def of(cls, plain: Plain, shape: Sequence[int]) -> TransposedTaps:
        """Those of a transposed convolution with a weight of this shape, outputs first."""
        # One int an axis: torch has no other padding for it.
        padding = tuple([n for n in plain.padding if isinstance(n, int)])
        geometry = TransposedGeometry(plain.stride, padding, plain.output_padding, plain.dilation)
        return cls(int(shape[1]), plain.groups, tuple(shape[2:]), geometry)

    @property
    def axes(self) -> int:
        return len(self.kernel)

    @property
    def patch(self) -> int:
        """Numbers in one patch of one group: n."""
        return self.channels * math.prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether every pixel is read by a kernel of one element, and nothing else is."""
        stride, padding, more, _ = self.geometry
        return {*self.kernel, *stride} == {1} and not any((*padding, *more))

    @property
    def slides(self) -> bool:
        """Each tap reads neighbours one after the other, whatever the stride."""
        return True

    def one_group(self) -> TransposedTaps:
        """The same for each group's channels by themselves."""
        return replace(self, groups=1)

    def along(self) -> list[list[Tap]]:
        """The taps along each axis, on the input as it is."""
        stride, padding, _, dilation = self.geometry
        found = []
        for k, s, p, d in zip(self.kernel, stride, padding, dilation, strict=True):
            places = [t * d - p for t in range(k)]  # to which the first pixel goes
            found.append([Tap(-(place // s), place % s) for place in places])
        return found

    def outputs_along(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """How many outputs of each phase there are along each axis, for an input of this size."""
        counts = transposed_sizes(tuple(size), self.kernel, *self.geometry)
        axes = zip(counts, self.geometry.stride, strict=True)
        return [tuple([len(range(phase, n, s)) for phase in range(s)]) for n, s in axes]

    def phases(self, size: Sequence[int]) -> Iterator[Phase]:
        """The outputs for an input of this size that read something of it, by the taps that they
        read by."""
        found = zip(self.along(), self.outputs_along(size), size, strict=True)
        axes = [list(_phases_along(*axis)) for axis in found]
        ones = (1,) * self.axes
        for phase in itertools.product(*axes):
            chosen, steps, sides = zip(*phase, strict=True)
            kernel = tuple(map(len, chosen))
            taps = Taps(self.channels, 1, kernel, ones, steps, sides)
            yield Phase(taps, self._columns(chosen))

    def grid(self, x: Tensor) -> tuple[Tensor, Sides]:
        """(what the taps slide over, how many zeros are on its sides) for x (batch, I, *size)."""
        return in_batch(x, self.axes), ((0, 0),) * self.axes

    def outputs(self, x: Tensor, weight: Tensor) -> Tensor:
        """The transposed convolution of x itself, without bias; weight (O, I, *kernel)."""
        return self.geometry.convolve(in_batch(x, self.axes), weight, None, self.groups)

    def gradient(self, x: Tensor, e: Tensor, shape: Sequence[int]) -> Tensor:
        """sum over outputs of e times what it reads of x, in the shape (O, I, *kernel) of the
        weight, of one group: the gradient of the convolution of which this one is the adjoint, at
        e, where x is what its outputs get."""
        stride, padding, more, dilation = self.geometry
        # The output padding is behind the last window.
        e = F.pad(e, flat([(p, p - o) for p, o in zip(padding, more, strict=True)]))
        outputs, inputs, *kernel = shape
        # torch.nn.grad is not annotated.
        out: Tensor = WEIGHT_GRADIENT[self.axes](  # type: ignore[no-untyped-call]
            e, (inputs, outputs, *kernel), in_batch(x, self.axes), stride, 0, dilation
        )
        return adjoint(out, 1)

    def _columns(self, chosen: Sequence[Sequence[int]]) -> Tensor:
        """Of a patch (I, *kernel) the numbers that some taps see, in their order."""
        index: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}
        columns = torch.arange(self.patch, **index).reshape(self.channels, *self.kernel)
        for axis, taps in enumerate(chosen):
            columns = columns.index_select(1 + axis, torch.tensor(taps, **index))
        return columns.flatten()


Reading = Taps | TransposedTaps


def reading_of(plain: Plain, shape: Sequence[int]) -> Reading:
    """How a convolution of either kind with a weight of this shape, outputs first, reads."""
    return TransposedTaps.of(plain, shape) if plain.is_transposed else Taps.of(plain, shape)


def _phases_along(
    taps: Sequence[Tap], outputs: Sequence[int], size: int
) -> Iterator[tuple[list[int], int, tuple[int, int]]]:
    """(taps by where they begin, the step between them, what is to be put before and behind the
    axis), of each phase along one axis that reads something."""
    for phase, n in enumerate(outputs):
        own = [t for t, tap in enumerate(taps) if tap.phase == phase][::-1]
        if not own or not n:
            continue
        first, last = taps[own[0]].start, taps[own[-1]].start
        if first < size and last + n > 0:
            step = taps[own[1]].start - first if len(own) > 1 else 1
            yield own, step, (-first, last + n - size)
