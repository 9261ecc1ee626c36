"""The geometry of a convolution: strides, paddings and sizes, as torch understands them.

All of it serves one, two or three axes; a tuple has one entry an axis, in the order of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError

Axes = tuple[int, ...]
Pair = tuple[int, int]
IntOrAxes = int | Sequence[int]
PaddingArgument = str | int | Sequence[int] | Sequence[tuple[int, int]]

CONVOLUTION: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
"""By the number of axes."""

_WORDS = {
    1: "an int, alone or in a tuple",
    2: "an int or two ints, (vertical, horizontal)",
    3: "an int or three ints, (depth, vertical, horizontal)",
}


class Geometry(NamedTuple):
    """How a kernel slides; one entry an axis, the padding the same on both sides."""

    stride: Axes
    padding: Axes
    dilation: Axes

    @property
    def transposed(self) -> bool:
        """It reads windows and writes a place for each."""
        return False

    def along(self, axes: range) -> Geometry:
        """Along these axes alone."""
        return Geometry(*_along(self, (1, 0, 1), axes))

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """x (B, g n, ...) with a kernel `(g m, n, *k)`."""
        return self.by_weight(x, kernel, bias, groups)

    def by_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """The same with a weight in the layout of torch's layer."""
        return CONVOLUTION[len(self.stride)](x, weight, bias, *self, groups)

    def as_torch_has(self, kernel: Tensor, groups: int) -> Tensor:
        """The kernel `(g m, n, *k)` in the layout of torch's layer."""
        return kernel


