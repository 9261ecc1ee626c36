"""The plain torch meaning of `cp_conv2d`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate
from tensorlrf_kernels._pointwise import is_channels_last, pointwise


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
