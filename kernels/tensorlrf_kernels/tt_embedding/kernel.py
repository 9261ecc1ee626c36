"""Rows of a table that is a tensor train of two cores: y[m] = first[i1] second[i2], flattened, for
the digits i1, i2 of indices[m].

first (n1, D1, R), second (R, N2, D2), y (M, N) with N <= D1 D2.
"""

import triton
import triton.language as tl

from tensorlrf_kernels.lowrank_embedding.kernel import known


@triton.jit
def forward(
    indices, first, second, y,
    M, N, T, N2, D1, D2, R,
    first_row, first_col, first_rank, second_rank, second_row, second_col,
    TRAP: tl.constexpr, PRECISION: tl.constexpr,
    BA: tl.constexpr, BB: tl.constexpr, BR: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """A program makes a tile (BA, BB) of the rows (D1, D2) of EACH indices, of the whole rank
    (R <= BR)."""
    across, down = tl.cdiv(D2, BB), tl.cdiv(D1, BA)
    program = tl.program_id(0)
    group, tile = program // (across * down), program % (across * down)
    a_place = tile // across * BA + tl.arange(0, BA)
    b_place = tile % across * BB + tl.arange(0, BB)
    ranks = tl.arange(0, BR)
    a_in = (a_place < D1)[:, None] & (ranks < R)[None, :]
    b_in = (ranks < R)[:, None] & (b_place < D2)[None, :]
    a_offset = a_place.to(tl.int64)[:, None] * first_col + ranks[None, :] * first_rank
    b_offset = ranks.to(tl.int64)[:, None] * second_rank + b_place[None, :] * second_col
    columns = a_place[:, None] * D2 + b_place[None, :]
    inside = (a_place < D1)[:, None] & (b_place < D2)[None, :]
    first_m = group.to(tl.int64) * EACH
    all_m = first_m + tl.arange(0, EACH)
    every = tl.load(indices + all_m, mask=all_m < M, other=0)
    known(every, all_m < M, T, TRAP)  # for its trap
    for each in range(EACH):
        m = first_m + each
        picked = tl.load(indices + m, mask=m < M, other=0).to(tl.int64)
        # Without a trap what is no row is read as the first one, and stored as NaN.
        valid = (picked >= 0) & (picked < T)
        row = tl.where(valid, picked, 0)
        a = tl.load(first + row // N2 * first_row + a_offset, mask=a_in, other=0.0)
        b = tl.load(second + row % N2 * second_row + b_offset, mask=b_in, other=0.0)
        z = tl.dot(a, b, input_precision=PRECISION)  # (BA, BB)
        tl.store(
            y + m * N + columns, tl.where(valid, z, float("nan")).to(y.dtype.element_ty),
            mask=inside & (columns < tl.where(m < M, N, 0)),
        )  # fmt: skip