class TransposedGeometry(NamedTuple):
    """How the kernel of a transposed convolution does: the adjoint of a convolution with the same
    stride, padding and dilation, which leaves open how many of `output_padding` places it has not
    reached."""

    stride: Axes
    padding: Axes
    output_padding: Axes
    dilation: Axes

    @property
    def transposed(self) -> bool:
        """It reads places and writes a window for each."""
        return True

    def along(self, axes: range) -> TransposedGeometry:
        """Along these axes alone."""
        return TransposedGeometry(*_along(self, (1, 0, 0, 1), axes))

    def convolve(self, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """x (B, g n, ...) with a kernel `(g m, n, *k)`, outputs first as in a convolution."""
        return self.by_weight(x, adjoint(kernel, groups), bias, groups)

    def by_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """The same with a weight in the layout of torch's layer, `(g n, m, *k)`."""
        conv = TRANSPOSED[len(self.stride)]
        return conv(x, weight, bias, *self[:3], groups, self.dilation)

    def as_torch_has(self, kernel: Tensor, groups: int) -> Tensor:
        """The kernel `(g m, n, *k)` in the layout of torch's layer, `(g n, m, *k)`."""
        return adjoint(kernel, groups)


Sliding = Geometry | TransposedGeometry


def _along(given: Sequence[Axes], resting: Axes, axes: range) -> list[Axes]:
    """What is given, and along the other axes what does nothing."""
    return [
        tuple([n if k in axes else rest for k, n in enumerate(all_axes)])
        for all_axes, rest in zip(given, resting, strict=True)
    ]


def adjoint(kernel: Tensor, groups: int) -> Tensor:
    """A kernel `(g m, n, *k)` as `(g n, m, *k)`: inputs and outputs of each group change places."""
    if groups == 1:
        return kernel.transpose(0, 1)
    each = torch.unflatten(kernel, 0, (groups, -1))
    own: Tensor = each.transpose(1, 2).flatten(0, 1)
    return own


class Padding(NamedTuple):
    """Zeros on each side of every axis, and `excess` more at its end (fewer where it is negative).

    torch's "same" puts the odd one of an uneven number of zeros at the end.
    """

    each_side: Axes
    excess: Axes

    @property
    def sides(self) -> tuple[Pair, ...]:
        """(before, after) of every axis."""
        return tuple((n, n + more) for n, more in zip(*self, strict=True))

    @property
    def total(self) -> Axes:
        """What each axis grows by."""
        return tuple([2 * n + more for n, more in zip(*self, strict=True)])

    @property
    def shared(self) -> Axes:
        """The zeros that both sides have, which a convolution puts there itself."""
        if not any(self.excess):
            return self.each_side
        return tuple(min(side) for side in self.sides)

    @property
    def ahead(self) -> list[int]:
        """The zeros beyond `shared`, for `torch.nn.functional.pad`; empty where there are none."""
        if not any(self.excess):
            return []
        return flat([(max(0, -more), max(0, more)) for more in self.excess])


def flat(sides: Sequence[tuple[int, int]]) -> list[int]:
    """(before, after) of every axis in the order of `torch.nn.functional.pad`: last axis first."""
    return [n for axis in reversed(sides) for n in axis]


def per_axis(argument: str, value: int | Sequence[int], least: int, n_axes: int) -> Axes:
    """An int for all axes, or one int an axis. Raises ArgumentError."""
    if isinstance(value, int) and not isinstance(value, bool):
        all_axes: Axes = (value,) * n_axes
    elif isinstance(value, (tuple, list)) and len(value) == n_axes:
        all_axes = tuple(value)
    else:
        raise ArgumentError(f"{argument}={value!r} must be {_WORDS[n_axes]}")
    for n in all_axes:
        if not isinstance(n, int) or n < least:
            raise ArgumentError(f"{argument}={value!r} must hold ints of at least {least}")
    return all_axes


def pair(argument: str, value: int | Sequence[int], least: int) -> Pair:
    """An int for both axes, or one int an axis. Raises ArgumentError."""
    vertical, horizontal = per_axis(argument, value, least, 2)
    return vertical, horizontal


def resolve_padding(
    padding: PaddingArgument, kernel: Axes, stride: Axes, dilation: Axes
) -> Padding:
    """The zeros that `padding` asks for, as torch counts them, or from one pair (before, after) an
    axis. Raises ArgumentError."""
    none = (0,) * len(kernel)
    if isinstance(padding, int):
        return Padding(per_axis("padding", padding, 0, len(kernel)), none)
    if padding == "valid":
        return Padding(none, none)
    if padding == "same":
        if any(s != 1 for s in stride):
            raise ArgumentError(
                f"padding='same' needs stride 1, as in torch; stride={stride}: give the padding as "
                "ints"
            )
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return Padding(tuple(n // 2 for n in total), tuple(n % 2 for n in total))
    if isinstance(padding, str):
        raise ArgumentError(
            f"padding={padding!r} is unknown; choose 'same', 'valid', {_WORDS[len(kernel)]}"
        )
    if isinstance(padding, (tuple, list)) and any(isinstance(n, (tuple, list)) for n in padding):
        return _two_sided(padding, len(kernel))
    return Padding(per_axis("padding", padding, 0, len(kernel)), none)  # type: ignore[arg-type]


def _two_sided(padding: Sequence[Any], n_axes: int) -> Padding:
    if len(padding) != n_axes or not all(
        isinstance(side, (tuple, list))
        and len(side) == 2
        and all(isinstance(n, int) and n >= 0 for n in side)
        for side in padding
    ):
        raise ArgumentError(
            f"padding={padding!r} must hold two ints of at least 0, (before, after), for each of "
            f"the {n_axes} axes"
        )
    return Padding(
        tuple(before for before, _ in padding), tuple(after - before for before, after in padding)
    )


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Positions along one axis; `padding` counts the zeros of both sides."""
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def output_sizes(size: Axes, kernel: Axes, stride: Axes, padding: Axes, dilation: Axes) -> Axes:
    """Positions along every axis; `padding` counts the zeros of both sides."""
    # A list first: this is on the way of every call, and a generator takes twice as long.
    return tuple(
        [output_size(*axis) for axis in zip(size, kernel, stride, padding, dilation, strict=True)]
    )


def transposed_sizes(
    size: Axes, kernel: Axes, stride: Axes, padding: Axes, output_padding: Axes, dilation: Axes
) -> Axes:
    """Positions that a transposed convolution writes along every axis."""
    axes = zip(size, kernel, stride, padding, output_padding, dilation, strict=True)
    return tuple([(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in axes])


def rows_of(x: Tensor, sizes: Axes) -> int:
    """Rows M of a convolution of x (B, ...), or of one without B, to so many positions along every
    axis: batch times positions."""
    rows = x.shape[0] if x.ndim == len(sizes) + 2 else 1
    for n in sizes:
        rows *= n
    return rows


def transposed_geometry(
    n_axes: int,
    stride: IntOrAxes,
    padding: IntOrAxes,
    output_padding: IntOrAxes,
    dilation: IntOrAxes,
) -> TransposedGeometry:
    """As torch understands these. Raises ArgumentError where it has no such one."""
    geometry = TransposedGeometry(
        per_axis("stride", stride, 1, n_axes),
        per_axis("padding", padding, 0, n_axes),
        per_axis("output_padding", output_padding, 0, n_axes),
        per_axis("dilation", dilation, 1, n_axes),
    )
    for s, _, o, d in zip(*geometry, strict=True):
        if o >= max(s, d):
            raise ArgumentError(
                f"output_padding={output_padding!r} must be below the stride or the dilation of "
                f"its axis; these are {geometry.stride} and {geometry.dilation}"
            )
    return geometry
