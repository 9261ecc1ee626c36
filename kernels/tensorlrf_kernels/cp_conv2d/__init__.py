"""Convolution whose kernel is a sum of rank-one tensors: the op, and how it is dispatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorlrf_kernels._activation import activate, check_activation
from tensorlrf_kernels._check import check_operands
from tensorlrf_kernels._library import call, define, differentiate, refuse_gradients
from tensorlrf_kernels.cp_conv2d import fused, reference
from tensorlrf_kernels.geometry import Geometry, Pair, check_geometry, empty_image
from tensorlrf_kernels.pointwise import is_channels_last, pointwise

__all__ = ["cp_conv2d"]


def cp_conv2d(
    x: Tensor,
    out_factor: Tensor,
    in_factor: Tensor,
    kh_factor: Tensor,
    kw_factor: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    activation: str | None = None,
) -> Tensor:
    """`activation(conv2d(x, K) + bias)` for a CP kernel K, in one kernel on an NVIDIA GPU.

    `K[o, i, p, q]` is the sum over j of `weights[j] out[o, j] in[i, j] kh[p, j] kw[q, j]`.
    Differentiable once, in x, the factors, the weights and the bias; all sums of the gradients are
    made in a fixed order.

    Parameters
    ----------
    x : Tensor of shape (B, I, H, W)
    out_factor, in_factor : Tensor of shape (O, r), (I, r)
    kh_factor, kw_factor : Tensor of shape (kh, r), (kw, r)
    weights : Tensor of shape (r,)
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
    Above rank 128, and for few places, it stops behind the taps, and a library product makes y of
    what it left, rounded to the dtype. Sums are made in float32; float32 operands are multiplied in
    TF32 where torch's own switch for matrix products allows it.

    Four library convolutions run in its place on a CPU, in float64, beyond 7 taps or a stride or
    dilation of 4, and where the kernel does not compile.

    Examples
    --------
    >>> from tensorlrf_kernels.cp_conv2d import cp_conv2d
    >>> f = tensorlrf.cp(torch.rand(8, 4, 3, 3), 2)
    >>> x = torch.rand(1, 4, 9, 9)
    >>> y = cp_conv2d(x, *f.factors, f.weights, stride=(2, 2))
    >>> # Both sides sum in float32, each in an order of its own.
    >>> torch.allclose(y, torch.nn.functional.conv2d(x, f.to_dense(), stride=2), atol=1e-4)
    True
    """
    given = (x, out_factor, in_factor, kh_factor, kw_factor, weights, bias)
    geometry = Geometry.of(stride, padding, dilation)
    if x.device.type != "cuda":
        return reference.cp_conv2d(*given, *geometry, activation=activation)
    differentiated = torch.is_grad_enabled() and any(
        one is not None and one.requires_grad for one in given
    )
    op = torch.ops.tensorlrf.cp_conv2d
    y: Tensor = call(op, *given, *geometry, activation, differentiated=differentiated)
    return y if is_channels_last(x) else y.contiguous()


def _check(
    x: Tensor,
    factors: fused.Factors,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str | None,
) -> Pair:
    """The size of the output."""
    out, inp, kh, kw, weights = factors
    check_operands(
        x=(x, "bchw"),
        out_factor=(out, "or"),
        in_factor=(inp, "cr"),
        kh_factor=(kh, "ir"),
        kw_factor=(kw, "jr"),
        weights=(weights, "r"),
        bias=(bias, "o"),
    )
    check_activation(activation)
    return check_geometry(x, (kh.shape[0], kw.shape[0]), geometry)


def _forward_reference(
    x: Tensor,
    out_factor: Tensor,
    in_factor: Tensor,
    kh_factor: Tensor,
    kw_factor: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
) -> Tensor:
    factors = (out_factor, in_factor, kh_factor, kw_factor, weights)
    geometry = Geometry.of(stride, padding, dilation)
    _check(x, factors, bias, geometry, activation)
    y = reference.cp_conv2d(x, *factors, bias, *geometry, activation=activation)
    return y.contiguous(memory_format=torch.channels_last)


def _forward_cuda(
    x: Tensor,
    out_factor: Tensor,
    in_factor: Tensor,
    kh_factor: Tensor,
    kw_factor: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
) -> Tensor:
    factors = (out_factor, in_factor, kh_factor, kw_factor, weights.contiguous())
    geometry = Geometry.of(stride, padding, dilation)
    size = _check(x, factors, bias, geometry, activation)
    shift = None if bias is None else bias.contiguous()
    found = fused.forward(x, factors, shift, geometry, size, activation)
    if found is None:
        y = reference.cp_conv2d(x, *factors, bias, *geometry, activation=activation)
        return y.contiguous(memory_format=torch.channels_last)
    made, whole = found
    if whole:
        return made
    y = activate(pointwise(made, out_factor, bias, channels_last=True), activation)
    return y.contiguous(memory_format=torch.channels_last)


def _forward_fake(
    x: Tensor,
    out_factor: Tensor,
    in_factor: Tensor,
    kh_factor: Tensor,
    kw_factor: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
) -> Tensor:
    factors = (out_factor, in_factor, kh_factor, kw_factor, weights)
    size = _check(x, factors, bias, Geometry.of(stride, padding, dilation), activation)
    return empty_image(x, out_factor.shape[0], size)


def _backward_with(
    taps: reference.Taps,
    taps_backward: reference.TapsBackward,
    dy: Tensor,
    x: Tensor,
    factors: fused.Factors,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    found = reference.cp_conv2d_backward(
        dy, x, factors, bias, geometry, activation, needed, taps, taps_backward
    )
    return tuple(dy.new_empty(0) if g is None else g for g in found)


def _backward_reference(
    dy: Tensor,
    x: Tensor,
    out_factor: Tensor,
    in_factor: Tensor,
    kh_factor: Tensor,
    kw_factor: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    factors = (out_factor, in_factor, kh_factor, kw_factor, weights)
    geometry = Geometry.of(stride, padding, dilation)
    steps = (reference.taps, reference.taps_backward)
    return _backward_with(*steps, dy, x, factors, bias, geometry, activation, needed)


def _backward_cuda(
    dy: Tensor,
    x: Tensor,
    out_factor: Tensor,
    in_factor: Tensor,
    kh_factor: Tensor,
    kw_factor: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    factors = (out_factor, in_factor, kh_factor, kw_factor, weights.contiguous())
    geometry = Geometry.of(stride, padding, dilation)

    def backward(
        t: Tensor, du: Tensor, factors: fused.Factors, geometry: Geometry, want_t: bool, want: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        last = {"memory_format": torch.channels_last}
        t, du = t.contiguous(**last), du.contiguous(**last)
        found = fused.taps_backward(t, du, factors, geometry, want_t=want_t, want_parts=want)
        if found is None:
            return reference.taps_backward(t, du, factors, geometry, want_t, want)
        return found

    steps = (reference.taps, backward)
    return _backward_with(*steps, dy, x, factors, bias, geometry, activation, needed)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    out_factor: Tensor,
    in_factor: Tensor,
    kh_factor: Tensor,
    kw_factor: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str | None,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    sizes = (
        *(t.shape for t in (out_factor, in_factor, kh_factor, kw_factor, weights)),
        out_factor.shape[:1],
    )
    dx = empty_image(x, x.shape[1], (x.shape[2], x.shape[3])) if needed[0] else dy.new_empty(0)
    rest = (
        dy.new_empty(size if need else (0,)) for size, need in zip(sizes, needed[1:], strict=True)
    )
    return (dx, *rest)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *given, bias, stride, padding, dilation, ctx.activation = inputs
    ctx.geometry = (stride, padding, dilation)
    ctx.save_for_backward(*given, bias if ctx.activation is not None else None)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:7])
    found = torch.ops.tensorlrf.cp_conv2d_backward(
        dy, *ctx.saved_tensors, *ctx.geometry, ctx.activation, needed
    )
    gradients = (g if need else None for g, need in zip(found, needed, strict=True))
    return (*gradients, None, None, None, None)


_FACTORS = "Tensor out_factor, Tensor in_factor, Tensor kh_factor, Tensor kw_factor, Tensor weights"
define(
    f"cp_conv2d(Tensor x, {_FACTORS}, Tensor? bias, int[2] stride, int[2] padding, "
    "int[2] dilation, str? activation) -> Tensor",
    cpu=_forward_reference,
    cuda=_forward_cuda,
    fake=_forward_fake,
    autocast=True,
)
define(
    f"cp_conv2d_backward(Tensor dy, Tensor x, {_FACTORS}, Tensor? bias, int[2] stride, "
    "int[2] padding, int[2] dilation, str? activation, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward_reference,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
differentiate("cp_conv2d", _backward, _setup_context)
refuse_gradients("cp_conv2d_backward", "cp_conv2d")
