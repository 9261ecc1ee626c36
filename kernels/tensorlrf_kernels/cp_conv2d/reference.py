"""The plain torch meaning of `cp_conv2d`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate, activate_backward
from tensorlrf_kernels.geometry import Geometry
from tensorlrf_kernels.pointwise import is_channels_last, pointwise


def cp_conv2d(
    x: Tensor,
    out_factor: Tensor,
    in_factor: Tensor,
    kh_factor: Tensor,
    kw_factor: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str | None = None,
) -> Tensor:
    """activation(conv2d(x, K) + bias) for
    K[o, i, p, q] = sum_j weights[j] out[o, j] in[i, j] kh[p, j] kw[q, j].

    x (B, I, H, W), out_factor (O, r), in_factor (I, r), kh_factor (kh, r), kw_factor (kw, r),
    weights (r,), bias (O,); returns (B, O, H', W').
    One convolution a factor: 1 x 1, depthwise kh x 1, depthwise 1 x kw, 1 x 1 (Lebedev et al.
    2015, section 3.2). The intermediates are linear in x, so zero padding may wait for them. They
    are channels_last, in which depthwise convolutions run best; the result is as x is.
    """
    rank = weights.shape[0]
    vertical = (kh_factor * weights).T[:, None, :, None]  # (r, 1, kh, 1)
    horizontal = kw_factor.T[:, None, None, :]  # (r, 1, 1, kw)
    t = pointwise(x, in_factor.T, channels_last=True)  # (B, r, H, W)
    t = F.conv2d(
        t, vertical, None, (stride[0], 1), (padding[0], 0), (dilation[0], 1), groups=rank
    )  # (B, r, H', W)
    t = F.conv2d(
        t, horizontal, None, (1, stride[1]), (0, padding[1]), (1, dilation[1]), groups=rank
    )  # (B, r, H', W')
    y = pointwise(t, out_factor, bias, channels_last=is_channels_last(x))
    return activate(y, activation)


Factors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""out_factor (O, r), in_factor (I, r), kh_factor (kh, r), kw_factor (kw, r), weights (r,)."""

Taps = Callable[[Tensor, Factors, Geometry], Tensor]
"""t (B, r, H, W) to u (B, r, H', W'), the depthwise taps."""

TapsBackward = Callable[
    [Tensor, Tensor, Factors, Geometry, bool, bool], tuple[Tensor | None, Tensor | None]
]
"""t and du to dt (B, r, H, W) and to (kh, kw, r) du * t summed over places, where wanted."""


def taps(t: Tensor, factors: Factors, geometry: Geometry) -> Tensor:
    """u (B, r, H', W') from t (B, r, H, W): the two depthwise convolutions of `cp_conv2d`."""
    _, _, kh, kw, weights = factors
    (sh, sw), (ph, pw), (dh, dw) = geometry
    rank = weights.shape[0]
    u = F.conv2d(t, (kh * weights).T[:, None, :, None], None, (sh, 1), (ph, 0), (dh, 1), rank)
    return F.conv2d(u, kw.T[:, None, None, :], None, (1, sw), (0, pw), (1, dw), rank)


def taps_backward(
    t: Tensor, du: Tensor, factors: Factors, geometry: Geometry, want_t: bool, want_sums: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dt (B, r, H, W), and (kh, kw, r) du * t summed over places: the gradients of one depthwise
    convolution with the outer products of both factors."""
    _, _, kh, kw, weights = factors
    kernel = (kh[:, None] * kw[None] * weights).permute(2, 0, 1)[:, None]  # (r, 1, kh, kw)
    dt, dkernel, _ = torch.ops.aten.convolution_backward(
        du, t, kernel, None, *geometry, False, [0, 0], t.shape[1], [want_t, want_sums, False]
    )
    return dt, dkernel[:, 0].permute(1, 2, 0) if want_sums else None


def cp_conv2d_backward(
    dy: Tensor,
    x: Tensor,
    factors: Factors,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str | None,
    needed: Sequence[bool],
    taps: Taps = taps,
    taps_backward: TapsBackward = taps_backward,
) -> tuple[Tensor | None, ...]:
    """Gradients in x (B, I, H, W), the five factors and the bias, those that are `needed`, from dy
    (B, O, H', W'); what lies between is made anew.

    With t = in^T x, u its taps and z = out u + bias: dz = dy activation'(z), dout = dz u^T, du =
    out^T dz; dt by the taps turned round, dx = in dt, din = x dt^T. With the sums s[p, q] of du * t
    at each tap: dkh[p] = weights sum_q s[p, q] kw[q], dkw likewise, dweights = sum s kh kw.
    """
    out, inp, kh, kw, weights = factors
    need_x, need_out, need_in, need_kh, need_kw, need_weights, need_bias = needed
    want_t, want_sums = need_x or need_in, need_kh or need_kw or need_weights
    t = u = None
    if want_t or want_sums or need_out or activation is not None:
        t = pointwise(x, inp.T, channels_last=True)  # (B, r, H, W)
    if t is not None and (need_out or activation is not None):
        u = taps(t, factors, geometry)  # (B, r, H', W')
    dz = dy
    if activation is not None and u is not None:
        z = pointwise(u, out, bias, channels_last=is_channels_last(dy))
        dz = activate_backward(dy, z, activation)
    dt = sums = None
    if t is not None and (want_t or want_sums):
        du = pointwise(dz, out.T, channels_last=True)
        dt, sums = taps_backward(t, du, factors, geometry, want_t, want_sums)
    dkh = dkw = dweights = None
    if sums is not None:
        down = (sums * kw[None]).sum(1)  # (kh, r)
        dkh = (weights * down).to(kh.dtype) if need_kh else None
        dkw = (weights * (sums * kh[:, None]).sum(0)).to(kw.dtype) if need_kw else None
        dweights = (down * kh).sum(0).to(weights.dtype) if need_weights else None
    return (
        pointwise(dt, inp, channels_last=True) if need_x and dt is not None else None,
        _columns(dz).T @ _columns(u) if need_out and u is not None else None,
        _columns(x).T @ _columns(dt) if need_in and dt is not None else None,
        dkh,
        dkw,
        dweights,
        dz.sum((0, 2, 3)) if need_bias else None,
    )


def _columns(t: Tensor) -> Tensor:
    """(B, C, H, W) as (B H W, C), a view of what is in channels_last."""
    return t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])
