"""Convolution whose kernel is a small kernel between channel projections: the op, and how it is
dispatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._activation import check_activation
from tensorlrf_kernels._check import check_operands
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.geometry import Geometry, Pair, check_geometry, empty_image
from tensorlrf_kernels.launches import HAS_TRITON, say_once
from tensorlrf_kernels.lowrank_linear.launch import MOST_PREFILL_RANK
from tensorlrf_kernels.pointwise import is_channels_last, pointwise
from tensorlrf_kernels.tucker_conv2d import fused, reference

__all__ = ["tucker_conv2d"]


def tucker_conv2d(
    x: Tensor,
    core: Tensor,
    out_factor: Tensor | None,
    in_factor: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    activation: str | None = None,
) -> Tensor:
    """`activation(conv2d(x, K) + bias)` for a Tucker-2 kernel K.

    `K[o, i, p, q]` is the sum over a, b of `core[a, b, p, q] out[o, a] in[i, b]`. From the core on
    in one kernel on an NVIDIA GPU. Differentiable once, by library convolutions that make the
    intermediate anew.

    Parameters
    ----------
    x : Tensor of shape (B, I, H, W)
    core : Tensor of shape (r_out, r_in, kh, kw)
    out_factor : Tensor of shape (O, r_out), or None
        None for the identity: then library convolutions run.
    in_factor : Tensor of shape (I, r_in), or None
        A library product, or None for the identity: the SVD form, kh x kw into r_out channels and
        1 x 1 out of them.
    bias : Tensor of shape (O,), optional
    stride, padding, dilation : pair of int
        Of rows and columns.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}

    Returns
    -------
    Tensor of shape (B, O, H', W')
        In the memory format of x.

    Raises
    ------
    ValueError
        Where shapes, dtypes, devices, geometry or the activation do not fit together.

    Notes
    -----
    The kernel works in channels_last: an x in the default format is copied, and so is the result.
    Sums are made in float32; float32 operands are multiplied in TF32 where torch's own switch for
    matrix products allows it.

    Library convolutions run in its place on a CPU, in float64, beyond rank 256, 7 taps or a stride
    or dilation of 4, and where the kernel does not compile.

    Examples
    --------
    >>> from tensorlrf_kernels.tucker_conv2d import tucker_conv2d
    >>> f = tensorlrf.tucker(torch.rand(8, 4, 3, 3), (3, 2), modes=(0, 1))
    >>> x = torch.rand(1, 4, 9, 9)
    >>> y = tucker_conv2d(x, f.core, *f.factors, padding=(1, 1))
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(y, torch.nn.functional.conv2d(x, f.to_dense(), padding=1), atol=1e-4)
    True
    """
    geometry = Geometry.of(stride, padding, dilation)
    if out_factor is None or x.device.type != "cuda":
        return reference.tucker_conv2d(
            x, core, out_factor, in_factor, bias, *geometry, activation=activation
        )
    t = x if in_factor is None else pointwise(x, in_factor.T, channels_last=True)  # (B, r_in, H, W)
    given = (t, core, out_factor, bias)
    differentiated = torch.is_grad_enabled() and any(
        one is not None and one.requires_grad for one in given
    )
    op = torch.ops.tensorlrf.tucker_conv2d
    y: Tensor = call(op, *given, *geometry, activation, differentiated=differentiated)
    return y if is_channels_last(x) else y.contiguous()


def _check(
    x: Tensor,
    core: Tensor,
    out_factor: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str | None,
) -> Pair:
    """The size of the output."""
    check_operands(
        x=(x, "bchw"), core=(core, "rcij"), out_factor=(out_factor, "or"), bias=(bias, "o")
    )
    check_activation(activation)
    return check_geometry(x, (core.shape[2], core.shape[3]), geometry)


def _forward_reference(
    x: Tensor,
    core: Tensor,
    out_factor: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
) -> Tensor:
    geometry = Geometry.of(stride, padding, dilation)
    _check(x, core, out_factor, bias, geometry, activation)
    y = reference.tucker_conv2d(x, core, out_factor, None, bias, *geometry, activation=activation)
    return y.contiguous(memory_format=torch.channels_last)


def _forward_cuda(
    x: Tensor,
    core: Tensor,
    out_factor: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
) -> Tensor:
    geometry = Geometry.of(stride, padding, dilation)
    size = _check(x, core, out_factor, bias, geometry, activation)
    shift = None if bias is None else bias.contiguous()
    y = fused.forward(x, core, out_factor, shift, geometry, size, activation)
    if y is not None:
        return y
    if HAS_TRITON and out_factor.shape[1] > MOST_PREFILL_RANK:
        say_once(
            f"tucker_conv2d: rank {out_factor.shape[1]} is above {MOST_PREFILL_RANK}, the largest "
            "that stays on chip; library convolutions run in its place"
        )
    return _forward_reference(x, core, out_factor, bias, stride, padding, dilation, activation)


def _forward_fake(
    x: Tensor,
    core: Tensor,
    out_factor: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
) -> Tensor:
    geometry = Geometry.of(stride, padding, dilation)
    size = _check(x, core, out_factor, bias, geometry, activation)
    return empty_image(x, out_factor.shape[0], size)


def _backward_library(
    dy: Tensor,
    x: Tensor,
    core: Tensor,
    out_factor: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    found = reference.tucker_conv2d_backward(
        dy, x, core, out_factor, bias, stride, padding, dilation, activation, needed
    )
    return tuple(dy.new_empty(0) if g is None else g for g in found)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    core: Tensor,
    out_factor: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    like = (x, core, out_factor, out_factor[:, 0])
    made = (
        torch.empty_like(t) if need else dy.new_empty(0)
        for t, need in zip(like, needed, strict=True)
    )
    return tuple(made)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, core, out_factor, bias, *ctx.geometry, ctx.activation = inputs
    ctx.save_for_backward(x, core, out_factor, bias if ctx.activation is not None else None)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:4])
    found = torch.ops.tensorlrf.tucker_conv2d_backward(
        dy, *ctx.saved_tensors, *ctx.geometry, ctx.activation, needed
    )
    gradients = (g if need else None for g, need in zip(found, needed, strict=True))
    return (*gradients, None, None, None, None)


define(
    "tucker_conv2d(Tensor x, Tensor core, Tensor out_factor, Tensor? bias, int[2] stride, "
    "int[2] padding, int[2] dilation, str? activation) -> Tensor",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
    autocast=True,
)
define(
    "tucker_conv2d_backward(Tensor dy, Tensor x, Tensor core, Tensor out_factor, Tensor? bias, "
    "int[2] stride, int[2] padding, int[2] dilation, str? activation, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_library,
    cuda=_backward_library,
    fake=_backward_fake,
)
differentiate("tucker_conv2d", _backward, _setup_context)
refuse_gradients("tucker_conv2d_backward", "tucker_conv2d")
