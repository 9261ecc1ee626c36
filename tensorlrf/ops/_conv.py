"""Convolutions on factors, in one, two and three axes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ShapeError, UnsupportedError
from tensorlrf.factors import Factors
from tensorlrf.ops.forms._form import form_of, formats_with
from tensorlrf.ops.forms.lowering import CONV, CONV_TRANSPOSE, Layer, run_path
from tensorlrf.ops.forms.shared._slide import is_channels_last
from tensorlrf.ops.fused import paths_here
from tensorlrf.ops.geometry import Axes, Geometry, Pair, Sliding, resolve_padding

_KERNEL = {
    1: "(out_channels, in_channels, k)",
    2: "(out_channels, in_channels, kh, kw)",
    3: "(out_channels, in_channels, kd, kh, kw)",
}


def check_conv(factors: Factors, n_axes: int | None = None) -> None:
    """The factors stand for a kernel of `n_axes` axes, or of 1 to 3, and their form has the layer
    on it."""
    form = form_of(factors)
    one = form.of_a_group(factors)
    if not form_of(one).has("conv"):
        formats = [format for format in formats_with("conv") if format != "Grouped"]
        raise UnsupportedError(
            f"factors is a {type(one).__name__}; a convolution runs on "
            f"{', '.join(formats)} and a Grouped of these, so use "
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


def conv_paths(
    factors: Factors, n_axes: int | None = None, *, transposed: bool = False
) -> tuple[str, ...]:
    """The paths by which a convolution can run on these factors, where they are.

    Parameters
    ----------
    factors : Factors
    n_axes : int, optional
        In so many axes; by default in as many as the shape has.
    transposed : bool
        Whether it is a transposed one.

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
    check_conv(factors, n_axes)
    return paths_here(CONV_TRANSPOSE if transposed else CONV, factors)


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
    if isinstance(padding, str):
        zeros = resolve_padding(padding, factors.shape[2:], stride, dilation)
        padding = zeros.shared
        if zeros.ahead:
            x = F.pad(x, zeros.ahead)
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation))
    return run_sliding(path, factors, x, bias, geometry)


def run_sliding(
    path: str, factors: Factors, x: Tensor, bias: Tensor | None, geometry: Sliding
) -> Tensor:
    """The convolution of either kind by a given path, without checks.

    x (B, g I, ...) or (g I, ...); bias (O,) or None
    """
    axes = len(geometry.stride)
    if x.ndim == axes + 1:
        return run_sliding(path, factors, x[None], bias, geometry)[0]
    if path == "dense":
        form = form_of(factors)
        last = axes == 2 and not geometry.transposed and is_channels_last(x)
        return geometry.convolve(x, form.dense(factors, last), bias, form.groups(factors))
    return run_path(Layer.sliding(geometry), path, factors, x, bias)


def run_conv2d(
    path: str,
    factors: Factors,
    x: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1),
) -> Tensor:
    """The `conv2d` by a given path, without checks: for layers that made theirs before.

    Parameters
    ----------
    path : str
    factors : Factors
    x : Tensor of shape (B, g I, H, W) or (g I, H, W)
    bias : Tensor of shape (O,), optional
    stride, padding, dilation : pair of int
        Padding may be a word.

    Returns
    -------
    Tensor of shape (B, O, H', W') or (O, H', W')

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 4, 3, 3), 2)
    >>> tensorlrf.ops.run_conv2d("chain", f, torch.rand(1, 4, 9, 9), padding=(1, 1)).shape
    torch.Size([1, 8, 9, 9])
    """
    return run_conv(path, factors, x, bias, stride, padding, dilation)
