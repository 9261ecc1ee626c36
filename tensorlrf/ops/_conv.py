"""Convolutions on factors, in one, two and three axes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import (
    CPFactors,
    Factors,
    Grouped,
    KroneckerSum,
    LowRank,
    TTFactors,
    TuckerFactors,
)
from tensorlrf.ops._check import check_bias, check_input
from tensorlrf.ops._conv2d import run_conv2d
from tensorlrf.ops._convnd import run_convnd
from tensorlrf.ops._fused import check_layer_path, fused_here
from tensorlrf.ops._geometry import (
    Axes,
    IntOrAxes,
    PaddingArgument,
    output_sizes,
    per_axis,
    resolve_padding,
)

_KERNEL = {
    1: "(out_channels, in_channels, k)",
    2: "(out_channels, in_channels, kh, kw)",
    3: "(out_channels, in_channels, kd, kh, kw)",
}
_SIZE = {1: "L", 2: "H, W", 3: "D, H, W"}


_FORMATS = (LowRank, CPFactors, TuckerFactors, KroneckerSum, TTFactors)


def train_order(order: int) -> tuple[int, ...]:
    """The modes of the train that is a chain of convolutions: from the output channels over the
    last to the first axis to the input channels."""
    return (0, *range(order - 1, 0, -1))


def conv_paths(factors: Factors, n_axes: int | None = None) -> tuple[str, ...]:
    """The paths by which a convolution can run on these factors, where they are; in `n_axes` axes,
    or in as many as the shape has. "fused" needs an NVIDIA GPU and Triton.

    Raises UnsupportedError for a format that has none, ShapeError where the factors do not stand
    for a kernel (out_channels, in_channels, k), (.., kh, kw) or (.., kd, kh, kw).
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
    """`conv_paths` of a kernel (out_channels, in_channels, kh, kw)."""
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
    """`conv1d`, `conv2d` or `conv3d` by a given path, without checks: for layers that made theirs
    when they were built. The options have one entry an axis; padding is the same on both sides."""
    own = isinstance(factors, (LowRank, CPFactors, TuckerFactors)) and len(stride) == 2
    run: Callable[..., Tensor] = run_conv2d if own else run_convnd
    return run(path, factors, x, bias, stride, padding, dilation)


def conv1d(
    x: Tensor,
    factors: Factors,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: PaddingArgument = 0,
    dilation: IntOrAxes = 1,
    *,
    path: str | None = None,
) -> Tensor:
    """conv1d(x, K) + bias for the kernel K (O, I, k) that `factors` stand for.

    x         (B, g I, L) or (g I, L)
    factors   LowRank, CPFactors, TuckerFactors, KroneckerSum or TTFactors (of the modes (0, 2, 1))
              of shape (O, I, k), g = 1; or a Grouped of one of them, of shape (O, I, k) for g
              groups
    bias      (O,)
    stride, padding, dilation  as torch.nn.functional.conv1d, "same" and "valid" included; padding
              may be ((before, after),) too
    path      "dense" (rebuild K) or "chain" (one convolution a factor); by default the one that
              the cost model expects to be fastest for this input

    Returns (B, O, L') or (O, L'). Differentiable in x, bias and every tensor of the factors.
    Raises ShapeError, ArgumentError or UnsupportedError where these do not fit together.
    """
    return _conv(1, x, factors, bias, stride, padding, dilation, path)


