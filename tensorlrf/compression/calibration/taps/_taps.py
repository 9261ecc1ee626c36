"""How a convolution reads its input, in any number of axes: pads, strides, taps, groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad

from tensorlrf.nn.plain import Pads, Plain
from tensorlrf.ops.geometry import CONVOLUTION, flat, output_sizes

WEIGHT_GRADIENT = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}

Sides = tuple[tuple[int, int], ...]


class Tap(NamedTuple):
    """One of the taps along an axis: it reads the grid at `start`, `start` + 1 and so on, once for
    each output of its phase."""

    start: int
    phase: int = 0


class Phase(NamedTuple):
    """Outputs that are made by some of the taps.

    taps     how these read
    columns  which numbers of a patch they see; None for all of them
    """

    taps: Taps
    columns: Tensor | None


@dataclass(frozen=True)
class Taps:
    """channels  of one group's input
    groups
    kernel, stride, dilation   one entry an axis
    sides     what is put before and behind each axis; below zero it is taken away
    mode      of the padding: "zeros", or as torch.nn.functional.pad calls it
    """

    channels: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    sides: Sides
    mode: str = "zeros"

    @classmethod
    def of(cls, plain: Plain, shape: Sequence[int]) -> Taps:
        """Those of a convolution with a weight of this shape."""
        kernel = tuple(shape[2:])
        return cls(
            int(shape[1]),
            plain.groups,
            kernel,
            plain.stride,
            plain.dilation,
            _sides(plain.padding, kernel, plain.dilation),
            plain.padding_mode,
        )

    @property
    def axes(self) -> int:
        return len(self.kernel)

    @property
    def patch(self) -> int:
        """Numbers in one patch of one group: n."""
        return self.channels * self.size

    @property
    def size(self) -> int:
        """Taps of the kernel."""
        return math.prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether every pixel is read by a kernel of one element, and nothing else is."""
        sides = [n for pair in self.sides for n in pair]
        return {*self.kernel, *self.stride} == {1} and not any(sides)

    @property
    def slides(self) -> bool:
        """Each tap reads neighbours one after the other."""
        return set(self.stride) == {1}

    def one_group(self) -> Taps:
        """The same for each group's channels by themselves."""
        return replace(self, groups=1)

    def phases(self, size: Sequence[int]) -> Iterator[Phase]:
        """The outputs for an input of this size, by the taps that they read by."""
        yield Phase(self, None)

    def along(self) -> list[list[Tap]]:
        """The taps along each axis, on the `grid`, where it slides."""
        axes = zip(self.kernel, self.dilation, strict=True)
        return [[Tap(t * d) for t in range(k)] for k, d in axes]

    def outputs_along(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """How many outputs of each phase there are along each axis, for an input of this size."""
        total = tuple(map(sum, self.sides))
        counts = output_sizes(tuple(size), self.kernel, self.stride, total, self.dilation)
        return [(n,) for n in counts]

    def grid(self, x: Tensor) -> tuple[Tensor, Sides]:
        """(what the taps slide over, how many zeros are on its sides) for x (batch, I, *size)."""
        zeros = [(max(0, a), max(0, b)) if self.mode == "zeros" else (0, 0) for a, b in self.sides]
        return self.padded(x), tuple(zeros)

    def padded(self, x: Tensor) -> Tensor:
        """(batch, groups * channels, *size) as the taps see it; without batch likewise."""
        x = in_batch(x, self.axes)
        amounts = flat(self.sides)
        if not any(amounts):
            return x
        return F.pad(x, amounts, "constant" if self.mode == "zeros" else self.mode)

    def reach(self) -> tuple[int, ...]:
        """Extent of the taps along each axis."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    def positions(self, padded: Tensor) -> tuple[int, ...]:
        """Output positions along each axis, for a padded input."""
        sizes = padded.shape[2:]
        return tuple(
            (n - r) // s + 1 for n, r, s in zip(sizes, self.reach(), self.stride, strict=True)
        )

    def patches(self, padded: Tensor) -> Tensor:
        """A view (batch, *positions, channels, *kernel) of the padded input of one group."""
        positions = self.positions(padded)
        batch, channels, *steps = padded.stride()
        return padded.as_strided(
            (padded.shape[0], *positions, self.channels, *self.kernel),
            (
                batch,
                *(a * s for a, s in zip(steps, self.stride, strict=True)),
                channels,
                *(a * d for a, d in zip(steps, self.dilation, strict=True)),
            ),
        )

    def sums(self, padded: Tensor) -> Tensor:
        """The sum of all patches, (n,) in float64, for the padded input of one group: along one
        axis after the other, so that few taps read all of it."""
        seen = padded
        for axis, positions in reversed(list(enumerate(self.positions(padded)))):
            windows = [self._window(seen, axis, t, positions) for t in range(self.kernel[axis])]
            # The first in the dtype of the input, of which torch would make a copy in float64.
            seen = torch.stack([w.sum(2 + axis) for w in windows], dim=2 + axis).to(torch.float64)
        return seen.sum(0).flatten()  # (channels, *kernel)

    def windows(self, padded: Tensor) -> Iterator[Tensor]:
        """What each tap sees of a padded input, views (batch, channels, *positions)."""
        positions = self.positions(padded)
        for at in itertools.product(*map(range, self.kernel)):
            seen = padded
            for axis, t in enumerate(at):
                seen = self._window(seen, axis, t, positions[axis])
            yield seen

    def _window(self, seen: Tensor, axis: int, t: int, positions: int) -> Tensor:
        """What the taps with index t along an axis see of it, at so many positions, a view."""
        first, step = t * self.dilation[axis], self.stride[axis]
        window = [slice(None)] * seen.ndim
        window[2 + axis] = slice(first, first + (positions - 1) * step + 1, step)
        return seen[tuple(window)]

    def outputs(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution of x itself, without bias."""
        out: Tensor = CONVOLUTION[self.axes](
            self.padded(x), weight, None, self.stride, 0, self.dilation, self.groups
        )
        return out

    def gradient(self, x: Tensor, e: Tensor, shape: Sequence[int]) -> Tensor:
        """sum over outputs of e times the patch of x, in the shape of the weight, whose very
        gradient it is."""
        # torch.nn.grad is not annotated.
        out: Tensor = WEIGHT_GRADIENT[self.axes](  # type: ignore[no-untyped-call]
            self.padded(x), tuple(shape), e, self.stride, 0, self.dilation, self.groups
        )
        return out


def in_batch(x: Tensor, axes: int) -> Tensor:
    """(batch, channels, *size) of x, which may be without batch."""
    return x[None] if x.ndim == axes + 1 else x


def _sides(padding: str | Pads, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Sides:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if isinstance(padding, str):  # "same": the odd one of an uneven number stands at the end
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((n // 2, n - n // 2) for n in totals)
    return tuple(p if isinstance(p, tuple) else (p, p) for p in padding)
