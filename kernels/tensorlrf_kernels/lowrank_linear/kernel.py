"""y = activation(x right^T left^T + bias + residual), the intermediate t = x right^T on chip.

x (M, K), right (R, K), left (N, R), y and residual (M, N), bias (N,).
"""

import triton
import triton.language as tl

from tensorlrf_kernels._grid import bring, leave, wait
from tensorlrf_kernels._tile import activate, add_terms, addresses, narrow, slope, within


@triton.jit
def prefill(
    x, right, left, bias, residual, y, t,
    M, N, K, R,
    x_row, x_col, right_row, right_col, left_row, left_col, residual_row, residual_col,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Many rows: a program holds t for BM rows and the whole rank (R <= BR), and expands it to one
    of SPLIT ranges of columns. KEEP: t (M, R) is stored for the backward pass."""
    program = tl.program_id(0)
    rows = (program // SPLIT) * BM + tl.arange(0, BM)
    ranks = tl.arange(0, BR)
    row_in, rank_in = rows < M, ranks < R

    shrunk = tl.zeros((BM, BR), dtype=tl.float32)
    for k in range(0, K, BK):
        inner = k + tl.arange(0, BK)
        a = tl.load(
            addresses(x, rows, x_row, inner, x_col),
            mask=row_in[:, None] & (inner < K)[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            addresses(right, inner, right_col, ranks, right_row),
            mask=(inner < K)[:, None] & rank_in[None, :], other=0.0,
        )  # fmt: skip
        shrunk = tl.dot(a, b, shrunk, input_precision=PRECISION)  # (BM, BR)

    part = program % SPLIT
    if KEEP:
        if part == 0:
            tl.store(
                addresses(t, rows, R, ranks, 1), shrunk.to(t.dtype.element_ty),
                mask=row_in[:, None] & rank_in[None, :],
            )  # fmt: skip

    operand, power = narrow(within(shrunk, rank_in), x.dtype.element_ty, 1)
    width = tl.cdiv(tl.cdiv(N, BN), SPLIT) * BN
    for n in range(part * width, tl.minimum((part + 1) * width, N), BN):
        columns = n + tl.arange(0, BN)
        c = tl.load(
            addresses(left, ranks, left_col, columns, left_row),
            mask=rank_in[:, None] & (columns < N)[None, :], other=0.0,
        )  # fmt: skip
        z = tl.dot(operand, c, input_precision=PRECISION)  # (BM, BN)
        if x.dtype.element_ty == tl.float16:
            z *= power
        z = add_terms(
            z, bias, residual, rows, columns, M, N, residual_row, residual_col, BIAS, RESIDUAL
        )
        tl.store(
            addresses(y, rows, N, columns, 1), activate(z, ACTIVATION).to(y.dtype.element_ty),
            mask=row_in[:, None] & (columns < N)[None, :],
        )  # fmt: skip


@triton.jit
def decode(
    x, right, left, bias, residual, y, t, partials, counters,
    M, N, K, R,
    x_row, x_col, right_row, right_col, left_row, left_col, residual_row, residual_col,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    PHASE: tl.constexpr, WHOLE: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, CHUNK: tl.constexpr, BR: tl.constexpr, BS: tl.constexpr,
    BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Few rows (M <= BM): the shrink is split over K and R, and the expansion over N.

    PHASE   0 both in one cooperative launch, with a grid barrier between; 1 and 2 each alone
    CHUNK   of K, one a tile of the shrink; a tile makes BR of the ranks, BS are added up at a time
    BE      ranks of one product of the expansion; WHOLE is 1 where R <= BE

    partials (tiles of K, M, R) float32, t (M, R) and counters as `_grid` has them.
    """
    programs = tl.num_programs(0)
    blocks = tl.cdiv(R, BR)
    rows = tl.arange(0, BM)
    row_in = rows < M

    if PHASE != 2:
        splits = tl.cdiv(K, CHUNK)
        for tile in range(tl.program_id(0), blocks * splits, programs):
            block, split = tile // splits, tile % splits
            ranks = block * BR + tl.arange(0, BR)
            inside = row_in[:, None] & (ranks < R)[None, :]
            shrunk = tl.zeros((BM, BR), dtype=tl.float32)
            for k in range(split * CHUNK, tl.minimum((split + 1) * CHUNK, K), BK):
                inner = k + tl.arange(0, BK)
                a = tl.load(
                    addresses(x, rows, x_row, inner, x_col),
                    mask=row_in[:, None] & (inner < K)[None, :], other=0.0,
                )  # fmt: skip
                b = tl.load(
                    addresses(right, inner, right_col, ranks, right_row),
                    mask=(inner < K)[:, None] & (ranks < R)[None, :], other=0.0,
                )  # fmt: skip
                shrunk = tl.dot(a, b, shrunk, input_precision=PRECISION)  # (BM, BR)
            place = rows[:, None] * R + ranks[None, :]
            bring(
                shrunk, partials, t, counters, block, split, splits, place, inside, M * R,
                PHASE == 0, BM, BR, BS,
            )  # fmt: skip

    if PHASE != 1:
        first = tl.program_id(0) * BN
        ranks = tl.arange(0, BE)
        # The first tile of left is on its way while other programs still shrink.
        columns = first + tl.arange(0, BN)
        c = tl.load(
            addresses(left, ranks, left_col, columns, left_row),
            mask=(ranks < R)[:, None] & (columns < N)[None, :], other=0.0,
        )  # fmt: skip
        if PHASE == 0:
            wait(counters, blocks)
        for n in range(first, N, programs * BN):
            columns = n + tl.arange(0, BN)
            z = tl.zeros((BM, BN), dtype=tl.float32)
            for r in range(0, R, BE):
                ranks = r + tl.arange(0, BE)
                if WHOLE == 0:
                    c = tl.load(
                        addresses(left, ranks, left_col, columns, left_row),
                        mask=(ranks < R)[:, None] & (columns < N)[None, :], other=0.0,
                    )  # fmt: skip
                shrunk = tl.load(
                    t + rows[:, None] * R + ranks[None, :],
                    mask=row_in[:, None] & (ranks < R)[None, :], other=0.0, cache_modifier=".cg",
                )  # fmt: skip
                if x.dtype.element_ty == tl.float16:
                    operand, power = narrow(shrunk.to(tl.float32), tl.float16, 1)
                    z += tl.dot(operand, c, input_precision=PRECISION) * power
                else:
                    z = tl.dot(shrunk, c, z, input_precision=PRECISION)  # (BM, BN)
            if WHOLE == 1:
                following = columns + programs * BN
                c = tl.load(
                    addresses(left, ranks, left_col, following, left_row),
                    mask=(ranks < R)[:, None] & (following < N)[None, :], other=0.0,
                )  # fmt: skip
            z = add_terms(
                z, bias, residual, rows, columns, M, N, residual_row, residual_col, BIAS, RESIDUAL
            )
            tl.store(
                addresses(y, rows, N, columns, 1), activate(z, ACTIVATION).to(y.dtype.element_ty),
                mask=row_in[:, None] & (columns < N)[None, :],
            )  # fmt: skip
        if PHASE == 0:
            leave(counters, programs)


@triton.jit
def _rows_backward(
    first, dy, t, right, left, bias, residual, dt, dx, dz,
    M, N, K, R,
    dy_row, dy_col, right_row, right_col, left_row, left_col, residual_row, residual_col,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    WANT_X: tl.constexpr, WANT_Z: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """dt = dz left, and dx = dt right, of BM rows."""
    rows = first + tl.arange(0, BM)
    ranks = tl.arange(0, BR)
    row_in, rank_in = rows < M, ranks < R
    kept = row_in[:, None] & rank_in[None, :]
    if ACTIVATION != "none":
        shrunk = tl.load(addresses(t, rows, R, ranks, 1), mask=kept, other=0.0)
        operand, power = narrow(shrunk.to(tl.float32), dy.dtype.element_ty, 1)
    total = tl.zeros((BM, BR), dtype=tl.float32)
    for n in range(0, N, BN):
        columns = n + tl.arange(0, BN)
        column_in = columns < N
        inside = row_in[:, None] & column_in[None, :]
        g = tl.load(addresses(dy, rows, dy_row, columns, dy_col), mask=inside, other=0.0)
        c = tl.load(
            addresses(left, columns, left_row, ranks, left_col),
            mask=column_in[:, None] & rank_in[None, :], other=0.0,
        )  # fmt: skip
        if ACTIVATION != "none":
            z = tl.dot(operand, tl.trans(c), input_precision=PRECISION)  # (BM, BN)
            if dy.dtype.element_ty == tl.float16:
                z *= power
            z = add_terms(
                z, bias, residual, rows, columns, M, N, residual_row, residual_col, BIAS, RESIDUAL
            )
            g = (g.to(tl.float32) * slope(z, ACTIVATION)).to(dy.dtype.element_ty)
            if WANT_Z:
                tl.store(addresses(dz, rows, N, columns, 1), g, mask=inside)
        total = tl.dot(g, c, total, input_precision=PRECISION)  # (BM, BR)
    tl.store(addresses(dt, rows, R, ranks, 1), total.to(dt.dtype.element_ty), mask=kept)
    if WANT_X:
        operand, power = narrow(within(total, rank_in), dy.dtype.element_ty, 1)
        for k in range(0, K, BK):
            inner = k + tl.arange(0, BK)
            inner_in = inner < K
            b = tl.load(
                addresses(right, ranks, right_row, inner, right_col),
                mask=rank_in[:, None] & inner_in[None, :], other=0.0,
            )  # fmt: skip
            grown = tl.dot(operand, b, input_precision=PRECISION)  # (BM, BK)
            if dy.dtype.element_ty == tl.float16:
                grown *= power
            tl.store(
                addresses(dx, rows, K, inner, 1), grown.to(dx.dtype.element_ty),
                mask=row_in[:, None] & inner_in[None, :],
            )  # fmt: skip


@triton.jit
def _columns_backward(
    first, chunk, dy, t, left, bias, residual, left_parts, bias_parts,
    M, N, R,
    dy_row, dy_col, left_row, left_col, residual_row, residual_col,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    WANT_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """BC columns of dz, times t and summed, over the rows of a chunk."""
    columns = first + tl.arange(0, BC)
    ranks = tl.arange(0, BR)
    column_in, rank_in = columns < N, ranks < R
    if ACTIVATION != "none":
        c = tl.load(
            addresses(left, ranks, left_col, columns, left_row),
            mask=rank_in[:, None] & column_in[None, :], other=0.0,
        )  # fmt: skip
    total = tl.zeros((BC, BR), dtype=tl.float32)
    summed = tl.zeros((BC,), dtype=tl.float32)
    for m in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, M), BM):
        rows = m + tl.arange(0, BM)
        row_in = rows < M
        g = tl.load(
            addresses(dy, rows, dy_row, columns, dy_col),
            mask=row_in[:, None] & column_in[None, :], other=0.0,
        )  # fmt: skip
        shrunk = tl.load(
            addresses(t, rows, R, ranks, 1),
            mask=row_in[:, None] & rank_in[None, :], other=0.0,
        )  # fmt: skip
        if ACTIVATION != "none":
            operand, power = narrow(shrunk.to(tl.float32), dy.dtype.element_ty, 1)
            z = tl.dot(operand, c, input_precision=PRECISION)  # (BM, BC)
            if dy.dtype.element_ty == tl.float16:
                z *= power
            z = add_terms(
                z, bias, residual, rows, columns, M, N, residual_row, residual_col, BIAS, RESIDUAL
            )
            g = (g.to(tl.float32) * slope(z, ACTIVATION)).to(dy.dtype.element_ty)
        if WANT_BIAS:
            summed += tl.sum(g.to(tl.float32), axis=0)
        if dy.dtype.element_ty == tl.float16:
            scaled, scale = narrow(shrunk.to(tl.float32), tl.float16, 0)
            total += tl.dot(tl.trans(g), scaled, input_precision=PRECISION) * scale
        else:
            total = tl.dot(tl.trans(g), shrunk, total, input_precision=PRECISION)  # (BC, BR)
    of_chunk = chunk.to(tl.int64) * N + columns
    tl.store(
        addresses(left_parts, of_chunk, R, ranks, 1), total,
        mask=column_in[:, None] & rank_in[None, :],
    )  # fmt: skip
    if WANT_BIAS:
        tl.store(bias_parts + of_chunk, summed, mask=column_in)


@triton.jit
def backward(
    dy, t, right, left, bias, residual, dt, dx, dz, left_parts, bias_parts,
    M, N, K, R,
    dy_row, dy_col, right_row, right_col, left_row, left_col, residual_row, residual_col,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BY_ROWS: tl.constexpr, WANT_X: tl.constexpr, BY_COLUMNS: tl.constexpr, WANT_BIAS: tl.constexpr,
    WANT_Z: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Both products of dy (M, N), which crosses the memory bus once.

    The rows are cut into chunks that fit the L2 cache, and the programs of a chunk run side by
    side: some make dt = dz left for BM rows and from it dx = dt right, on chip as in `prefill`;
    the others make BC columns of dz^T t and of the sum of dz over the chunk, in float32, to be
    added up over chunks in a fixed order. dz = dy activation'(z) with z made anew from t.

    BY_ROWS    dt (M, R), and with WANT_X dx (M, K)
    BY_COLUMNS left_parts (chunks, N, R), and with WANT_BIAS bias_parts (chunks, N)
    WANT_Z     dz (M, N) is stored, by the programs of rows
    """
    row_programs: tl.constexpr = CHUNK // BM if BY_ROWS else 0
    column_programs = tl.cdiv(N, BC) if BY_COLUMNS else 0
    chunk = tl.program_id(0) // (row_programs + column_programs)
    task = tl.program_id(0) % (row_programs + column_programs)
    if task < row_programs:
        if BY_ROWS:
            _rows_backward(
                chunk * CHUNK + task * BM, dy, t, right, left, bias, residual, dt, dx, dz,
                M, N, K, R,
                dy_row, dy_col, right_row, right_col, left_row, left_col,
                residual_row, residual_col,
                ACTIVATION, BIAS, RESIDUAL, WANT_X, WANT_Z, PRECISION, BM, BN, BK, BR,
            )  # fmt: skip
    else:
        if BY_COLUMNS:
            _columns_backward(
                (task - row_programs) * BC, chunk, dy, t, left, bias, residual,
                left_parts, bias_parts,
                M, N, R,
                dy_row, dy_col, left_row, left_col, residual_row, residual_col,
                ACTIVATION, BIAS, RESIDUAL, WANT_BIAS, PRECISION, BM, BR, BC, CHUNK,
            )  # fmt: skip
