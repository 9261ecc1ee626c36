"""Convolutions on factors, in one, two and three axes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import (
    CPFactors,
    Factors,
    Grouped,
    KroneckerSum,
    LowRank,
    TTFactors,
    TuckerFactors,
)
from tensorlrf.ops._conv2d import run_conv2d
from tensorlrf.ops._convnd import run_convnd
from tensorlrf.ops._fused import fused_here
from tensorlrf.ops.geometry import Axes

_KERNEL = {
    1: "(out_channels, in_channels, k)",
    2: "(out_channels, in_channels, kh, kw)",
    3: "(out_channels, in_channels, kd, kh, kw)",
}


_FORMATS = (LowRank, CPFactors, TuckerFactors, KroneckerSum, TTFactors)


def train_order(order: int) -> tuple[int, ...]:
    """The modes of the train that is a chain of convolutions.

    From the output channels over the last to the first axis to the input channels.

    Parameters
    ----------
    order : int
        Of the kernel, its axes and two.

    Returns
    -------
    tuple of int

    Examples
    --------
    >>> tensorlrf.ops.train_order(4)
    (0, 3, 2, 1)
    """
    return (0, *range(order - 1, 0, -1))


def conv_paths(factors: Factors, n_axes: int | None = None) -> tuple[str, ...]:
    """The paths by which a convolution can run on these factors, where they are.

    Parameters
    ----------
    factors : Factors
    n_axes : int, optional
        In so many axes; by default in as many as the shape has.

    Returns
    -------
    tuple of str
        "fused" needs an NVIDIA GPU and Triton.

    Raises
    ------
    UnsupportedError
        For a format that has none.
    ShapeError
        Where the factors do not stand for a kernel (out_channels, in_channels, k), (.., kh, kw) or
        (.., kd, kh, kw).

    Examples
    --------
    >>> tensorlrf.ops.conv_paths(tensorlrf.cp(torch.rand(8, 4, 3, 3), 2))
    ('dense', 'chain', 'fold', 'fold_depthwise')
    """
    one = factors.group(0) if isinstance(factors, Grouped) else factors
    if not isinstance(one, _FORMATS):
        raise UnsupportedError(
            f"factors is a {type(one).__name__}; a convolution runs on "
            f"{', '.join(f.__name__ for f in _FORMATS)} and a Grouped of these, so use "
            "factors.to_dense() with torch.nn.functional.conv2d"
        )
    shape = factors.shape
    axes = len(shape) - 2
    if axes not in _KERNEL or (n_axes is not None and axes != n_axes):
        kernels = _KERNEL.values() if n_axes is None else [_KERNEL[n_axes]]
        raise ShapeError(
            f"factors stand for a tensor of shape {shape}; the kernel of a convolution is "
            f"{' or '.join(kernels)}"
        )
    if isinstance(one, TTFactors) and one.modes != train_order(axes + 2):
        raise UnsupportedError(
            f"factors is a train of the modes {one.modes}; a convolution runs on one of the modes "
            f"{train_order(axes + 2)}: decompose with modes={train_order(axes + 2)}"
        )
    fused = fused_here(factors)
    if isinstance(factors, CPFactors) and axes == 2:
        return ("dense", "chain", "fold", "fold_depthwise", *fused)
    return ("dense", "chain", *fused)


def conv2d_paths(factors: Factors) -> tuple[str, ...]:
    """The `conv_paths` of a kernel (out_channels, in_channels, kh, kw).

    Parameters
    ----------
    factors : Factors

    Returns
    -------
    tuple of str

    Raises
    ------
    UnsupportedError, ShapeError
        As `conv_paths`.

    Examples
    --------
    >>> tensorlrf.ops.conv2d_paths(tensorlrf.svd(torch.rand(8, 4, 3, 3), 2))
    ('dense', 'chain')
    """
    return conv_paths(factors, 2)


def run_conv(
    path: str,
    factors: Factors,
    x: Tensor,
    bias: Tensor | None,
    stride: Axes,
    padding: Axes | str,
    dilation: Axes,
) -> Tensor:
    """The convolution by a given path, without checks: for layers that made theirs before.

    Parameters
    ----------
    path : str
    factors : Factors
    x : Tensor of shape (B, g I, ...) or (g I, ...)
    bias : Tensor of shape (O,) or None
    stride, padding, dilation : tuple of int
        One entry an axis; padding is the same on both sides, or a word.

    Returns
    -------
    Tensor of shape (B, O, ...) or (O, ...)

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 4, 5), 2)
    >>> tensorlrf.ops.run_conv("chain", f, torch.rand(1, 4, 20), None, (1,), (2,), (1,)).shape
    torch.Size([1, 8, 20])
    """
    own = isinstance(factors, (LowRank, CPFactors, TuckerFactors)) and len(stride) == 2
    run: Callable[..., Tensor] = run_conv2d if own else run_convnd
    return run(path, factors, x, bias, stride, padding, dilation)
