"""The two-dimensional convolution on factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, ShapeError, UnsupportedError
from tensorlrf.factors import CPFactors, Factors, LowRank, TuckerFactors
from tensorlrf.factors._tucker import mode_product
from tensorlrf.ops._check import check_bias, check_input, check_path
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops._geometry import Pair, output_size, pair, resolve_padding
from tensorlrf_kernels._pointwise import is_channels_last, pointwise
from tensorlrf_kernels.cp_conv2d import cp_conv2d
from tensorlrf_kernels.tucker_conv2d import tucker_conv2d


def conv2d_paths(factors: Factors) -> tuple[str, ...]:
    """The paths by which a convolution can run on these factors.

    Raises UnsupportedError for a format that has none, ShapeError where the factors do not stand
    for a kernel (out_channels, in_channels, kh, kw).
    """
    if not isinstance(factors, (LowRank, CPFactors, TuckerFactors)):
        raise UnsupportedError(
            f"factors is a {type(factors).__name__}; a convolution runs on LowRank, CPFactors and "
            "TuckerFactors, so use factors.to_dense() with torch.nn.functional.conv2d"
        )
    if len(factors.shape) != 4:
        raise ShapeError(
            f"factors stand for a tensor of shape {factors.shape}; the kernel of a convolution is "
            "(out_channels, in_channels, kh, kw)"
        )
    if isinstance(factors, CPFactors):
        return ("dense", "chain", "fold", "fold_depthwise")
    return ("dense", "chain")


def run_conv2d(
    path: str,
    factors: Factors,
    x: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair | str = (0, 0),
    dilation: Pair = (1, 1),
) -> Tensor:
    """`conv2d` by a given path, without checks: for layers that made theirs when they were built.

    x (B, I, H, W) or (I, H, W); returns (B, O, H', W') or (O, H', W').
    """
    if x.ndim == 3:
        return run_conv2d(path, factors, x[None], bias, stride, padding, dilation)[0]
    if isinstance(padding, str):
        kernel = (factors.shape[2], factors.shape[3])
        padding, excess = resolve_padding(padding, kernel, stride, dilation)
        if excess != (0, 0):
            x = F.pad(x, (0, excess[1], 0, excess[0]))
    if path == "dense":
        weight = dense_weight(factors, channels_last=is_channels_last(x))
        return F.conv2d(x, weight, bias, stride, padding, dilation)
    if isinstance(factors, CPFactors):
        if path == "fold":
            return _fold(factors, x, bias, stride, padding, dilation)
        if path == "fold_depthwise":
            return _fold_depthwise(factors, x, bias, stride, padding, dilation)
        O, I, kh, kw = factors.factors
        return cp_conv2d(x, O, I, kh, kw, factors.weights, bias, stride, padding, dilation)
    if isinstance(factors, LowRank):
        core = factors.right.reshape(factors.rank, *factors.shape[1:])  # (r, I, kh, kw)
        return tucker_conv2d(x, core, factors.left, None, bias, stride, padding, dilation)
    assert isinstance(factors, TuckerFactors)
    core = factors.core
    given = dict(zip(factors.modes, factors.factors, strict=True))
    for k in (2, 3):
        if k in given:
            core = mode_product(core, given[k], k)
    return tucker_conv2d(x, core, given.get(0), given.get(1), bias, stride, padding, dilation)


def _fold(
    factors: CPFactors, x: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Two convolutions: the input factor merged with the vertical one, kh x 1 from I to r, and
    the horizontal with the output factor, 1 x kw from r to O."""
    out_factor, in_factor, kh_factor, kw_factor = factors.factors
    vertical = in_factor.T[:, :, None] * (kh_factor * factors.weights).T[:, None, :]  # (r, I, kh)
    horizontal = out_factor[:, :, None] * kw_factor.T  # (O, r, kw)
    # A weight in channels_last would turn the result so, whatever the input.
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    vertical = vertical[..., None].contiguous(memory_format=layout)
    horizontal = horizontal[:, :, None].contiguous(memory_format=layout)
    t = F.conv2d(
        x, vertical, None, (stride[0], 1), (padding[0], 0), (dilation[0], 1)
    )  # (B, r, H', W)
    return F.conv2d(t, horizontal, bias, (1, stride[1]), (0, padding[1]), (1, dilation[1]))


