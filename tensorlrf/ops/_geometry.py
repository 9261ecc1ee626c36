"""The geometry of a convolution: strides, paddings and sizes, as torch understands them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tensorlrf.errors import ArgumentError

Pair = tuple[int, int]


class Padding(NamedTuple):
    """Zeros on each side of both axes, and beyond these `excess` rows below and columns right.

    torch's "same" puts the odd one of an uneven number of zeros at the end.
    """

    each_side: Pair
    excess: Pair


def pair(argument: str, value: int | Sequence[int], least: int) -> Pair:
    """An int for both axes, or one int an axis. Raises ArgumentError."""
    if isinstance(value, int) and not isinstance(value, bool):
        both = (value, value)
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        both = (value[0], value[1])
    else:
        raise ArgumentError(
            f"{argument}={value!r} must be an int or two ints, (vertical, horizontal)"
        )
    if not all(isinstance(n, int) and n >= least for n in both):
        raise ArgumentError(f"{argument}={value!r} must hold ints of at least {least}")
    return both


def resolve_padding(
    padding: str | int | Sequence[int], kernel: Pair, stride: Pair, dilation: Pair
) -> Padding:
    """The zeros that `padding` asks for, as torch.nn.Conv2d counts them. Raises ArgumentError."""
    if not isinstance(padding, str):
        return Padding(pair("padding", padding, 0), (0, 0))
    if padding == "valid":
        return Padding((0, 0), (0, 0))
    if padding != "same":
        raise ArgumentError(
            f"padding={padding!r} is unknown; choose 'same', 'valid', an int or two ints"
        )
    if stride != (1, 1):
        raise ArgumentError(
            f"padding='same' needs stride 1, as in torch; stride={stride}: give the padding as ints"
        )
    total = (dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1))
    return Padding((total[0] // 2, total[1] // 2), (total[0] % 2, total[1] % 2))


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Positions along one axis; `padding` counts the zeros of both sides."""
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1
