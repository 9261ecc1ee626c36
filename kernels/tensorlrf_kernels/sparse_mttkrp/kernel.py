"""y[i] = sum over the nonzeros j of row i of values[j] times one row of each factor, rows cut into
pieces of at most LONGEST nonzeros, without atomics.

values (NNZ,), indices (MODES, NNZ), starts (ROWS + 1,), y (ROWS, C); table holds all factors, one
below the other, the k-th from row offsets[k] on. Piece p belongs to row row_of[p], whose first one
is first[row].
"""

import triton
import triton.language as tl

from tensorlrf_kernels._tile import addresses


@triton.jit
def accumulate(
    values, indices, starts, first, row_of, table, offsets, y, partials,
    NNZ, COUNT, C,
    MODES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    """BR pieces side by side, a nonzero of each at a time, and BC columns.

    The sum of a piece that is its whole row goes to y, of another one to partials (COUNT, C). A
    piece behind the last one is empty.
    """
    blocks = tl.cdiv(C, BC)
    pieces = tl.program_id(0) // blocks * BR + tl.arange(0, BR)
    columns = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    there, column_in = pieces < COUNT, columns < C
    row = tl.load(row_of + pieces, mask=there, other=0)
    place = pieces - tl.load(first + row, mask=there, other=0)  # among the pieces of its row
    start = tl.load(starts + row, mask=there, other=0)
    stop = tl.load(starts + row + 1, mask=there, other=0)
    begin = start + place * LONGEST
    end = tl.minimum(begin + LONGEST, stop)

    total = tl.zeros((BR, BC), dtype=y.dtype.element_ty)
    for step in range(tl.max(tl.maximum(end - begin, 0), axis=0)):
        at = begin + step
        inside = at < end
        kept = inside[:, None] & column_in[None, :]
        value = tl.load(values + at, mask=inside, other=0.0)
        product = tl.zeros((BR, BC), dtype=y.dtype.element_ty) + value[:, None]
        along = at
        for mode in tl.static_range(MODES):
            index = tl.load(indices + along, mask=inside, other=0)
            along += NNZ  # of the next mode
            picked = index.to(tl.int64) + tl.load(offsets + mode)
            product *= tl.load(addresses(table, picked, C, columns, 1), mask=kept, other=0.0)
        total += product

    whole = there & (place == 0) & (stop - start <= LONGEST)
    tl.store(addresses(y, row, C, columns, 1), total, mask=whole[:, None] & column_in[None, :])
    apart = there & (stop - start > LONGEST)
    tl.store(
        addresses(partials, pieces, C, columns, 1), total,
        mask=apart[:, None] & column_in[None, :],
    )  # fmt: skip


@triton.jit
def collect(
    starts, first, y, partials,
    C, ROWS,
    BR: tl.constexpr, BC: tl.constexpr, LONGEST: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """The sums of rows that have several pieces: BS of these at a time, from the first on."""
    blocks = tl.cdiv(C, BC)
    top = tl.program_id(0) // blocks * BR
    columns = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    column_in = columns < C
    rows = top + tl.arange(0, BR)
    start = tl.load(starts + rows, mask=rows < ROWS, other=0)
    stop = tl.load(starts + rows + 1, mask=rows < ROWS, other=0)
    if tl.max(stop - start, axis=0) > LONGEST:
        for row in range(top, tl.minimum(top + BR, ROWS)):
            length = tl.load(starts + row + 1) - tl.load(starts + row)
            if length > LONGEST:
                head, count = tl.load(first + row), tl.cdiv(length, LONGEST)
                total = tl.zeros((BC,), dtype=y.dtype.element_ty)
                for done in range(0, count, BS):
                    part = done + tl.arange(0, BS)
                    total += tl.sum(
                        tl.load(
                            addresses(partials, head + part, C, columns, 1),
                            mask=(part < count)[:, None] & column_in[None, :], other=0.0,
                        ),
                        axis=0,
                    )  # fmt: skip
                tl.store(
                    addresses(y, row + tl.arange(0, 1), C, columns, 1), total[None, :],
                    mask=column_in[None, :],
                )  # fmt: skip
