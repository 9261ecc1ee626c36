"""The public functions: a layer on factors, checked, by the path asked for or the fastest known.

They stand above what they choose by: each layer's own file says how a path runs, `_cost.py` what
it costs, `_paths.py` which is fastest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.errors import ArgumentError, ShapeError
from tensorlrf.factors import Factors
from tensorlrf.ops._conv import check_conv, run_conv
from tensorlrf.ops._embedding import embedding_paths, run_embedding
from tensorlrf.ops._linear import linear_paths, run_linear
from tensorlrf.ops._paths import nominal_embedding_path, nominal_path
from tensorlrf.ops._sliding import check_image, fitting_path
from tensorlrf.ops.buckets import bucket
from tensorlrf.ops.checks import check_bias, check_input, check_tensor, padding_row
from tensorlrf.ops.forms.lowering import CONV, EMBEDDING
from tensorlrf.ops.fused import check_layer_path
from tensorlrf.ops.geometry import (
    IntOrAxes,
    PaddingArgument,
    output_sizes,
    per_axis,
    resolve_padding,
)


def linear(
    x: Tensor, factors: Factors, bias: Tensor | None = None, *, path: str | None = None
) -> Tensor:
    """The linear layer x @ W^T + bias for the weight W (m, n) that `factors` stand for.

    Parameters
    ----------
    x : Tensor of shape (..., n)
        Any number of leading dimensions.
    factors : Factors
        Of shape (m, n): LowRank, CPFactors, TuckerFactors, KroneckerSum, TTMatrix, TRFactors,
        BlockLowRank, MonarchFactors or BlastFactors.
    bias : Tensor of shape (m,), optional
    path : str, optional
        "dense" (rebuild W), "chain" (one product a factor); for a TTMatrix of more than two cores
        "fold" (cut in the middle, a Kronecker sum), for TRFactors (each side merged into a matrix),
        for even blocks (all ranks padded, two batched products); for a LowRank and the like on an
        NVIDIA GPU "fused" (one kernel, the intermediate on chip); by default the one that the cost
        model expects to be fastest for this number of rows.

    Returns
    -------
    Tensor of shape (..., m)
        Differentiable in x, bias and every tensor of the factors.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(8, 6), 2)
    >>> x = torch.rand(5, 6)
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(tensorlrf.ops.linear(x, f), x @ f.to_dense().T, atol=1e-5)
    True
    """
    paths = linear_paths(factors)
    m, n = factors.shape
    check_input(x, factors)
    if x.ndim == 0 or x.shape[-1] != n:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}; its last dimension must be in_features = {n}"
        )
    check_bias(bias, m, factors)
    if path is None:
        # Not x.shape[:-1].numel(), which takes a symbolic size for a constant.
        rows = bucket(math.prod(x.shape[:-1]))
        path = nominal_path(factors, paths, rows, None, x.device.type)
    else:
        check_layer_path(path, paths, factors)
    return run_linear(path, factors, x, bias)


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
    """The convolution conv1d(x, K) + bias for the kernel K (O, I, k) that `factors` stand for.

    Parameters
    ----------
    x : Tensor of shape (B, g I, L) or (g I, L)
    factors : Factors
        LowRank, CPFactors, TuckerFactors, KroneckerSum or TTFactors (of the modes (0, 2, 1)) of
        shape (O, I, k), g = 1; or a Grouped of one of them, of shape (O, I, k) for g groups.
    bias : Tensor of shape (O,), optional
    stride, padding, dilation
        As torch.nn.functional.conv1d, "same" and "valid" included; padding may be
        ((before, after),) too.
    path : str, optional
        "dense" (rebuild K) or "chain" (one convolution a factor); by default the one that the cost
        model expects to be fastest for this input.

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
    >>> tensorlrf.ops.conv1d(torch.rand(1, 4, 20), f, padding=((4, 0),)).shape
    torch.Size([1, 8, 20])
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
    """The convolution conv2d(x, K) + bias for the kernel K (O, I, kh, kw) that `factors` stand for.

    Parameters
    ----------
    x : Tensor of shape (B, g I, H, W) or (g I, H, W)
        channels_last in, channels_last out.
    factors : Factors
        LowRank, CPFactors, TuckerFactors, KroneckerSum or TTFactors (of the modes (0, 3, 2, 1)) of
        shape (O, I, kh, kw), g = 1; or a Grouped of one of them, of shape (O, I, kh, kw) for g
        groups.
    bias : Tensor of shape (O,), optional
    stride, padding, dilation
        As torch.nn.functional.conv2d, "same" and "valid" included; padding may be (before, after)
        of each axis too.
    path : str, optional
        "dense" (rebuild K), "chain" (one convolution a factor); CPFactors also have "fold" (kh x 1,
        then 1 x kw) and "fold_depthwise" (1 x 1, depthwise kh x kw, 1 x 1); by default the one that
        the cost model expects to be fastest for this input.

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
    >>> f = tensorlrf.cp(torch.rand(8, 4, 3, 3), 2)
    >>> x = torch.rand(1, 4, 9, 9)
    >>> y = tensorlrf.ops.conv2d(x, f, stride=2, padding=1, path="fold")
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(y, tensorlrf.ops.conv2d(x, f, stride=2, padding=1, path="dense"), atol=1e-4)
    True
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
    """The convolution conv3d(x, K) + bias for the K (O, I, kd, kh, kw) that `factors` stand for.

    Parameters
    ----------
    x : Tensor of shape (B, g I, D, H, W) or (g I, D, H, W)
        channels_last_3d in, channels_last_3d out.
    factors : Factors
        LowRank, CPFactors, TuckerFactors, KroneckerSum or TTFactors (of the modes (0, 4, 3, 2, 1))
        of shape (O, I, kd, kh, kw), g = 1; or a Grouped of one of them, of shape (O, I, kd, kh, kw)
        for g groups.
    bias, stride, padding, dilation, path
        As for `conv1d`.

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
    >>> f = tensorlrf.svd(torch.rand(8, 4, 3, 3, 3), 2)
    >>> tensorlrf.ops.conv3d(torch.rand(4, 5, 6, 7), f, padding="same").shape
    torch.Size([8, 5, 6, 7])
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
    check_conv(factors, n_axes)
    kernel = factors.shape[2:]
    strides = per_axis("stride", stride, 1, n_axes)
    dilations = per_axis("dilation", dilation, 1, n_axes)
    zeros = resolve_padding(padding, kernel, strides, dilations)
    check_image(x, factors, bias)
    sizes = output_sizes(x.shape[-n_axes:], kernel, strides, zeros.total, dilations)
    for n in sizes:
        if n < 1:
            raise ArgumentError(
                f"x has shape {tuple(x.shape)}: with padding={padding!r} and "
                f"dilation={dilations} it is smaller than the {' x '.join(map(str, kernel))} kernel"
            )
    path = fitting_path(CONV, path, factors, x, sizes, strides)
    if zeros.ahead:
        x = F.pad(x, zeros.ahead)
    return run_conv(path, factors, x, bias, strides, zeros.shared, dilations)


