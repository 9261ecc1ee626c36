"""y = activation(expand(conv2d(x, core)) + bias), the intermediate t = conv2d(x, core) on chip.

x (B, C, H, W), core (R, C, KH, KW), out_factor (N, R), bias (N,), y (B, N, P, Q) in channels_last.
"""

import triton
import triton.language as tl

from tensorlrf_kernels._tile import expand


@triton.jit
def forward(
    x, core, out_factor, bias, y,
    B, C, H, W, P, Q, N, R,
    x_image, x_channel, x_row, x_column,
    core_rank, core_channel, core_row, core_column, out_row, out_col,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    KH: tl.constexpr, KW: tl.constexpr,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A program holds t for BM positions of the output and the whole rank (R <= BR), summed over
    taps and BK channels at a time, and expands it to one of SPLIT ranges of the N channels."""
    program = tl.program_id(0)
    rows = (program // SPLIT) * BM + tl.arange(0, BM)  # (image, p, q) as one number
    M = B * P * Q
    row_in = rows < M
    image, place = rows // (P * Q), rows % (P * Q)
    top = (place // Q) * stride_h - pad_h
    side = (place % Q) * stride_w - pad_w
    # Of the first tap, which may lie in the padding.
    origin = image.to(tl.int64) * x_image + top.to(tl.int64) * x_row + side.to(tl.int64) * x_column
    ranks = tl.arange(0, BR)
    rank_in = ranks < R

    shrunk = tl.zeros((BM, BR), dtype=tl.float32)
    blocks = tl.cdiv(C, BK)
    for step in range(KH * KW * blocks):
        tap, block = step // blocks, step % blocks
        down, right = (tap // KW) * dilation_h, (tap % KW) * dilation_w
        inside = (top + down >= 0) & (top + down < H) & (side + right >= 0) & (side + right < W)
        channels = block * BK + tl.arange(0, BK)
        channel_in = channels < C
        moved = origin + down * x_row + right * x_column
        a = tl.load(
            x + moved[:, None] + channels[None, :] * x_channel,
            mask=(inside & row_in)[:, None] & channel_in[None, :], other=0.0,
        )  # fmt: skip
        here = (tap // KW) * core_row + (tap % KW) * core_column
        b = tl.load(
            core + here + channels[:, None] * core_channel + ranks[None, :] * core_rank,
            mask=channel_in[:, None] & rank_in[None, :], other=0.0,
        )  # fmt: skip
        shrunk = tl.dot(a, b, shrunk, input_precision=PRECISION)  # (BM, BR)

    part = program % SPLIT
    width = tl.cdiv(tl.cdiv(N, BN), SPLIT) * BN
    expand(
        shrunk, out_factor, bias, y, rows, row_in,
        part * width, tl.minimum((part + 1) * width, N), M, N, R, out_row, out_col,
        x.dtype.element_ty, ACTIVATION, BIAS, PRECISION, BN, BR,
    )  # fmt: skip
