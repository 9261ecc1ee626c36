"""Steps that the kernels share: addresses, activations, and casts that cannot overflow."""

import triton
import triton.language as tl


@triton.jit
def addresses(base, rows, row_step, columns, column_step):
    """Of a tile of a matrix, in 64 bits: (rows, columns)."""
    return (
        base + rows.to(tl.int64)[:, None] * row_step + columns.to(tl.int64)[None, :] * column_step
    )


@triton.jit
def add_terms(
    z, bias, residual, rows, columns, M, N, residual_row, residual_col,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """z + bias + residual for a tile of rows and columns of (M, N), of those that are there."""
    if BIAS:
        z += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        term = tl.load(
            addresses(residual, rows, residual_row, columns, residual_col),
            mask=(rows < M)[:, None] & (columns < N)[None, :], other=0.0,
        )  # fmt: skip
        z += term.to(tl.float32)
    return z


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """activation(z) in float32; "none" leaves z as it is."""
    if ACTIVATION == "relu":
        # As torch: NaN stays NaN.
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.math.erf(z * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        z = z * tl.sigmoid(1.5957691216057308 * z * (1.0 + 0.044715 * z * z))
    elif ACTIVATION == "silu":
        z = z * tl.sigmoid(z)
    return z


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The derivative of the activation at z, in float32."""
    if ACTIVATION == "relu":
        d = tl.where(z > 0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        d = 0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476))
        d += z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    elif ACTIVATION == "gelu_tanh":
        # z s(2u) with 2u = c z (1 + a z^2), so s + z s (1 - s) c (1 + 3 a z^2).
        s = tl.sigmoid(1.5957691216057308 * z * (1.0 + 0.044715 * z * z))
        far = z * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * z * z)
        # s reaches 0 or 1 before z^2 overflows, and 0 * inf is no slope.
        d = s + tl.where((s > 0) & (s < 1), s * far, 0.0)
    else:
        tl.static_assert(ACTIVATION == "silu")
        s = tl.sigmoid(z)
        d = s + s * (z * (1.0 - s))
    return d


@triton.jit
def within(t, inside):
    """t in the columns `inside`, zero in those that only fill the tile up: there an infinite row
    has left NaN (inf times zero), which a product over the columns would carry into every sum."""
    return tl.where(inside[None, :], t, 0.0)


@triton.jit
def narrow(t, DTYPE: tl.constexpr, AXIS: tl.constexpr):
    """t as DTYPE for a product, and by what its lines along AXIS were divided.

    A float16 intermediate overflows where the product of the two factors would not, so each line
    is divided by the power of two below its largest entry: exact, and undone in the accumulator.
    The other dtypes have float32's exponents and need nothing. An infinite entry stays infinite.
    """
    largest = tl.max(tl.abs(t), axis=AXIS, keep_dims=True)
    if tl.float16 == DTYPE:
        # The exponent bits alone are 2^floor(log2 largest); 254 - e is the exponent of its inverse.
        # Lines below 2^-100 are as good as zero. Beyond 2^126 the inverse would be none, and inf
        # times zero NaN; what is left of 2^128 there is within range.
        bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
        bits = tl.minimum(tl.maximum(bits, 27 << 23), 253 << 23)
        power = bits.to(tl.float32, bitcast=True)
        inverse = ((254 << 23) - bits).to(tl.float32, bitcast=True)
        t = t * inverse
    else:
        power = tl.full(largest.shape, 1.0, tl.float32)
    return t.to(DTYPE), power


@triton.jit
def expand(
    shrunk, left, bias, y, rows, row_in, first, last, M, N, R, left_row, left_col,
    DTYPE: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """y = activation(shrunk left^T + bias) for rows of (M, N) and columns from `first` to `last`:
    shrunk (rows, BR) is an operand in registers, left (N, R) passes by."""
    ranks = tl.arange(0, BR)
    operand, power = narrow(within(shrunk, ranks < R), DTYPE, 1)
    for n in range(first, last, BN):
        columns = n + tl.arange(0, BN)
        c = tl.load(
            addresses(left, ranks, left_col, columns, left_row),
            mask=(ranks < R)[:, None] & (columns < N)[None, :], other=0.0,
        )  # fmt: skip
        z = tl.dot(operand, c, input_precision=PRECISION)  # (rows, BN)
        if tl.float16 == DTYPE:
            z *= power
        z = add_terms(z, bias, bias, rows, columns, M, N, 0, 0, BIAS, False)
        tl.store(
            addresses(y, rows, N, columns, 1), activate(z, ACTIVATION).to(y.dtype.element_ty),
            mask=row_in[:, None] & (columns < N)[None, :],
        )  # fmt: skip
