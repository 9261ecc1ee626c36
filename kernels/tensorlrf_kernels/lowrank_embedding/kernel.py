"""y = (left right)[indices], and sums of rows by their index.

indices (M,), left (T, R), right (R, N), y (M, N).
"""

import triton
import triton.language as tl

from tensorlrf_kernels._tile import addresses


@triton.jit
def known(picked, inside, T, TRAP: tl.constexpr):
    """Which of the indices that are `inside` are rows of a table of T.

    TRAP: one that is none ends the kernel, and with it the CUDA context, as torch's own device
    assert does. Triton's device_assert is compiled for debugging alone; its interpreter has no
    assembler, and runs without.
    """
    beyond = (picked < 0) | (picked >= T)
    if TRAP:
        tl.inline_asm_elementwise(
            "{ .reg .pred beyond; setp.ne.s32 beyond, $1, 0; @beyond trap; mov.b32 $0, $1; }",
            "=r,r", [(inside & beyond).to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    return inside & (picked >= 0) & (picked < T)


@triton.jit
def forward(
    indices, left, right, y,
    M, N, T, R,
    left_row, left_col, right_row, right_col,
    TRAP: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A program gathers BM rows of left and multiplies them by one of SPLIT ranges of columns.

    WHOLE: the rank fits one tile (R <= BK), and the rows are gathered once; else BK of the ranks
    at a time, for every BN columns anew.
    """
    program = tl.program_id(0)
    rows = (program // SPLIT) * BM + tl.arange(0, BM)
    row_in = rows < M
    picked = tl.load(indices + rows, mask=row_in, other=0)
    there = known(picked, row_in, T, TRAP)
    ranks = tl.arange(0, BK)
    if WHOLE:
        a = tl.load(
            addresses(left, picked, left_row, ranks, left_col),
            mask=there[:, None] & (ranks < R)[None, :], other=0.0,
        ).to(right.dtype.element_ty)  # fmt: skip

    part = program % SPLIT
    width = tl.cdiv(tl.cdiv(N, BN), SPLIT) * BN
    for n in range(part * width, tl.minimum((part + 1) * width, N), BN):
        columns = n + tl.arange(0, BN)
        column_in = columns < N
        if WHOLE:
            b = tl.load(
                addresses(right, ranks, right_row, columns, right_col),
                mask=(ranks < R)[:, None] & column_in[None, :], other=0.0,
            )  # fmt: skip
            z = tl.dot(a, b, input_precision=PRECISION)  # (BM, BN)
        else:
            z = tl.zeros((BM, BN), dtype=tl.float32)
            for r in range(0, R, BK):
                inner = r + ranks
                a = tl.load(
                    addresses(left, picked, left_row, inner, left_col),
                    mask=there[:, None] & (inner < R)[None, :], other=0.0,
                ).to(right.dtype.element_ty)  # fmt: skip
                b = tl.load(
                    addresses(right, inner, right_row, columns, right_col),
                    mask=(inner < R)[:, None] & column_in[None, :], other=0.0,
                )  # fmt: skip
                z = tl.dot(a, b, z, input_precision=PRECISION)  # (BM, BN)
        tl.store(
            addresses(y, rows, N, columns, 1), z.to(y.dtype.element_ty),
            mask=row_in[:, None] & column_in[None, :],
        )  # fmt: skip


@triton.jit
def _around(keys, tile, M, BM: tl.constexpr):
    """Of a tile of BM sorted keys: the key before it, its last one, and the key behind it; -1 where
    there is none."""
    begin = tile.to(tl.int64) * BM
    end = tl.minimum(begin + BM, M)
    before = tl.load(keys + begin - 1, mask=begin > 0, other=-1)
    return before, tl.load(keys + end - 1), tl.load(keys + end, mask=end < M, other=-1)


@triton.jit
def segments(
    keys, order, values, total, first_parts, last_parts,
    M, C, PADDING,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Rows of values (M, C) added up by their key, in float32.

    keys (M,) are sorted, and order (M,) says where in values each of them was. A program has BM
    keys and BC columns. A sum that lies in its tile alone goes to total (T, C), whose rows are
    zeros where nothing is added; that of PADDING is left out. Of one that came from the tile before
    the part goes to first_parts (tiles, C), of one that goes on behind it to last_parts (tiles, C).
    """
    blocks = tl.cdiv(C, BC)
    tile = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    column_in = columns < C
    place = tl.arange(0, BM)
    positions = tile.to(tl.int64) * BM + place
    inside = positions < M
    key = tl.load(keys + positions, mask=inside, other=-1)
    source = tl.load(order + positions, mask=inside, other=0)
    value = tl.load(
        addresses(values, source, C, columns, 1),
        mask=inside[:, None] & column_in[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    # No product with zeros and ones: what is not finite would reach the sums of other keys.
    same = (key[:, None] == key[None, :])[:, :, None]
    summed = tl.sum(tl.where(same, value[None, :, :], 0.0), axis=1)  # (BM, BC)

    before, _, behind = _around(keys, tile, M, BM)
    # Equal keys lie side by side: what comes from the tile before is its last key.
    head = inside & (tl.load(keys + positions - 1, mask=inside & (place > 0), other=-1) != key)
    begun, finished = key != before, key != behind
    tl.store(
        addresses(total, tl.where(inside, key, 0), C, columns, 1),
        summed.to(total.dtype.element_ty),
        mask=(head & begun & finished & (key != PADDING))[:, None] & column_in[None, :],
    )  # fmt: skip
    # At most one row of the tile is stored by each of these.
    of_tile = tl.where(inside, tile, 0)
    tl.store(
        addresses(first_parts, of_tile, C, columns, 1), summed,
        mask=(head & (key == before))[:, None] & column_in[None, :],
    )  # fmt: skip
    tl.store(
        addresses(last_parts, of_tile, C, columns, 1), summed,
        mask=(head & begun & (key == behind))[:, None] & column_in[None, :],
    )  # fmt: skip


@triton.jit
def carry(
    keys, total, first_parts, last_parts,
    M, C, PADDING,
    BM: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """The sums that reach over several tiles of `segments`, by the program of the tile in which
    they begin: BS of their parts are added up at a time, from the first tile to the last."""
    blocks = tl.cdiv(C, BC)
    tile = tl.program_id(0) // blocks
    columns = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    before, key, behind = _around(keys, tile, M, BM)
    begins = (key == behind) & (key != before) & (key != PADDING)
    column_in = columns < tl.where(begins, C, 0)
    summed = tl.load(last_parts + tile.to(tl.int64) * C + columns, mask=column_in, other=0.0)
    following = tile + 1
    more = begins
    while more:
        tiles = following + tl.arange(0, BS)
        first = tiles.to(tl.int64) * BM
        belongs = (first < M) & (tl.load(keys + first, mask=first < M, other=-1) == key)
        parts = tl.load(
            addresses(first_parts, tiles, C, columns, 1),
            mask=belongs[:, None] & column_in[None, :], other=0.0,
        )  # fmt: skip
        summed += tl.sum(parts, axis=0)
        following += BS
        more = tl.sum(belongs.to(tl.int32), axis=0) == BS
    tl.store(
        total + key.to(tl.int64) * C + columns, summed.to(total.dtype.element_ty), mask=column_in
    )
