"""y = silu(a) b with a = x gate_right^T gate_left^T + gate_bias and b likewise of `up`, both
intermediates on chip.

x (M, K), gate_right (G, K), gate_left (N, G), up_right (U, K), up_left (N, U), y (M, N), biases
(N,). t (M, G + U) holds x gate_right^T, and x up_right^T behind it.
"""

import triton
import triton.language as tl

from tensorlrf_kernels._grid import bring, leave, wait
from tensorlrf_kernels._tile import activate, addresses, narrow, within


@triton.jit
def _with_bias(z, bias, columns, N, BIAS: tl.constexpr):
    """z + bias for a tile of columns."""
    if BIAS:
        z += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    return z


@triton.jit
def _expand(operand, power, c, PRECISION: tl.constexpr):
    """What `narrow` made of t (BM, BR), times c (BR, BN), in float32."""
    z = tl.dot(operand, c, input_precision=PRECISION)  # (BM, BN)
    if operand.dtype == tl.float16:
        z *= power
    return z


@triton.jit
def prefill(
    x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias, y, t,
    M, N, K, G, U,
    x_row, x_col, gate_right_row, gate_right_col, gate_left_row, gate_left_col,
    up_right_row, up_right_col, up_left_row, up_left_col,
    GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Many rows: a program holds t for BM rows and the whole of both ranks (G, U <= BR), and
    expands it to one of SPLIT ranges of columns. KEEP: t is stored for the backward pass."""
    program = tl.program_id(0)
    rows = (program // SPLIT) * BM + tl.arange(0, BM)
    ranks = tl.arange(0, BR)
    row_in, gate_in, up_in = rows < M, ranks < G, ranks < U

    gate_shrunk = tl.zeros((BM, BR), dtype=tl.float32)
    up_shrunk = tl.zeros((BM, BR), dtype=tl.float32)
    for k in range(0, K, BK):
        inner = k + tl.arange(0, BK)
        inner_in = inner < K
        a = tl.load(
            addresses(x, rows, x_row, inner, x_col),
            mask=row_in[:, None] & inner_in[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            addresses(gate_right, inner, gate_right_col, ranks, gate_right_row),
            mask=inner_in[:, None] & gate_in[None, :], other=0.0,
        )  # fmt: skip
        c = tl.load(
            addresses(up_right, inner, up_right_col, ranks, up_right_row),
            mask=inner_in[:, None] & up_in[None, :], other=0.0,
        )  # fmt: skip
        gate_shrunk = tl.dot(a, b, gate_shrunk, input_precision=PRECISION)  # (BM, BR)
        up_shrunk = tl.dot(a, c, up_shrunk, input_precision=PRECISION)

    part = program % SPLIT
    if KEEP:
        if part == 0:
            place = addresses(t, rows, G + U, ranks, 1)
            kept = gate_shrunk.to(t.dtype.element_ty)
            tl.store(place, kept, mask=row_in[:, None] & gate_in[None, :])
            kept = up_shrunk.to(t.dtype.element_ty)
            tl.store(place + G, kept, mask=row_in[:, None] & up_in[None, :])

    gate_operand, gate_power = narrow(within(gate_shrunk, gate_in), x.dtype.element_ty, 1)
    up_operand, up_power = narrow(within(up_shrunk, up_in), x.dtype.element_ty, 1)
    width = tl.cdiv(tl.cdiv(N, BN), SPLIT) * BN
    for n in range(part * width, tl.minimum((part + 1) * width, N), BN):
        columns = n + tl.arange(0, BN)
        column_in = columns < N
        c = tl.load(
            addresses(gate_left, ranks, gate_left_col, columns, gate_left_row),
            mask=gate_in[:, None] & column_in[None, :], other=0.0,
        )  # fmt: skip
        d = tl.load(
            addresses(up_left, ranks, up_left_col, columns, up_left_row),
            mask=up_in[:, None] & column_in[None, :], other=0.0,
        )  # fmt: skip
        gate = _expand(gate_operand, gate_power, c, PRECISION)  # (BM, BN)
        up = _expand(up_operand, up_power, d, PRECISION)
        gate = _with_bias(gate, gate_bias, columns, N, GATE_BIAS)
        up = _with_bias(up, up_bias, columns, N, UP_BIAS)
        h = activate(gate, "silu") * up
        tl.store(
            addresses(y, rows, N, columns, 1), h.to(y.dtype.element_ty),
            mask=row_in[:, None] & column_in[None, :],
        )  # fmt: skip


@triton.jit
def _left_tile(left, columns, start, N, R, left_row, left_col, BE: tl.constexpr):
    """left^T (BE, BN), from rank `start` on."""
    ranks = start + tl.arange(0, BE)
    return tl.load(
        addresses(left, ranks, left_col, columns, left_row),
        mask=(ranks < R)[:, None] & (columns < N)[None, :], other=0.0,
    )  # fmt: skip


@triton.jit
def _expand_ranks(
    z, t, c, start, M, R, t_row,
    PRECISION: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """z (BM, BN) and the product of BE ranks of t with c (BE, BN)."""
    rows = tl.arange(0, BM)
    ranks = start + tl.arange(0, BE)
    shrunk = tl.load(
        addresses(t, rows, t_row, ranks, 1),
        mask=(rows < M)[:, None] & (ranks < R)[None, :], other=0.0, cache_modifier=".cg",
    )  # fmt: skip
    if c.dtype == tl.float16:
        operand, power = narrow(shrunk.to(tl.float32), tl.float16, 1)
        z += tl.dot(operand, c, input_precision=PRECISION) * power
    else:
        z = tl.dot(shrunk, c, z, input_precision=PRECISION)
    return z


@triton.jit
def decode(
    x, gate_right, gate_left, up_right, up_left, gate_bias, up_bias, y, t, partials, counters,
    M, N, K, G, U,
    x_row, x_col, gate_right_row, gate_right_col, gate_left_row, gate_left_col,
    up_right_row, up_right_col, up_left_row, up_left_col,
    GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    PHASE: tl.constexpr, WHOLE: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, CHUNK: tl.constexpr, BR: tl.constexpr, BS: tl.constexpr,
    BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Few rows (M <= BM): the shrinks are split over K and over blocks of ranks, the gate's before
    those of `up`, and the expansion over N.

    PHASE   0 both in one cooperative launch, with a grid barrier between; 1 and 2 each alone
    CHUNK   of K, one a tile of the shrink; a tile makes BR of the ranks, BS are added up at a time
    BE      ranks of one product of the expansion; WHOLE is 1 where G, U <= BE

    partials (tiles of K, M, G + U) float32, t (M, G + U) and counters as `_grid` has them.
    """
    programs = tl.num_programs(0)
    t_row = G + U
    gate_blocks = tl.cdiv(G, BR)
    blocks = gate_blocks + tl.cdiv(U, BR)
    rows = tl.arange(0, BM)
    row_in = rows < M

    if PHASE != 2:
        splits = tl.cdiv(K, CHUNK)
        for tile in range(tl.program_id(0), blocks * splits, programs):
            block, split = tile // splits, tile % splits
            of_gate = block < gate_blocks
            # The ranks of the block in their own projection, how many that has, and where it
            # begins in t.
            ranks = (block - tl.where(of_gate, 0, gate_blocks)) * BR + tl.arange(0, BR)
            rank_in = ranks < tl.where(of_gate, G, U)
            shrunk = tl.zeros((BM, BR), dtype=tl.float32)
            for k in range(split * CHUNK, tl.minimum((split + 1) * CHUNK, K), BK):
                inner = k + tl.arange(0, BK)
                a = tl.load(
                    addresses(x, rows, x_row, inner, x_col),
                    mask=row_in[:, None] & (inner < K)[None, :], other=0.0,
                )  # fmt: skip
                # Chosen as late as this, since the compiler may know either stride to be one; a
                # loop for each projection would have shared memory of its own.
                source = tl.where(
                    of_gate,
                    addresses(gate_right, inner, gate_right_col, ranks, gate_right_row),
                    addresses(up_right, inner, up_right_col, ranks, up_right_row),
                )
                b = tl.load(source, mask=(inner < K)[:, None] & rank_in[None, :], other=0.0)
                shrunk = tl.dot(a, b, shrunk, input_precision=PRECISION)  # (BM, BR)
            inside = row_in[:, None] & rank_in[None, :]
            ranks += tl.where(of_gate, 0, G)
            place = rows[:, None] * t_row + ranks[None, :]
            bring(
                shrunk, partials, t, counters, block, split, splits, place, inside, M * t_row,
                PHASE == 0, BM, BR, BS,
            )  # fmt: skip

    # Products without tensor cores leave no registers for tiles that are loaded ahead.
    AHEAD: tl.constexpr = WHOLE and (x.dtype.element_ty != tl.float32 or PRECISION == "tf32")
    if PHASE != 1:
        start = tl.program_id(0) * BN
        columns = start + tl.arange(0, BN)
        if AHEAD:
            # The first tiles of both lefts are on their way while other programs still shrink.
            c = _left_tile(gate_left, columns, 0, N, G, gate_left_row, gate_left_col, BE)
            d = _left_tile(up_left, columns, 0, N, U, up_left_row, up_left_col, BE)
        if PHASE == 0:
            wait(counters, blocks)
        for n in range(start, N, programs * BN):
            columns = n + tl.arange(0, BN)
            gate = tl.zeros((BM, BN), dtype=tl.float32)
            up = tl.zeros((BM, BN), dtype=tl.float32)
            if AHEAD:
                gate = _expand_ranks(gate, t, c, 0, M, G, t_row, PRECISION, BM, BE)
                up = _expand_ranks(up, t + G, d, 0, M, U, t_row, PRECISION, BM, BE)
                following = columns + programs * BN
                c = _left_tile(gate_left, following, 0, N, G, gate_left_row, gate_left_col, BE)
                d = _left_tile(up_left, following, 0, N, U, up_left_row, up_left_col, BE)
            else:
                for r in range(0, G, BE):
                    b = _left_tile(gate_left, columns, r, N, G, gate_left_row, gate_left_col, BE)
                    gate = _expand_ranks(gate, t, b, r, M, G, t_row, PRECISION, BM, BE)
                for r in range(0, U, BE):
                    b = _left_tile(up_left, columns, r, N, U, up_left_row, up_left_col, BE)
                    up = _expand_ranks(up, t + G, b, r, M, U, t_row, PRECISION, BM, BE)
            gate = _with_bias(gate, gate_bias, columns, N, GATE_BIAS)
            up = _with_bias(up, up_bias, columns, N, UP_BIAS)
            h = activate(gate, "silu") * up
            tl.store(
                addresses(y, rows, N, columns, 1), h.to(y.dtype.element_ty),
                mask=row_in[:, None] & (columns < N)[None, :],
            )  # fmt: skip
        if PHASE == 0:
            leave(counters, programs)


@triton.jit
def _gradients(
    g, gate, up, gate_bias, up_bias, columns, N, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr
):
    """Of g = dh in a tile of columns, the gradients in both projections, in g's dtype; `gate` and
    `up` are the projections without their biases."""
    gate = _with_bias(gate, gate_bias, columns, N, GATE_BIAS)
    up = _with_bias(up, up_bias, columns, N, UP_BIAS)
    wide = g.to(tl.float32)
    s = tl.sigmoid(gate)
    da = wide * up * (s + s * (gate * (1.0 - s)))
    db = wide * (gate * s)
    return da.to(g.dtype), db.to(g.dtype)


@triton.jit
def _rows_backward(
    first, dh, t, gate_right, gate_left, up_right, up_left, gate_bias, up_bias, dt, dx,
    M, N, K, G, U,
    dh_row, dh_col, gate_right_row, gate_right_col, gate_left_row, gate_left_col,
    up_right_row, up_right_col, up_left_row, up_left_col,
    GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, WANT_X: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """dt = [da gate_left, db up_left], and dx = dt [gate_right; up_right], of BM rows."""
    rows = first + tl.arange(0, BM)
    ranks = tl.arange(0, BR)
    row_in, gate_in, up_in = rows < M, ranks < G, ranks < U
    gate_kept, up_kept = row_in[:, None] & gate_in[None, :], row_in[:, None] & up_in[None, :]
    gate_place = addresses(t, rows, G + U, ranks, 1)
    shrunk = tl.load(gate_place, mask=gate_kept, other=0.0)
    gate_operand, gate_power = narrow(shrunk.to(tl.float32), dh.dtype.element_ty, 1)
    shrunk = tl.load(gate_place + G, mask=up_kept, other=0.0)
    up_operand, up_power = narrow(shrunk.to(tl.float32), dh.dtype.element_ty, 1)
    gate_total = tl.zeros((BM, BR), dtype=tl.float32)
    up_total = tl.zeros((BM, BR), dtype=tl.float32)
    for n in range(0, N, BN):
        columns = n + tl.arange(0, BN)
        column_in = columns < N
        g = tl.load(
            addresses(dh, rows, dh_row, columns, dh_col),
            mask=row_in[:, None] & column_in[None, :], other=0.0,
        )  # fmt: skip
        c = tl.load(
            addresses(gate_left, columns, gate_left_row, ranks, gate_left_col),
            mask=column_in[:, None] & gate_in[None, :], other=0.0,
        )  # fmt: skip
        d = tl.load(
            addresses(up_left, columns, up_left_row, ranks, up_left_col),
            mask=column_in[:, None] & up_in[None, :], other=0.0,
        )  # fmt: skip
        gate = _expand(gate_operand, gate_power, tl.trans(c), PRECISION)  # (BM, BN)
        up = _expand(up_operand, up_power, tl.trans(d), PRECISION)
        da, db = _gradients(g, gate, up, gate_bias, up_bias, columns, N, GATE_BIAS, UP_BIAS)
        gate_total = tl.dot(da, c, gate_total, input_precision=PRECISION)  # (BM, BR)
        up_total = tl.dot(db, d, up_total, input_precision=PRECISION)
    place = addresses(dt, rows, G + U, ranks, 1)
    tl.store(place, gate_total.to(dt.dtype.element_ty), mask=gate_kept)
    tl.store(place + G, up_total.to(dt.dtype.element_ty), mask=up_kept)
    if WANT_X:
        gate_operand, gate_power = narrow(within(gate_total, gate_in), dh.dtype.element_ty, 1)
        up_operand, up_power = narrow(within(up_total, up_in), dh.dtype.element_ty, 1)
        for k in range(0, K, BK):
            inner = k + tl.arange(0, BK)
            inner_in = inner < K
            b = tl.load(
                addresses(gate_right, ranks, gate_right_row, inner, gate_right_col),
                mask=gate_in[:, None] & inner_in[None, :], other=0.0,
            )  # fmt: skip
            e = tl.load(
                addresses(up_right, ranks, up_right_row, inner, up_right_col),
                mask=up_in[:, None] & inner_in[None, :], other=0.0,
            )  # fmt: skip
            grown = _expand(gate_operand, gate_power, b, PRECISION)  # (BM, BK)
            grown += _expand(up_operand, up_power, e, PRECISION)
            tl.store(
                addresses(dx, rows, K, inner, 1), grown.to(dx.dtype.element_ty),
                mask=row_in[:, None] & inner_in[None, :],
            )  # fmt: skip


@triton.jit
def _times_rows(total, g, shrunk, PRECISION: tl.constexpr):
    """total (BC, BR) and g^T shrunk, of g (BM, BC) and rows of t (BM, BR) as they are kept."""
    if g.dtype == tl.float16:
        scaled, scale = narrow(shrunk.to(tl.float32), tl.float16, 0)
        total += tl.dot(tl.trans(g), scaled, input_precision=PRECISION) * scale
    else:
        total = tl.dot(tl.trans(g), shrunk, total, input_precision=PRECISION)
    return total


@triton.jit
def _columns_backward(
    first, chunk, dh, t, gate_left, up_left, gate_bias, up_bias, left_parts, bias_parts,
    M, N, G, U,
    dh_row, dh_col, gate_left_row, gate_left_col, up_left_row, up_left_col,
    GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr, WANT_LEFT: tl.constexpr,
    WANT_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """BC columns of da and db, times t and summed, over the rows of a chunk."""
    columns = first + tl.arange(0, BC)
    ranks = tl.arange(0, BR)
    column_in, gate_in, up_in = columns < N, ranks < G, ranks < U
    c = tl.load(
        addresses(gate_left, ranks, gate_left_col, columns, gate_left_row),
        mask=gate_in[:, None] & column_in[None, :], other=0.0,
    )  # fmt: skip
    d = tl.load(
        addresses(up_left, ranks, up_left_col, columns, up_left_row),
        mask=up_in[:, None] & column_in[None, :], other=0.0,
    )  # fmt: skip
    gate_total = tl.zeros((BC, BR), dtype=tl.float32)
    up_total = tl.zeros((BC, BR), dtype=tl.float32)
    gate_summed = tl.zeros((BC,), dtype=tl.float32)
    up_summed = tl.zeros((BC,), dtype=tl.float32)
    for m in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, M), BM):
        rows = m + tl.arange(0, BM)
        row_in = rows < M
        g = tl.load(
            addresses(dh, rows, dh_row, columns, dh_col),
            mask=row_in[:, None] & column_in[None, :], other=0.0,
        )  # fmt: skip
        place = addresses(t, rows, G + U, ranks, 1)
        gate_t = tl.load(place, mask=row_in[:, None] & gate_in[None, :], other=0.0)
        up_t = tl.load(place + G, mask=row_in[:, None] & up_in[None, :], other=0.0)
        operand, power = narrow(gate_t.to(tl.float32), dh.dtype.element_ty, 1)
        gate = _expand(operand, power, c, PRECISION)  # (BM, BC)
        operand, power = narrow(up_t.to(tl.float32), dh.dtype.element_ty, 1)
        up = _expand(operand, power, d, PRECISION)
        da, db = _gradients(g, gate, up, gate_bias, up_bias, columns, N, GATE_BIAS, UP_BIAS)
        if WANT_BIAS:
            gate_summed += tl.sum(da.to(tl.float32), axis=0)
            up_summed += tl.sum(db.to(tl.float32), axis=0)
        if WANT_LEFT:
            gate_total = _times_rows(gate_total, da, gate_t, PRECISION)  # (BC, BR)
            up_total = _times_rows(up_total, db, up_t, PRECISION)
    if WANT_LEFT:
        of_chunk = chunk.to(tl.int64) * N + columns
        gate_parts = addresses(left_parts, of_chunk, G + U, ranks, 1)
        tl.store(gate_parts, gate_total, mask=column_in[:, None] & gate_in[None, :])
        tl.store(gate_parts + G, up_total, mask=column_in[:, None] & up_in[None, :])
    if WANT_BIAS:
        sums = bias_parts + chunk.to(tl.int64) * 2 * N + columns
        tl.store(sums, gate_summed, mask=column_in)
        tl.store(sums + N, up_summed, mask=column_in)


@triton.jit
def backward(
    dh, t, gate_right, gate_left, up_right, up_left, gate_bias, up_bias,
    dt, dx, left_parts, bias_parts,
    M, N, K, G, U,
    dh_row, dh_col, gate_right_row, gate_right_col, gate_left_row, gate_left_col,
    up_right_row, up_right_col, up_left_row, up_left_col,
    GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr,
    BY_ROWS: tl.constexpr, WANT_X: tl.constexpr, BY_COLUMNS: tl.constexpr,
    WANT_LEFT: tl.constexpr, WANT_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """All products of da = dh b silu'(a) and db = dh silu(a), (M, N), of which neither is stored:
    a and b are made anew from t, and dh crosses the memory bus once.

    As in lowrank_linear the rows are cut into chunks that fit the L2 cache, and the programs of a
    chunk run side by side: some make dt of BM rows and from it dx; the others BC columns of the
    gradients in both lefts and biases, over the chunk and in float32, to be added up over chunks
    in a fixed order.

    BY_ROWS    dt (M, G + U), and with WANT_X dx (M, K)
    BY_COLUMNS with WANT_LEFT left_parts (chunks, N, G + U), and with WANT_BIAS bias_parts
               (chunks, 2, N), the gate's before those of `up`
    """
    row_programs: tl.constexpr = CHUNK // BM if BY_ROWS else 0
    column_programs = tl.cdiv(N, BC) if BY_COLUMNS else 0
    chunk = tl.program_id(0) // (row_programs + column_programs)
    task = tl.program_id(0) % (row_programs + column_programs)
    if task < row_programs:
        if BY_ROWS:
            _rows_backward(
                chunk * CHUNK + task * BM, dh, t, gate_right, gate_left, up_right, up_left,
                gate_bias, up_bias, dt, dx,
                M, N, K, G, U,
                dh_row, dh_col, gate_right_row, gate_right_col, gate_left_row, gate_left_col,
                up_right_row, up_right_col, up_left_row, up_left_col,
                GATE_BIAS, UP_BIAS, WANT_X, PRECISION, BM, BN, BK, BR,
            )  # fmt: skip
    else:
        if BY_COLUMNS:
            _columns_backward(
                (task - row_programs) * BC, chunk, dh, t, gate_left, up_left, gate_bias, up_bias,
                left_parts, bias_parts,
                M, N, G, U,
                dh_row, dh_col, gate_left_row, gate_left_col, up_left_row, up_left_col,
                GATE_BIAS, UP_BIAS, WANT_LEFT, WANT_BIAS, PRECISION, BM, BR, BC, CHUNK,
            )  # fmt: skip
