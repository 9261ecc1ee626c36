"""The public transposed convolutions on factors, checked, by the path asked for or the fastest."""

from __future__ import annotations

from torch import Tensor

from tensorlrf.errors import ArgumentError
from tensorlrf.factors import Factors
from tensorlrf.ops._conv import check_conv, run_sliding
from tensorlrf.ops._sliding import check_image, fitting_path
from tensorlrf.ops.forms.lowering import CONV_TRANSPOSE
from tensorlrf.ops.geometry import IntOrAxes, transposed_geometry, transposed_sizes


def conv_transpose1d(
    x: Tensor,
    factors: Factors,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: IntOrAxes = 0,
    output_padding: IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    *,
    path: str | None = None,
) -> Tensor:
    """The transposed convolution in one axis with the kernel K that `factors` stand for.

    Parameters
    ----------
    x : Tensor of shape (B, g I, L) or (g I, L)
    factors : Factors
        As of `conv1d`: of the shape (O, I, k), outputs first. The weight of torch has the channels
        of each group the other way round, so that of g = 1 K is `weight.transpose(0, 1)`.
    bias : Tensor of shape (O,), optional
    stride, padding, output_padding, dilation
        As torch.nn.functional.conv_transpose1d.
    path : str, optional
        "dense" or one of the format, as of `conv1d`; by default the one that the cost model expects
        to be fastest for this input.

    Returns
    -------
    Tensor of shape (B, O, L') or (O, L')
        Differentiable in x, bias and every tensor of the factors.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 4, 5), 2)
    >>> tensorlrf.ops.conv_transpose1d(torch.rand(1, 4, 10), f, stride=2).shape
    torch.Size([1, 8, 23])
    """
    return _conv_transpose(1, x, factors, bias, stride, padding, output_padding, dilation, path)


def conv_transpose2d(
    x: Tensor,
    factors: Factors,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: IntOrAxes = 0,
    output_padding: IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    *,
    path: str | None = None,
) -> Tensor:
    """The transposed convolution in two axes with the kernel K that `factors` stand for.

    Parameters
    ----------
    x : Tensor of shape (B, g I, H, W) or (g I, H, W)
        channels_last in, channels_last out.
    factors : Factors
        As of `conv2d`: of the shape (O, I, kh, kw), outputs first. The weight of torch has the
        channels of each group the other way round, so that of g = 1 K is `weight.transpose(0, 1)`.
    bias : Tensor of shape (O,), optional
    stride, padding, output_padding, dilation
        As torch.nn.functional.conv_transpose2d.
    path : str, optional
        "dense" or one of the format, as of `conv2d`; by default the one that the cost model expects
        to be fastest for this input.

    Returns
    -------
    Tensor of shape (B, O, H', W') or (O, H', W')
        Differentiable in x, bias and every tensor of the factors.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> layer = torch.nn.ConvTranspose2d(4, 8, 3, stride=2, output_padding=1, bias=False)
    >>> f = tensorlrf.svd(layer.weight.transpose(0, 1), 8)  # the full rank
    >>> x = torch.rand(1, 4, 5, 5)
    >>> y = tensorlrf.ops.conv_transpose2d(x, f, stride=2, output_padding=1)
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(y, layer(x), atol=1e-5)
    True
    """
    return _conv_transpose(2, x, factors, bias, stride, padding, output_padding, dilation, path)


def conv_transpose3d(
    x: Tensor,
    factors: Factors,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: IntOrAxes = 0,
    output_padding: IntOrAxes = 0,
    dilation: IntOrAxes = 1,
    *,
    path: str | None = None,
) -> Tensor:
    """The transposed convolution in three axes with the kernel K that `factors` stand for.

    Parameters
    ----------
    x : Tensor of shape (B, g I, D, H, W) or (g I, D, H, W)
        channels_last_3d in, channels_last_3d out.
    factors : Factors
        As of `conv3d`: of the shape (O, I, kd, kh, kw), outputs first.
    bias, stride, padding, output_padding, dilation, path
        As for `conv_transpose1d`.

    Returns
    -------
    Tensor of shape (B, O, D', H', W') or (O, D', H', W')
        Differentiable in x, bias and every tensor of the factors.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 4, 2, 2, 2), 2)
    >>> tensorlrf.ops.conv_transpose3d(torch.rand(4, 5, 6, 7), f, stride=2).shape
    torch.Size([8, 10, 12, 14])
    """
    return _conv_transpose(3, x, factors, bias, stride, padding, output_padding, dilation, path)


def _conv_transpose(
    n_axes: int,
    x: Tensor,
    factors: Factors,
    bias: Tensor | None,
    stride: IntOrAxes,
    padding: IntOrAxes,
    output_padding: IntOrAxes,
    dilation: IntOrAxes,
    path: str | None,
) -> Tensor:
    """Checks, and the choice of a path."""
    check_conv(factors, n_axes)
    kernel = factors.shape[2:]
    geometry = transposed_geometry(n_axes, stride, padding, output_padding, dilation)
    check_image(x, factors, bias)
    sizes = transposed_sizes(x.shape[-n_axes:], kernel, *geometry)
    for n in sizes:
        if n < 1:
            raise ArgumentError(
                f"x has shape {tuple(x.shape)}: with padding={padding!r} nothing is left of what "
                f"the {' x '.join(map(str, kernel))} kernel writes"
            )
    path = fitting_path(CONV_TRANSPOSE, path, factors, x, sizes, geometry.stride)
    return run_sliding(path, factors, x, bias, geometry)