def _fold_depthwise(
    factors: CPFactors, x: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """Three convolutions, 1 x 1, depthwise kh x kw, 1 x 1: the two kernel factors merged."""
    out_factor, in_factor, kh_factor, kw_factor = factors.factors
    depthwise = (kh_factor * factors.weights).T[:, :, None] * kw_factor.T[:, None, :]  # (r, kh, kw)
    t = pointwise(x, in_factor.T, channels_last=True)  # (B, r, H, W)
    t = F.conv2d(t, depthwise[:, None], None, stride, padding, dilation, groups=factors.rank)
    return pointwise(t, out_factor, bias, channels_last=is_channels_last(x))


def conv2d(
    x: Tensor,
    factors: Factors,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    path: str | None = None,
) -> Tensor:
    """conv2d(x, K) + bias for the kernel K (O, I, kh, kw) that `factors` stand for.

    x         (B, I, H, W) or (I, H, W); channels_last in, channels_last out
    factors   LowRank, CPFactors or TuckerFactors of shape (O, I, kh, kw)
    bias      (O,)
    stride, padding, dilation  as torch.nn.functional.conv2d, "same" and "valid" included
    path      "dense" (rebuild K), "chain" (one convolution a factor); CPFactors also have "fold"
              (kh x 1, then 1 x kw) and "fold_depthwise" (1 x 1, depthwise kh x kw, 1 x 1); by
              default the one that the cost model expects to be fastest for this input

    Returns (B, O, H', W') or (O, H', W'). Differentiable in x, bias and every tensor of the
    factors. There are no groups: I is the number of channels of x.
    Raises ShapeError, ArgumentError or UnsupportedError where these do not fit together.
    """
    paths = conv2d_paths(factors)
    out_channels, in_channels, kh, kw = factors.shape
    stride, dilation = pair("stride", stride, 1), pair("dilation", dilation, 1)
    zeros = resolve_padding(padding, (kh, kw), stride, dilation)
    check_input(x, factors)
    if x.ndim not in (3, 4):
        raise ShapeError(
            f"x has shape {tuple(x.shape)}; it must be (B, {in_channels}, H, W) or "
            f"({in_channels}, H, W)"
        )
    if x.shape[-3] != in_channels:
        raise ShapeError(
            f"x has shape {tuple(x.shape)} and so {x.shape[-3]} channels; the kernel takes "
            f"{in_channels} (a convolution with groups must be factored one group at a time)"
        )
    check_bias(bias, out_channels, factors)
    height, width = (
        output_size(
            x.shape[k - 2],
            (kh, kw)[k],
            stride[k],
            2 * zeros.each_side[k] + zeros.excess[k],
            dilation[k],
        )
        for k in (0, 1)
    )
    if height < 1 or width < 1:
        raise ArgumentError(
            f"x has shape {tuple(x.shape)}: with padding={padding!r} and dilation={dilation} it is "
            f"smaller than the {kh} x {kw} kernel"
        )
    given_padding = padding if isinstance(padding, str) else zeros.each_side
    if path is None:
        from tensorlrf.ops._paths import best_path, bucket
        from tensorlrf.ops._profile import nominal_profile

        batch = x.shape[0] if x.ndim == 4 else 1
        rows, profile = bucket(batch * height * width), nominal_profile(x.device)
        path = best_path(factors, rows, stride=stride, profile=profile)
    else:
        check_path(path, paths)
    return run_conv2d(path, factors, x, bias, stride, given_padding, dilation)
