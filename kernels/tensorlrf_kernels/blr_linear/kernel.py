"""Block matrices in two grouped launches: t = x right^T, and y = activation(t left + dense + bias).

x (M, N_in), t (M, T), y (M, N): what is multiplied with what is read from tables of int32, as
`tables` makes them.
"""

import triton
import triton.language as tl

from tensorlrf_kernels._grid import leave, wait
from tensorlrf_kernels._tile import activate, add_terms, addresses, narrow, slope


@triton.jit
def shrink_tile(
    task, first_row, x, right, place, t, M, T, x_row, x_col,
    ADJACENT: tl.constexpr, ALIGN: tl.constexpr, RANKS: tl.constexpr, RUN: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BM rows of an interval of x times BR ranks of a panel, stored where the expansion reads.

    task  [first column of x, how many, offset of the first rank in right, step, ranks, first slot]
    place slot -> column of t. Numbers of one rank are ADJACENT, or those of one column.

    ALIGN divides all that a task says but its ranks, which RANKS divides; slots come in runs of RUN
    that `place` keeps together.
    """
    start, width = tl.multiple_of(tl.load(task), ALIGN), tl.multiple_of(tl.load(task + 1), ALIGN)
    offset, step = (
        tl.multiple_of(tl.load(task + 2), ALIGN),
        tl.multiple_of(tl.load(task + 3), ALIGN),
    )
    ranks, slot = tl.multiple_of(tl.load(task + 4), RANKS), tl.load(task + 5)
    rows, lanes = first_row + tl.arange(0, BM), tl.arange(0, BR)
    row_in, lane_in = rows < M, lanes < ranks
    shrunk = tl.zeros((BM, BR), dtype=tl.float32)
    for k in range(0, width, BK):
        inner = k + tl.arange(0, BK)
        a = tl.load(
            addresses(x, rows, x_row, start + inner, x_col),
            mask=row_in[:, None] & (inner < width)[None, :], other=0.0,
        )  # fmt: skip
        if ADJACENT:
            weights = addresses(right + offset, inner, 1, lanes, step)
        else:
            weights = addresses(right + offset, inner, step, lanes, 1)
        b = tl.load(weights, mask=(inner < width)[:, None] & lane_in[None, :], other=0.0)
        shrunk = tl.dot(a, b, shrunk, input_precision=PRECISION)  # (BM, BR)
    places = tl.load(place + slot + lanes, mask=lane_in, other=0)
    places = tl.max_contiguous(tl.multiple_of(places, RUN), RUN)
    tl.store(
        addresses(t, rows, T, places, 1), shrunk.to(t.dtype.element_ty),
        mask=row_in[:, None] & lane_in[None, :],
    )  # fmt: skip


@triton.jit
def product(z, a, b, PRECISION: tl.constexpr):
    """z + a b, of an a that float16 may not hold."""
    if a.dtype == tl.float32 and b.dtype == tl.float16:
        operand, power = narrow(a, tl.float16, 1)
        z += tl.dot(operand, b, input_precision=PRECISION) * power
    else:
        z = tl.dot(a, b, z, input_precision=PRECISION)
    return z


@triton.jit
def expand_tile(
    tile, segments, first_row, x, t, left, dense, bias, dy, y,
    M, T, N, x_row, x_col, dy_row, dy_col,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, DENSE: tl.constexpr,
    ADJACENT: tl.constexpr, TURNED: tl.constexpr, ALIGN: tl.constexpr, RANKS: tl.constexpr,
    CACHE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """BM rows and BN columns of y: the sum over the segments that cover these columns.

    tile     [first column of y, how many, first segment, first dense one, last + 1]
    segment  [first column of t, or of x for a dense one, how many, offset in left or dense, step]

    Numbers of one rank are ADJACENT in left, or those of one column of y; of one row of x in dense
    where it is TURNED. SLOPE: y takes dy activation'(z) in place of activation(z).
    """
    start, count = tl.multiple_of(tl.load(tile), ALIGN), tl.multiple_of(tl.load(tile + 1), ALIGN)
    first, middle, last = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4)
    rows, lanes = first_row + tl.arange(0, BM), tl.arange(0, BN)
    row_in, lane_in = rows < M, lanes < count
    z = tl.zeros((BM, BN), dtype=tl.float32)
    for s in range(first, middle):
        slot = tl.multiple_of(tl.load(segments + 4 * s), 16)
        ranks = tl.multiple_of(tl.load(segments + 4 * s + 1), RANKS)
        offset = tl.multiple_of(tl.load(segments + 4 * s + 2), ALIGN)
        step = tl.multiple_of(tl.load(segments + 4 * s + 3), ALIGN)
        # The shrink filled the slots up to the next multiple of 16 with zeros.
        filled = tl.multiple_of((ranks + 15) // 16 * 16, 16)
        for k in range(0, ranks, BE):
            inner = k + tl.arange(0, BE)
            a = tl.load(
                addresses(t, rows, T, slot + inner, 1),
                mask=row_in[:, None] & (inner < filled)[None, :], other=0.0, cache_modifier=CACHE,
            )  # fmt: skip
            if ADJACENT:
                weights = addresses(left + offset, inner, step, lanes, 1)
            else:
                weights = addresses(left + offset, inner, 1, lanes, step)
            c = tl.load(weights, mask=(inner < ranks)[:, None] & lane_in[None, :], other=0.0)
            z = product(z, a, c, PRECISION)  # (BM, BN)
    if DENSE:
        for s in range(middle, last):
            column = tl.multiple_of(tl.load(segments + 4 * s), ALIGN)
            width = tl.multiple_of(tl.load(segments + 4 * s + 1), ALIGN)
            offset = tl.multiple_of(tl.load(segments + 4 * s + 2), ALIGN)
            step = tl.multiple_of(tl.load(segments + 4 * s + 3), ALIGN)
            for k in range(0, width, BE):
                inner = k + tl.arange(0, BE)
                a = tl.load(
                    addresses(x, rows, x_row, column + inner, x_col),
                    mask=row_in[:, None] & (inner < width)[None, :], other=0.0,
                )  # fmt: skip
                if TURNED:
                    weights = addresses(dense + offset, inner, step, lanes, 1)
                else:
                    weights = addresses(dense + offset, inner, 1, lanes, step)
                c = tl.load(weights, mask=(inner < width)[:, None] & lane_in[None, :], other=0.0)
                z = tl.dot(a, c, z, input_precision=PRECISION)
    columns = start + lanes
    z = add_terms(z, bias, bias, rows, columns, M, N, 0, 0, BIAS, False)
    inside = row_in[:, None] & lane_in[None, :]
    if SLOPE:
        g = tl.load(addresses(dy, rows, dy_row, columns, dy_col), mask=inside, other=0.0)
        z = g.to(tl.float32) * slope(z, ACTIVATION)
    else:
        z = activate(z, ACTIVATION)
    tl.store(addresses(y, rows, N, columns, 1), z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def shrink(
    x, right, place, tasks, t, M, T, TASKS, x_row, x_col,
    ADJACENT: tl.constexpr, ALIGN: tl.constexpr, RANKS: tl.constexpr, RUN: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """All of t, tasks of the same rows one after the other."""
    program = tl.program_id(0)
    shrink_tile(
        tasks + program % TASKS * 6, program // TASKS * BM, x, right, place, t, M, T, x_row, x_col,
        ADJACENT, ALIGN, RANKS, RUN, PRECISION, BM, BR, BK,
    )  # fmt: skip


@triton.jit
def expand(
    x, t, left, dense, bias, dy, tiles, segments, y, M, T, N, TILES, x_row, x_col, dy_row, dy_col,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, SLOPE: tl.constexpr, DENSE: tl.constexpr,
    ADJACENT: tl.constexpr, TURNED: tl.constexpr, ALIGN: tl.constexpr, RANKS: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """All of y, tiles of the same rows one after the other."""
    program = tl.program_id(0)
    expand_tile(
        tiles + program % TILES * 5, segments, program // TILES * BM,
        x, t, left, dense, bias, dy, y,
        M, T, N, x_row, x_col, dy_row, dy_col,
        ACTIVATION, BIAS, SLOPE, DENSE, ADJACENT, TURNED, ALIGN, RANKS, "", PRECISION, BM, BN, BE,
    )  # fmt: skip


@triton.jit
def decode(
    x, right, left, dense, bias, place, tasks, tiles, segments, t, y, counters,
    M, T, N, TASKS, TILES, x_row, x_col,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, DENSE: tl.constexpr,
    RIGHT_ADJACENT: tl.constexpr, LEFT_ADJACENT: tl.constexpr, TURNED: tl.constexpr,
    RIGHT_ALIGN: tl.constexpr, LEFT_ALIGN: tl.constexpr, RIGHT_RANKS: tl.constexpr,
    LEFT_RANKS: tl.constexpr, RUN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Few rows (M <= BM): both in one cooperative launch, with a grid barrier between."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    for task in range(program, TASKS, programs):
        shrink_tile(
            tasks + task * 6, 0, x, right, place, t, M, T, x_row, x_col,
            RIGHT_ADJACENT, RIGHT_ALIGN, RIGHT_RANKS, RUN, PRECISION, BM, BR, BK,
        )  # fmt: skip
    tl.debug_barrier()
    tl.atomic_add(counters, 1, sem="release")
    wait(counters, programs)
    for tile in range(program, TILES, programs):
        expand_tile(
            tiles + tile * 5, segments, 0, x, t, left, dense, bias, x, y,
            M, T, N, x_row, x_col, 0, 0,
            ACTIVATION, BIAS, False, DENSE, LEFT_ADJACENT, TURNED, LEFT_ALIGN, LEFT_RANKS, ".cg",
            PRECISION, BM, BN, BE,
        )  # fmt: skip
    leave(counters, programs)


# ---- what the formats of equal blocks need beside -----------------------------------------------


@triton.jit
def weave_step(
    z, k, ranks, q, rows, lanes, t, left, M, T, S, R, SLOTS,
    PRECISION: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """z plus BE ranks, from the k-th on, of strip q."""
    inner = k + tl.arange(0, BE)
    a = tl.load(
        addresses(t + q * SLOTS, rows, T, inner, 1),
        mask=(rows < M)[:, None] & (inner < ranks)[None, :], other=0.0,
    )  # fmt: skip
    c = tl.load(
        addresses(left + q.to(tl.int64) * S * R, inner, 1, lanes, R),
        mask=(inner < ranks)[:, None] & (lanes < S)[None, :], other=0.0,
    )  # fmt: skip
    return product(z, a, c, PRECISION)


@triton.jit
def weave_strips(
    q, rows, lanes, t, left, M, T, LAST, S, R, SLOTS,
    STEP: tl.constexpr, WOVEN: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Strips q, q + STEP, ... of WOVEN, laid into each other: (BM, BS, 2, ..., 2)."""
    if STEP == WOVEN:
        woven = tl.zeros((BM, BS), dtype=tl.float32)
        ranks = tl.minimum(R, LAST - q * SLOTS)
        if WHOLE:
            woven = weave_step(
                woven, 0, ranks, q, rows, lanes, t, left, M, T, S, R, SLOTS, PRECISION, BE
            )
        else:
            for k in range(0, ranks, BE):
                woven = weave_step(
                    woven, k, ranks, q, rows, lanes, t, left, M, T, S, R, SLOTS, PRECISION, BE
                )
    else:
        # The step between two neighbours in memory is made last, and so is the last dimension.
        even = weave_strips(
            q, rows, lanes, t, left, M, T, LAST, S, R, SLOTS,
            2 * STEP, WOVEN, WHOLE, PRECISION, BM, BS, BE,
        )  # fmt: skip
        odd = weave_strips(
            q + STEP, rows, lanes, t, left, M, T, LAST, S, R, SLOTS,
            2 * STEP, WOVEN, WHOLE, PRECISION, BM, BS, BE,
        )  # fmt: skip
        woven = tl.join(even, odd)
    return woven


@triton.jit
def weave(
    t, left, bias, y, M, T, LAST, N, Q, S, R, SLOTS,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr, WOVEN: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """y (M, N) whose column s Q + q is row s of strip q: z[s Q + q] = t[q SLOTS + ...] left[q, s].

    left (Q, S, R), t (M, LAST) with rows T apart. A program makes WOVEN strips next to each other,
    interleaved in registers, so that whole sectors of memory are written. WHOLE: R <= BE.
    """
    strips, pieces = tl.cdiv(Q, WOVEN), tl.cdiv(S, BS)
    program = tl.program_id(0)
    rows = program // (strips * pieces) * BM + tl.arange(0, BM)
    lanes = program // strips % pieces * BS + tl.arange(0, BS)
    first = program % strips * WOVEN
    z = weave_strips(
        first, rows, lanes, t, left, M, T, LAST, S, R, SLOTS, 1, WOVEN, WHOLE, PRECISION, BM, BS, BE
    )
    z = tl.reshape(z, (BM, BS * WOVEN))
    each = tl.arange(0, BS * WOVEN)
    q = first + each % WOVEN
    columns = (program // strips % pieces * BS + each // WOVEN) * Q + q
    column_in = (q < Q) & (columns < N)
    inside = (rows < M)[:, None] & column_in[None, :]
    if BIAS:
        z += tl.load(bias + columns, mask=column_in, other=0.0).to(tl.float32)[None, :]
    z = activate(z, ACTIVATION)
    tl.store(addresses(y, rows, N, columns, 1), z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def mix(
    t, scales, u, M, T, U, P, Q, R, SLOTS, scale_out, scale_in, scale_rank,
    BM: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """u[p] = sum over q of t[q] scales[p, q], each rank for itself: t (M, Q SLOTS), u (M, P SLOTS).

    A program has BM rows and BR ranks of all p, BP at a time, so that t comes from the first cache
    in all rounds but one.
    """
    blocks = tl.cdiv(SLOTS, BR)
    rows = tl.program_id(0) // blocks * BM + tl.arange(0, BM)
    ranks = tl.program_id(0) % blocks * BR + tl.arange(0, BR)
    row_in, rank_in = rows < M, ranks < R
    inside = row_in[:, None] & rank_in[None, :]
    for first in range(0, P, BP):
        p = first + tl.arange(0, BP)
        total = tl.zeros((BP, BM, BR), dtype=tl.float32)
        scale_at = scales + p[:, None] * scale_out + ranks[None, :] * scale_rank
        scale_in_range = (p < P)[:, None] & rank_in[None, :]
        for q in range(Q):
            part = tl.load(addresses(t + q * SLOTS, rows, T, ranks, 1), mask=inside, other=0.0)
            scale = tl.load(scale_at + q * scale_in, mask=scale_in_range, other=0.0)
            total += part.to(tl.float32)[None, :, :] * scale.to(tl.float32)[:, None, :]
        tl.store(
            u + rows.to(tl.int64)[None, :, None] * U + p[:, None, None] * SLOTS
            + ranks[None, None, :],
            total.to(u.dtype.element_ty),
            mask=(p < P)[:, None, None] & (row_in[:, None] & (ranks < SLOTS)[None, :])[None, :, :],
        )  # fmt: skip


# ---- gradients of panels ------------------------------------------------------------------------


@triton.jit
def panels(
    u, v, tasks, parts, M, size, TASKS, ROWS, u_row, u_col, v_row, v_col,
    ADJACENT: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """parts (splits, size) float32, to be added up: [rank, column] of each panel is the sum over
    ROWS rows of u[:, rank] v[:, column].

    task  [first slot of u, ranks, first column of v, columns, offset in a part, step]

    Numbers of one rank are ADJACENT in a part, or those of one column.
    """
    task, split = tasks + tl.program_id(0) % TASKS * 6, tl.program_id(0) // TASKS
    slot, ranks = tl.multiple_of(tl.load(task), ALIGN), tl.load(task + 1)
    start = tl.multiple_of(tl.load(task + 2), ALIGN)
    width = tl.multiple_of(tl.load(task + 3), ALIGN)
    offset, step = tl.load(task + 4), tl.multiple_of(tl.load(task + 5), ALIGN)
    lanes, columns = tl.arange(0, BR), tl.arange(0, BC)
    lane_in, column_in = lanes < ranks, columns < width
    # Slots behind the ranks, up to a multiple of 16, are there to be read.
    readable = lanes < tl.multiple_of((ranks + 15) // 16 * 16, 16) if ALIGN == 16 else lane_in
    total = tl.zeros((BC, BR), dtype=tl.float32)
    for m in range(split * ROWS, tl.minimum((split + 1) * ROWS, M), BM):
        rows = m + tl.arange(0, BM)
        row_in = rows < M
        s = tl.load(
            addresses(u, rows, u_row, slot + lanes, u_col),
            mask=row_in[:, None] & readable[None, :], other=0.0,
        )  # fmt: skip
        g = tl.load(
            addresses(v, rows, v_row, start + columns, v_col),
            mask=row_in[:, None] & column_in[None, :], other=0.0,
        )  # fmt: skip
        if s.dtype == tl.float32 and g.dtype == tl.float16:
            scaled, scale = narrow(s, tl.float16, 0)
            total += tl.dot(tl.trans(g), scaled, input_precision=PRECISION) * scale
        else:
            total = tl.dot(tl.trans(g), s, total, input_precision=PRECISION)  # (BC, BR)
    part = parts + split.to(tl.int64) * size + offset
    if ADJACENT:
        into = addresses(part, columns, 1, lanes, step)
    else:
        into = addresses(part, columns, step, lanes, 1)
    tl.store(into, total, mask=column_in[:, None] & lane_in[None, :])
