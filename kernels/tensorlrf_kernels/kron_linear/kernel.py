"""y = activation(x W^T + bias + residual) for W = sum over s of kron(a_s, b_s), and its gradients.

A row of x is the matrix X (N1, N2), a row of y the matrix sum of a_s X b_s^T (M1, M2), with
a (TERMS, M1, N1) and b (TERMS, M2, N2). The product with a comes first, so that what lies between
is the left operand of the second product and stays in registers. Which factor is called a, and
which of the two axes of X is the first, is for the strides to say.
"""

import triton
import triton.language as tl

from tensorlrf_kernels._tile import activate, add_terms, addresses, narrow, slope


@triton.jit
def _tile(
    base, first_row, row_step, first_column, column_step,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """(BR, BC) of a matrix (ROWS, COLUMNS), zero beyond it."""
    rows, columns = first_row + tl.arange(0, BR), first_column + tl.arange(0, BC)
    where = addresses(base, rows, row_step, columns, column_step)
    if ROWS % BR == 0 and COLUMNS % BC == 0:
        values = tl.load(where)
    else:
        inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
        values = tl.load(where, mask=inside, other=0.0)
    return values


@triton.jit
def _of(base, k, step):
    """Where the k-th of matrices `step` apart begins, in 64 bits."""
    return base + k * (tl.zeros((), dtype=tl.int64) + step)


@triton.jit
def _add_product(total, t, b, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """total + t b, where t is in float32 and b in DTYPE."""
    operand, power = narrow(t, DTYPE, 1)
    if tl.float16 == DTYPE:
        total += tl.dot(operand, b, input_precision=PRECISION) * power
    else:
        total = tl.dot(operand, b, total, input_precision=PRECISION)
    return total


@triton.jit
def _finish(
    z, bias, residual, dy, y, row, first_1, first_2,
    one, two, residual_row, residual_one, residual_two, dy_row, dy_one, dy_two,
    M1: tl.constexpr, M2: tl.constexpr, BM1: tl.constexpr, BM2: tl.constexpr,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Store activation(z + bias + residual), or with SLOPE dy activation'(z + bias + residual), for
    a tile of one row of y; `one` and `two` are its steps, and the bias's."""
    i, j = first_1 + tl.arange(0, BM1), first_2 + tl.arange(0, BM2)
    # The bias is a matrix here, and so a residual that all rows share.
    z = add_terms(z, bias, bias, i, j, M1, M2, one, two, False, BIAS)
    z = add_terms(
        z, bias, _of(residual, row, residual_row), i, j, M1, M2, residual_one, residual_two,
        False, RESIDUAL,
    )  # fmt: skip
    if SLOPE:
        g = _tile(_of(dy, row, dy_row), first_1, dy_one, first_2, dy_two, M1, M2, BM1, BM2)
        z = g.to(tl.float32) * slope(z, ACTIVATION)
    else:
        z = activate(z, ACTIVATION)
    where = addresses(_of(y, row, M1 * M2), i, one, j, two)
    if M1 % BM1 == 0 and M2 % BM2 == 0:
        tl.store(where, z.to(y.dtype.element_ty))
    else:
        inside = (i < M1)[:, None] & (j < M2)[None, :]
        tl.store(where, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def forward(
    x, a, b, bias, residual, dy, y,
    ROWS, S,
    x_row, x_one, x_two, a_term, a_row, a_col, b_term, b_row, b_col, y_one, y_two,
    residual_row, residual_one, residual_two, dy_row, dy_one, dy_two,
    M1: tl.constexpr, N1: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr, TERMS: tl.constexpr,
    ACTIVATION: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM1: tl.constexpr, BM2: tl.constexpr, BK1: tl.constexpr, BK2: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """A program has one (BM1, BM2) tile of the rows of y, and of the rows every so many.

    HOLD   1: the factors of its tile stay on chip, all TERMS of them, which takes BK1 >= N1 and
           BK2 >= N2; 0: they pass by for every row, one of S after the other
    SLOPE  dy (ROWS, M1 M2) times the activation's slope is stored in place of y
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    across: tl.constexpr = (M2 + BM2 - 1) // BM2
    tiles: tl.constexpr = (M1 + BM1 - 1) // BM1 * across
    tile = tl.program_id(0) % tiles
    first_1, first_2 = tile // across * BM1, tile % across * BM2
    begin, step = tl.program_id(0) // tiles, tl.num_programs(0) // tiles

    if HOLD:
        held = ()
        for s in tl.static_range(TERMS):
            held += (
                _tile(_of(a, s, a_term), first_1, a_row, 0, a_col, M1, N1, BM1, BK1),
                _tile(_of(b, s, b_term), 0, b_col, first_2, b_row, N2, M2, BK2, BM2),
            )  # fmt: skip
        for row in range(begin, ROWS, step):
            X = _tile(_of(x, row, x_row), 0, x_one, 0, x_two, N1, N2, BK1, BK2)
            z = tl.zeros((BM1, BM2), dtype=tl.float32)
            for s in tl.static_range(TERMS):
                t = tl.dot(held[2 * s], X, input_precision=PRECISION)  # (BM1, BK2)
                z = _add_product(z, t, held[2 * s + 1], DTYPE, PRECISION)
            _finish(
                z, bias, residual, dy, y, row, first_1, first_2,
                y_one, y_two, residual_row, residual_one, residual_two, dy_row, dy_one, dy_two,
                M1, M2, BM1, BM2, ACTIVATION, BIAS, RESIDUAL, SLOPE,
            )  # fmt: skip
    else:
        for row in range(begin, ROWS, step):
            here = _of(x, row, x_row)
            z = tl.zeros((BM1, BM2), dtype=tl.float32)
            if BK1 >= N1 and BK2 >= N2:
                X = _tile(here, 0, x_one, 0, x_two, N1, N2, BK1, BK2)
            for s in range(S):
                a_s, b_s = _of(a, s, a_term), _of(b, s, b_term)
                for k in range(0, N2, BK2):
                    t = tl.zeros((BM1, BK2), dtype=tl.float32)
                    for l in range(0, N1, BK1):
                        left = _tile(a_s, first_1, a_row, l, a_col, M1, N1, BM1, BK1)
                        if BK1 < N1 or BK2 < N2:
                            X = _tile(here, l, x_one, k, x_two, N1, N2, BK1, BK2)
                        t = tl.dot(left, X, t, input_precision=PRECISION)  # (BM1, BK2)
                    right = _tile(b_s, k, b_col, first_2, b_row, N2, M2, BK2, BM2)
                    z = _add_product(z, t, right, DTYPE, PRECISION)
            _finish(
                z, bias, residual, dy, y, row, first_1, first_2,
                y_one, y_two, residual_row, residual_one, residual_two, dy_row, dy_one, dy_two,
                M1, M2, BM1, BM2, ACTIVATION, BIAS, RESIDUAL, SLOPE,
            )  # fmt: skip


@triton.jit
def backward(
    left, factor, right, parts,
    ROWS, TERMS,
    left_row, left_one, left_two, factor_term, factor_row, factor_col,
    right_row, right_one, right_two, part_one, part_two,
    M: tl.constexpr, K: tl.constexpr, L: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """parts (chunks, TERMS, M, N), float32: left factor_s right summed over the rows of a chunk,
    where a row of left is a matrix (M, K), one of right a matrix (L, N), and factor is
    (TERMS, K, L). A program has one term and one (BM, BN) tile of its product."""
    DTYPE: tl.constexpr = left.dtype.element_ty
    across: tl.constexpr = (N + BN - 1) // BN
    tiles: tl.constexpr = (M + BM - 1) // BM * across
    # Programs of one chunk run side by side, so that its rows come from the cache for all but one.
    tile, s = tl.program_id(0) % tiles, tl.program_id(0) // tiles % TERMS
    chunk = tl.program_id(0) // (tiles * TERMS)
    first_m, first_n = tile // across * BM, tile % across * BN
    f_s = _of(factor, s, factor_term)
    if BK >= K and BL >= L:
        F = _tile(f_s, 0, factor_row, 0, factor_col, K, L, BK, BL)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for row in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, ROWS)):
        of_left, of_right = _of(left, row, left_row), _of(right, row, right_row)
        for l in range(0, L, BL):
            t = tl.zeros((BM, BL), dtype=tl.float32)
            for k in range(0, K, BK):
                G = _tile(of_left, first_m, left_one, k, left_two, M, K, BM, BK)
                if BK < K or BL < L:
                    F = _tile(f_s, k, factor_row, l, factor_col, K, L, BK, BL)
                t = tl.dot(G, F, t, input_precision=PRECISION)  # (BM, BL)
            R = _tile(of_right, l, right_one, first_n, right_two, L, N, BL, BN)
            total = _add_product(total, t, R, DTYPE, PRECISION)
    i, j = first_m + tl.arange(0, BM), first_n + tl.arange(0, BN)
    part = _of(parts, chunk * TERMS + s, M * N)
    tl.store(
        addresses(part, i, part_one, j, part_two), total,
        mask=(i < M)[:, None] & (j < N)[None, :],
    )  # fmt: skip
