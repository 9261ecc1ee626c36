"""y = activation(conv2d(x, K) + bias) for a kernel K of R rank-one terms, and what its gradients
need.

x (B, C, H, W), in_factor (C, R), kh (KH, R), kw (KW, R), weights (R,), out_factor (N, R),
bias (N,); y (B, N, P, Q) and u (B, R, P, Q) in channels_last.
"""

import triton
import triton.language as tl

from tensorlrf_kernels._tile import addresses, expand


@triton.jit
def forward(
    x, in_factor, kh_factor, kw_factor, weights, out_factor, bias, y, u,
    C, H, W, P, Q, N, R, DOWN, ACROSS,
    x_image, x_channel, x_row, x_column,
    in_row, in_col, kh_row, kh_col, kw_row, kw_col, out_row, out_col,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    KH: tl.constexpr, KW: tl.constexpr,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
    EXPAND: tl.constexpr,
):  # fmt: skip
    """A program has BH rows of the output and BW columns of the input, and BR of the ranks. It sums
    s = kh * (x in_factor) over the vertical taps, for which x is loaded anew; then u = weights * kw
    * s over the horizontal ones, which are on chip already.

    DOWN, ACROSS  tiles of an image; those side by side overlap by what the taps reach over
    EXPAND        1: u is the whole rank (R <= BR), and expanded to y; 0: u itself is stored
    """
    # Programs of one tile run side by side, so that x comes from the cache for all but one.
    blocks = tl.cdiv(R, BR)
    tile = tl.program_id(0) // blocks
    image = tile // (DOWN * ACROSS)
    first = (tile // ACROSS) % DOWN * BH  # row of the output
    reach = (KW - 1) * dilation_w
    columns_out = (BW - 1 - reach) // stride_w + 1  # of a tile
    begin = tile % ACROSS * columns_out  # column of the output

    places = tl.arange(0, BH * BW)
    p = first + places // BW
    across = places % BW
    column = begin * stride_w - pad_w + across  # of the input
    ranks = tl.program_id(0) % blocks * BR + tl.arange(0, BR)
    rank_in = ranks < R
    there = (p < P) & (column >= 0) & (column < W)
    origin = image.to(tl.int64) * x_image + column.to(tl.int64) * x_column

    s = tl.zeros((BH * BW, BR), dtype=tl.float32)
    for i in tl.static_range(KH):
        row = p * stride_h - pad_h + i * dilation_h
        inside = there & (row >= 0) & (row < H)
        start = origin + row.to(tl.int64) * x_row
        t = tl.zeros((BH * BW, BR), dtype=tl.float32)
        for k in range(0, C, BK):
            channels = k + tl.arange(0, BK)
            a = tl.load(
                x + start[:, None] + channels[None, :] * x_channel,
                mask=inside[:, None] & (channels < C)[None, :], other=0.0,
            )  # fmt: skip
            b = tl.load(
                addresses(in_factor, channels, in_row, ranks, in_col),
                mask=(channels < C)[:, None] & rank_in[None, :], other=0.0,
            )  # fmt: skip
            t = tl.dot(a, b, t, input_precision=PRECISION)  # (places, BR)
        tap = tl.load(kh_factor + i * kh_row + ranks * kh_col, mask=rank_in, other=0.0)
        s += t * tap.to(tl.float32)[None, :]

    gathered = tl.zeros((BH * BW, BR), dtype=tl.float32)
    for j in tl.static_range(KW):
        # Of columns beyond the tile's own the value is of no account: they are not stored.
        source = tl.minimum(across * stride_w + j * dilation_w, BW - 1) + places // BW * BW
        moved = tl.gather(s, tl.broadcast_to(source[:, None], (BH * BW, BR)), 0)
        tap = tl.load(kw_factor + j * kw_row + ranks * kw_col, mask=rank_in, other=0.0)
        gathered += moved * tap.to(tl.float32)[None, :]
    scale = tl.load(weights + ranks, mask=rank_in, other=0.0)
    gathered *= scale.to(tl.float32)[None, :]

    q = begin + across
    mine = (p < P) & (across < columns_out) & (q < Q)
    rows = (image * P + p) * Q + q
    if EXPAND == 0:
        tl.store(
            addresses(u, rows, R, ranks, 1), gathered.to(u.dtype.element_ty),
            mask=mine[:, None] & rank_in[None, :],
        )  # fmt: skip
    else:
        M = (image + 1) * P * Q  # no row of this tile is beyond
        expand(
            gathered, out_factor, bias, y, rows, mine, 0, N, M, N, R, out_row, out_col,
            x.dtype.element_ty, ACTIVATION, BIAS, PRECISION, BN, BR,
        )  # fmt: skip


@triton.jit
def taps_backward(
    t, du, kh_factor, kw_factor, weights, dt, parts,
    B, H, W, P, Q, R,
    kh_row, kh_col, kw_row, kw_col,
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    KH: tl.constexpr, KW: tl.constexpr, WANT_T: tl.constexpr, WANT_PARTS: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, CHUNK: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """From du (B, R, P, Q), both in channels_last with t = x in_factor (B, R, H, W):

    dt     (B, R, H, W): weights * kh[i] * kw[j] * du summed over the taps that a place of x meets
    parts  (chunks, KH * KW, R) float32: du * t summed over the places of a chunk, for each tap;
           the gradients of kh, kw and weights are sums over them. TAPS >= KH * KW

    A program has a chunk of CHUNK places of x and BR of the ranks. Every place of x meets a place
    of the output at a tap at most once, so each product is made in one chunk alone.
    """
    blocks = tl.cdiv(R, BR)
    chunk = tl.program_id(0) // blocks
    ranks = tl.program_id(0) % blocks * BR + tl.arange(0, BR)
    rank_in = ranks < R
    taps = tl.arange(0, TAPS)
    total = tl.zeros((TAPS, BR), dtype=tl.float32)
    scale = tl.load(weights + ranks, mask=rank_in, other=0.0).to(tl.float32)
    places = B * H * W
    for m in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, places), BM):
        rows = m + tl.arange(0, BM)
        row_in = rows < places
        image, place = rows // (H * W), rows % (H * W)
        h, w = place // W, place % W
        inside = row_in[:, None] & rank_in[None, :]
        here = tl.load(addresses(t, rows, R, ranks, 1), mask=inside, other=0.0).to(tl.float32)
        grown = tl.zeros((BM, BR), dtype=tl.float32)
        for i in tl.static_range(KH):
            down = h + pad_h - i * dilation_h
            vertical = tl.load(kh_factor + i * kh_row + ranks * kh_col, mask=rank_in, other=0.0)
            for j in tl.static_range(KW):
                side = w + pad_w - j * dilation_w
                p, q = down // stride_h, side // stride_w
                meets = (down >= 0) & (down % stride_h == 0) & (p < P)
                meets = meets & (side >= 0) & (side % stride_w == 0) & (q < Q)
                g = tl.load(
                    addresses(du, (image * P + p) * Q + q, R, ranks, 1),
                    mask=inside & meets[:, None], other=0.0,
                ).to(tl.float32)  # fmt: skip
                if WANT_T:
                    horizontal = tl.load(
                        kw_factor + j * kw_row + ranks * kw_col, mask=rank_in, other=0.0
                    )
                    grown += g * (vertical.to(tl.float32) * horizontal.to(tl.float32))[None, :]
                if WANT_PARTS:
                    summed = tl.sum(g * here, axis=0)
                    total += tl.where((taps == i * KW + j)[:, None], summed[None, :], 0.0)
        if WANT_T:
            tl.store(
                addresses(dt, rows, R, ranks, 1), (grown * scale[None, :]).to(dt.dtype.element_ty),
                mask=inside,
            )  # fmt: skip
    if WANT_PARTS:
        of_chunk = chunk.to(tl.int64) * (KH * KW) + taps
        tl.store(
            addresses(parts, of_chunk, R, ranks, 1), total,
            mask=(taps < KH * KW)[:, None] & rank_in[None, :],
        )  # fmt: skip
