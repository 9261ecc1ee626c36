"""How a convolution reads its input, in any number of axes: pads, strides, taps, groups.

A transposed one is the convolution, at stride 1, of an image with stride - 1 zeros between its
pixels, read backwards along every axis (Dumoulin & Visin 2016, section 4): so its inputs too have
patches, and of their moments the error of the outputs follows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad

from tensorlrf.nn.plain import Pads, Plain

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_WEIGHT = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}

Sides = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Taps:
    """channels  of one group's input
    groups
    kernel, stride, dilation   one entry an axis
    sides     what is put before and behind each axis; below zero it is taken away
    mode      of the padding: "zeros", or as torch.nn.functional.pad calls it
    spread    of a transposed convolution its stride, by which pixels are set apart; else empty
    """

    channels: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    sides: Sides
    mode: str = "zeros"
    spread: tuple[int, ...] = ()

    @classmethod
    def of(cls, plain: Plain, shape: Sequence[int]) -> Taps:
        """Those of a convolution with a weight of this shape, outputs first."""
        kernel = tuple(shape[2:])
        if plain.is_transposed:
            return cls(
                int(shape[1]),
                plain.groups,
                kernel,
                (1,) * len(kernel),
                plain.dilation,
                _sides_of_transposed(plain, kernel),
                spread=plain.stride,
            )
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

    def one_group(self) -> Taps:
        """The same for each group's channels by themselves."""
        return replace(self, groups=1)

    def padded(self, x: Tensor) -> Tensor:
        """(batch, groups * channels, *size) as the taps see it; without batch likewise."""
        x = x[None] if x.ndim == self.axes + 1 else x
        if self.spread:
            x = _set_apart(x, self.spread)
        amounts = [n for pair in reversed(self.sides) for n in pair]
        if not any(amounts):
            return x
        return F.pad(x, amounts, "constant" if self.mode == "zeros" else self.mode)

    @property
    def is_pointwise(self) -> bool:
        """Whether every pixel is read by a kernel of one element, and nothing else is."""
        sides = [n for pair in self.sides for n in pair]
        steps = {*self.kernel, *self.stride, *self.spread}
        return steps == {1} and not any(sides)

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

    def apply(self, padded: Tensor, weight: Tensor) -> Tensor:
        """The convolution itself, without bias."""
        out: Tensor = _CONV[self.axes](
            padded, weight, None, self.stride, 0, self.dilation, self.groups
        )
        return out

    def weight_gradient(self, padded: Tensor, shape: Sequence[int], e: Tensor) -> Tensor:
        """sum over positions of e x^T, in the shape of the weight: its very gradient."""
        out: Tensor = _WEIGHT[self.axes](  # type: ignore[no-untyped-call]
            padded, tuple(shape), e, self.stride, 0, self.dilation, self.groups
        )
        return out


def _sides(padding: str | Pads, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Sides:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if isinstance(padding, str):  # "same": the odd one of an uneven number stands at the end
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((n // 2, n - n // 2) for n in totals)
    return tuple(p if isinstance(p, tuple) else (p, p) for p in padding)


def _sides_of_transposed(plain: Plain, kernel: tuple[int, ...]) -> Sides:
    """Around the spread image, which is read backwards: what torch puts behind comes first."""
    given = zip(kernel, plain.dilation, plain.padding, plain.output_padding, strict=True)
    sides = []
    for k, d, p, more in given:
        assert isinstance(p, int)  # it has no other
        sides.append((d * (k - 1) - p + more, d * (k - 1) - p))
    return tuple(sides)


def _set_apart(x: Tensor, by: tuple[int, ...]) -> Tensor:
    """x (batch, channels, *size) backwards along every axis, with by - 1 zeros between pixels."""
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], by, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    every: list[slice] = [slice(None)] * 2
    spread[(*every, *[slice(None, None, s) for s in by])] = x.flip(tuple(range(2, x.ndim)))
    return spread