def conv2d(
    x: Tensor,
    factors: Factors,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: PaddingArgument = 0,
    dilation: IntOrAxes = 1,
    *,
    path: str | None = None,
) -> Tensor:
    """conv2d(x, K) + bias for the kernel K (O, I, kh, kw) that `factors` stand for.

    x         (B, g I, H, W) or (g I, H, W); channels_last in, channels_last out
    factors   LowRank, CPFactors, TuckerFactors, KroneckerSum or TTFactors (of the modes
              (0, 3, 2, 1)) of shape (O, I, kh, kw), g = 1; or a Grouped of one of them, of shape
              (O, I, kh, kw) for g groups
    bias      (O,)
    stride, padding, dilation  as torch.nn.functional.conv2d, "same" and "valid" included; padding
              may be (before, after) of each axis too
    path      "dense" (rebuild K), "chain" (one convolution a factor); CPFactors also have "fold"
              (kh x 1, then 1 x kw) and "fold_depthwise" (1 x 1, depthwise kh x kw, 1 x 1); by
              default the one that the cost model expects to be fastest for this input

    Returns (B, O, H', W') or (O, H', W'). Differentiable in x, bias and every tensor of the
    factors. Raises ShapeError, ArgumentError or UnsupportedError where these do not fit together.
    """
    return _conv(2, x, factors, bias, stride, padding, dilation, path)


def conv3d(
    x: Tensor,
    factors: Factors,
    bias: Tensor | None = None,
    stride: IntOrAxes = 1,
    padding: PaddingArgument = 0,
    dilation: IntOrAxes = 1,
    *,
    path: str | None = None,
) -> Tensor:
    """conv3d(x, K) + bias for the kernel K (O, I, kd, kh, kw) that `factors` stand for.

    x         (B, g I, D, H, W) or (g I, D, H, W); channels_last_3d in, channels_last_3d out
    factors   LowRank, CPFactors, TuckerFactors, KroneckerSum or TTFactors (of the modes
              (0, 4, 3, 2, 1)) of shape (O, I, kd, kh, kw), g = 1; or a Grouped of one of them, of
              shape (O, I, kd, kh, kw) for g groups

    The other arguments and errors as for `conv1d`. Returns (B, O, D', H', W') or (O, D', H', W').
    """
    return _conv(3, x, factors, bias, stride, padding, dilation, path)


def _conv(
    n_axes: int,
    x: Tensor,
    factors: Factors,
    bias: Tensor | None,
    stride: IntOrAxes,
    padding: PaddingArgument,
    dilation: IntOrAxes,
    path: str | None,
) -> Tensor:
    """Checks, and the choice of a path."""
    paths = conv_paths(factors, n_axes)
    out_channels, in_channels, *rest = factors.shape
    kernel = tuple(rest)
    groups = factors.groups if isinstance(factors, Grouped) else 1
    channels = groups * in_channels
    strides = per_axis("stride", stride, 1, n_axes)
    dilations = per_axis("dilation", dilation, 1, n_axes)
    zeros = resolve_padding(padding, kernel, strides, dilations)
    check_input(x, factors)
    if x.ndim not in (n_axes + 1, n_axes + 2):
        raise ShapeError(
            f"x has shape {tuple(x.shape)}; it must be (B, {channels}, {_SIZE[n_axes]}) or "
            f"({channels}, {_SIZE[n_axes]})"
        )
    if x.shape[-n_axes - 1] != channels:
        of = f" ({groups} groups of {in_channels})" if groups > 1 else ""
        raise ShapeError(
            f"x has shape {tuple(x.shape)} and so {x.shape[-n_axes - 1]} channels; the kernel "
            f"takes {channels}{of} (the factors of a convolution with groups are a Grouped)"
        )
    check_bias(bias, out_channels, factors)
    rows = x.shape[0] if x.ndim == n_axes + 2 else 1
    for n in output_sizes(x.shape[-n_axes:], kernel, strides, zeros.total, dilations):
        if n < 1:
            raise ArgumentError(
                f"x has shape {tuple(x.shape)}: with padding={padding!r} and "
                f"dilation={dilations} it is smaller than the {' x '.join(map(str, kernel))} kernel"
            )
        rows *= n
    if path is None:
        from tensorlrf.ops._paths import best_path, bucket
        from tensorlrf.ops._profile import nominal_profile

        path = best_path(factors, bucket(rows), stride=strides, profile=nominal_profile(x.device))
    else:
        check_layer_path(path, paths, factors)
    if zeros.ahead:
        x = F.pad(x, zeros.ahead)
    return run_conv(path, factors, x, bias, strides, zeros.shared, dilations)