def embedding(
    indices: Tensor,
    factors: Factors,
    *,
    padding_idx: int | None = None,
    path: str | None = None,
) -> Tensor:
    """The rows `indices` of the table W (n, d) that `factors` stand for.

    Parameters
    ----------
    indices : Tensor of shape (...)
        Of int32 or int64, each from 0 up to n.
    factors : Factors
        Of shape (n, d): LowRank, CPFactors, TuckerFactors or TTMatrix.
    padding_idx : int, optional
        What is looked up at this row has no gradient, as in torch.nn.functional.embedding; below
        zero it counts from the end. The row itself may change, since it shares all factors but one
        with the others.
    path : str, optional
        "dense" (rebuild W), "chain" (gather from the factor of the rows, then one product a factor;
        of a train the slices of every core), on an NVIDIA GPU "fused" (both in one kernel; a train
        is cut in two); by default the one that the cost model expects to be fastest for this number
        of indices.

    Returns
    -------
    Tensor of shape (..., d)
        Differentiable in every tensor of the factors.

    Raises
    ------
    ShapeError, ArgumentError, UnsupportedError
        Where these do not fit together.
    IndexError
        For an index out of range on a CPU; on a GPU it stops the device, as with
        torch.nn.functional.embedding.

    Examples
    --------
    >>> f = tensorlrf.svd(torch.rand(100, 16), 4)
    >>> rows = tensorlrf.ops.embedding(torch.tensor([3, 99]), f)
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(rows, f.to_dense()[[3, 99]], atol=1e-5)
    True
    """
    paths = embedding_paths(factors)
    n, _ = factors.shape
    if not isinstance(indices, Tensor) or indices.dtype not in (torch.int32, torch.int64):
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise ArgumentError(f"indices is {got}; it must be a tensor of int32 or int64")
    check_tensor(indices, "indices")
    if indices.device != factors.device:
        raise ArgumentError(
            f"indices is on {indices.device}, the factors on {factors.device}; move one of them "
            "with .to()"
        )
    padding_idx = padding_row(padding_idx, n)
    if path is None:
        rows = bucket(indices.numel())
        path = nominal_embedding_path(factors, paths, rows, indices.device.type)
    else:
        check_layer_path(path, paths, factors, EMBEDDING)
    return run_embedding(path, factors, indices, padding_idx)
