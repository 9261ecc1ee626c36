"""y[f, r] = sum over o, a, b of tensor[f, o, a, b] outer[o, r] left[a, r] right[b, r], the
Khatri-Rao product of the three made a tile at a time in registers.

f = (p, q) of P blocks with Q rows each; k = (a, b) is the K dimension of the products, b fastest;
outer (O, R), left (K / B, R), right (B, R), none of which reaches over 2^31 entries.
"""

import triton
import triton.language as tl

from tensorlrf_kernels._tile import addresses


@triton.jit
def halves(x):
    """x as the nearest number with TF32's 11 bits, ties away from zero, and the rest.

    The rest has at most 13 bits, of which the tensor cores read the first 11.
    """
    bits = x.to(tl.int32, bitcast=True)
    high = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def add_product(total, x, f, PRECISION: tl.constexpr):
    """total + x f; in "tf32x3" as three products of TF32, the small ones first."""
    if PRECISION == "tf32x3":
        x_high, x_low = halves(x)
        f_high, f_low = halves(f)
        total = tl.dot(x_low, f_high, total, input_precision="tf32")
        total = tl.dot(x_high, f_low, total, input_precision="tf32")
        total = tl.dot(x_high, f_high, total, input_precision="tf32")
    else:
        total = tl.dot(x, f, total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
def contract(
    tensor, outer, left, right, y,
    P, Q, K, B, R, TILES, UNITS, SHARE, CHUNKS, STEPS,
    p_step, q_step, o_step, a_step, b_step,
    outer_row, outer_col, left_row, left_col, right_row, right_col,
    OUTER: tl.constexpr, LEFT: tl.constexpr, MERGED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """BM rows and BR columns of one part of the sum, stored to y (parts, P Q, R).

    A unit is one index o and one of CHUNKS ranges of k, each of STEPS tiles; UNITS there are, and
    SHARE of them to a part. The product over a unit is scaled by a row of `outer` and added to the
    total, so that long sums are made in two stages.

    TILES            of rows in a block
    OUTER, LEFT      whether these factors are there
    MERGED           a_step = B b_step, so that k is one dimension of the tensor
    """
    strips = tl.cdiv(R, BR)
    strip = tl.program_id(0) % strips  # those of the same rows run side by side
    tile = (tl.program_id(0) // strips) % (P * TILES)
    split = tl.program_id(0) // (strips * P * TILES)
    block = tile // TILES
    rows = (tile % TILES) * BM + tl.arange(0, BM)
    ranks = strip * BR + tl.arange(0, BR)
    row_in, rank_in = rows < Q, ranks < R
    base = tensor + block.to(tl.int64) * p_step
    first = split * SHARE
    units = tl.minimum(SHARE, UNITS - first)

    TYPE: tl.constexpr = tensor.dtype.element_ty
    total = tl.zeros((BM, BR), dtype=TYPE)
    unit_sum = tl.zeros((BM, BR), dtype=TYPE)
    # One loop over all tiles of all units: loads of the next unit start before this one ends.
    for s in range(units * STEPS):
        unit, step = first + s // STEPS, s % STEPS
        o = (unit // CHUNKS).to(tl.int64)
        k = ((unit % CHUNKS) * STEPS + step) * BK + tl.arange(0, BK)
        k_in = k < K
        inside = row_in[:, None] & k_in[None, :]
        kept = k_in[:, None] & rank_in[None, :]
        if MERGED:
            places = addresses(base + o * o_step, rows, q_step, k, b_step)
        else:
            places = addresses(base + o * o_step, rows, q_step, k // B, a_step)
            places += (k % B).to(tl.int64)[None, :] * b_step
        x = tl.load(places, inside, other=0.0)
        if LEFT:
            f = tl.load(
                right + (k % B)[:, None] * right_row + ranks[None, :] * right_col, kept, other=0.0
            )
            f *= tl.load(
                left + (k // B)[:, None] * left_row + ranks[None, :] * left_col, kept, other=0.0
            )
        else:
            f = tl.load(
                right + k[:, None] * right_row + ranks[None, :] * right_col, kept, other=0.0
            )
        unit_sum = add_product(unit_sum, x, f, PRECISION)  # (BM, BR)
        if step == STEPS - 1:
            if OUTER:
                scale = tl.load(outer + o * outer_row + ranks * outer_col, rank_in, other=0.0)
                total += unit_sum * scale[None, :]
            else:
                total += unit_sum
            unit_sum = tl.zeros((BM, BR), dtype=TYPE)

    place = (split.to(tl.int64) * P + block) * Q + rows
    tl.store(
        addresses(y, place, R, ranks, 1), total, mask=row_in[:, None] & rank_in[None, :]
    )  # fmt: skip
