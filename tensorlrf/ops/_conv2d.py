"""The convolution in two axes on the factors of one group, with the folds of a CP kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.factors import CPFactors, Factors, Grouped, LowRank, TuckerFactors
from tensorlrf.factors.algebra import mode_product
from tensorlrf.ops._convnd import run_convnd
from tensorlrf.ops._dense import dense_weight
from tensorlrf.ops.geometry import Pair, resolve_padding
from tensorlrf_kernels.cp_conv2d import cp_conv2d
from tensorlrf_kernels.cp_conv2d import reference as cp_chain
from tensorlrf_kernels.pointwise import is_channels_last, pointwise
from tensorlrf_kernels.tucker_conv2d import reference as tucker_chain
from tensorlrf_kernels.tucker_conv2d import tucker_conv2d


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
    if isinstance(factors, Grouped):
        return run_convnd(path, factors, x, bias, stride, padding, dilation)
    if x.ndim == 3:
        return run_conv2d(path, factors, x[None], bias, stride, padding, dilation)[0]
    if isinstance(padding, str):
        zeros = resolve_padding(padding, factors.shape[2:], stride, dilation)
        vertical, horizontal = zeros.shared
        padding = (vertical, horizontal)
        if zeros.ahead:
            x = F.pad(x, zeros.ahead)
    if path == "dense":
        weight = dense_weight(factors, channels_last=is_channels_last(x))
        return F.conv2d(x, weight, bias, stride, padding, dilation)
    if isinstance(factors, CPFactors):
        if path == "fold":
            return _fold(factors, x, bias, stride, padding, dilation)
        if path == "fold_depthwise":
            return _fold_depthwise(factors, x, bias, stride, padding, dilation)
        O, I, kh, kw = factors.factors
        cp = cp_conv2d if path == "fused" else cp_chain.cp_conv2d
        return cp(x, O, I, kh, kw, factors.weights, bias, stride, padding, dilation)
    tucker = tucker_conv2d if path == "fused" else tucker_chain.tucker_conv2d
    if isinstance(factors, LowRank):
        core = factors.right.reshape(factors.rank, *factors.shape[1:])  # (r, I, kh, kw)
        return tucker(x, core, factors.left, None, bias, stride, padding, dilation)
    assert isinstance(factors, TuckerFactors)
    core = factors.core
    given = dict(zip(factors.modes, factors.factors, strict=True))
    for k in (2, 3):
        if k in given:
            core = mode_product(core, given[k], k)
    return tucker(x, core, given.get(0), given.get(1), bias, stride, padding, dilation)


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
