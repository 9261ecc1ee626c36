"""The plain torch meaning of `tucker_conv2d`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate, activate_backward
from tensorlrf_kernels.pointwise import is_channels_last, pointwise


def tucker_conv2d(
    x: Tensor,
    core: Tensor,
    out_factor: Tensor | None,
    in_factor: Tensor | None = None,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    activation: str | None = None,
) -> Tensor:
    """activation(conv2d(x, K) + bias) for
    K[o, i, p, q] = sum_ab core[a, b, p, q] out[o, a] in[i, b].

    x (B, I, H, W), core (r_out, r_in, kh, kw), out_factor (O, r_out), in_factor (I, r_in),
    bias (O,); returns (B, O, H', W').
    Three convolutions, 1 x 1, kh x kw, 1 x 1 (Kim et al. 2016, section 3.2). A factor of None
    stands for the identity: without in_factor this is the SVD form, kh x kw into r, then 1 x 1.
    """
    t = x
    if in_factor is not None:
        # Channels last suits the convolution best, and goes to waste only where it ends the chain.
        inner = out_factor is not None or is_channels_last(x)
        t = pointwise(x, in_factor.T, channels_last=inner)  # (B, r_in, H, W)
    if out_factor is None:
        return activate(F.conv2d(t, core, bias, stride, padding, dilation), activation)
    t = F.conv2d(t, core, None, stride, padding, dilation)  # (B, r_out, H', W')
    y = pointwise(t, out_factor, bias, channels_last=is_channels_last(x))
    return activate(y, activation)


def tucker_conv2d_backward(
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
) -> tuple[Tensor | None, ...]:
    """Gradients in x (B, I, H, W), core (r, I, kh, kw), out_factor (O, r) and the bias, those that
    are `needed`, from dy (B, O, H', W').

    With t = conv2d(x, core), made anew, z = out t + bias and dz = dy activation'(z): dt = out^T dz
    and dout = dz t^T, summed over images and places; the rest is the convolution's own gradient.
    """
    need_x, need_core, need_out, need_bias = needed
    t = None
    if need_out or activation is not None:
        t = F.conv2d(x, core, None, stride, padding, dilation)  # (B, r, H', W')
    dz = dy
    if activation is not None and t is not None:
        z = pointwise(t, out_factor, bias, channels_last=is_channels_last(dy))
        dz = activate_backward(dy, z, activation)
    dx = dcore = None
    if need_x or need_core:
        dt = pointwise(dz, out_factor.T, channels_last=is_channels_last(x))
        dx, dcore, _ = torch.ops.aten.convolution_backward(
            dt, x, core, None, stride, padding, dilation, False, [0, 0], 1,
            [need_x, need_core, False],
        )  # fmt: skip
    return (
        dx,
        dcore,
        _columns(dz).T @ _columns(t) if need_out and t is not None else None,
        dz.sum((0, 2, 3)) if need_bias else None,
    )


def _columns(t: Tensor) -> Tensor:
    """(B, C, H, W) as (B H W, C), a view of what is in channels_last."""
    return t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])
