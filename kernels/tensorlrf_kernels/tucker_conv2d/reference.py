"""The plain torch meaning of `tucker_conv2d`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate
from tensorlrf_kernels._pointwise import is_channels_last, pointwise


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
