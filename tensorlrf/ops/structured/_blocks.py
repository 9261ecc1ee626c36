"""Blocks of low rank times x: one product for each column of blocks, and one for each row of them.

"fold" pads the ranks of all columns, and of all rows, to one multiple of 16, so that each side is
one batched product.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf.factors import Block, BlockLowRank
from tensorlrf.factors.tiling import Tiling
from tensorlrf.ops._counter import Counter
from tensorlrf.ops.structured._block_kernel import block_cost, block_problem
from tensorlrf.ops.structured._form import LinearForm
from tensorlrf_kernels.blr_linear import blr_linear
from tensorlrf_kernels.blr_linear.forms import Form, tiling_of
from tensorlrf_kernels.launches import Problem

PADDED = 16


def _paths(factors: BlockLowRank) -> tuple[str, ...]:
    return ("chain", "fold") if _is_even(factors.tiling) else ("chain",)


def _is_even(tiling: Tiling) -> bool:
    """A grid of low-rank blocks of one size."""
    sizes = {(b.rows, b.columns) for b in tiling}
    if len(sizes) != 1 or tiling.dense:
        return False
    ((rows, columns),) = sizes
    return all(b.row % rows == 0 and b.column % columns == 0 for b in tiling)


def _columns(tiling: Tiling) -> list[list[Block]]:
    """Low-rank blocks that lie above each other, as their right panels do."""
    lying: dict[tuple[int, int], list[Block]] = {}
    for b in tiling.low_rank_by_columns:
        lying.setdefault((b.column, b.columns), []).append(b)
    return list(lying.values())


def _rows(tiling: Tiling) -> list[list[Block]]:
    """Low-rank blocks that lie beside each other, as their left panels do."""
    lying: dict[tuple[int, int], list[Block]] = {}
    for b in tiling.low_rank:
        lying.setdefault((b.row, b.rows), []).append(b)
    return list(lying.values())


def _ranks(blocks: Iterable[Block]) -> list[int]:
    return [b.rank or 0 for b in blocks]


def _run(path: str, factors: BlockLowRank, x: Tensor) -> Tensor:
    inner = _fold_in(factors, x) if path == "fold" else _chain_in(factors, x)
    return (_fold_out if path == "fold" else _chain_out)(factors, inner, x)


def _chain_in(factors: BlockLowRank, x: Tensor) -> dict[Block, Tensor]:
    """Block -> its right panel times its part of x, (..., r_b)."""
    inner: dict[Block, Tensor] = {}
    start = 0
    for column in _columns(factors.tiling):
        first, ranks = column[0], _ranks(column)
        size = sum(ranks) * first.columns
        if not size:
            continue
        right = factors.right[start : start + size].reshape(-1, first.columns)
        t = F.linear(x[..., first.column : first.column + first.columns], right)
        parts = torch.split(t, ranks, -1)  # not iterated over, so that it can be traced
        inner.update((b, parts[k]) for k, b in enumerate(column))
        start += size
    return inner


def _chain_out(factors: BlockLowRank, inner: dict[Block, Tensor], x: Tensor) -> Tensor:
    parts: dict[tuple[int, int], list[Tensor]] = {}
    start = 0
    for row in _rows(factors.tiling):
        first = row[0]
        size = sum(_ranks(row)) * first.rows
        if not size:
            continue
        left = factors.left[start : start + size].reshape(-1, first.rows)
        t = torch.cat([inner[b] for b in row if b.rank], -1)
        parts.setdefault((first.row, first.rows), []).append(torch.matmul(t, left))
        start += size
    start = 0
    for b in factors.tiling.dense:
        tile = factors.dense[start : start + b.rows * b.columns].reshape(b.rows, b.columns)
        y = F.linear(x[..., b.column : b.column + b.columns], tile)
        parts.setdefault((b.row, b.rows), []).append(y)
        start += b.rows * b.columns
    return _put_together(parts, factors, x)


def _put_together(
    parts: dict[tuple[int, int], list[Tensor]], factors: BlockLowRank, x: Tensor
) -> Tensor:
    """The sum of what belongs to intervals of rows, by (first row, how many): intervals that do not
    overlap are put one behind the other, gaps between them are zeros."""
    m, _ = factors.shape
    waiting = sorted(parts)
    whole: Tensor | None = None
    while waiting:
        end, layer, rest = 0, [], []
        for row, rows in waiting:
            if row < end:
                rest.append((row, rows))
                continue
            y = sum(parts[row, rows][1:], parts[row, rows][0])
            layer.append(F.pad(y, (row - end, 0)) if row > end else y)
            end = row + rows
        if end < m:
            layer[-1] = F.pad(layer[-1], (0, m - end))
        strip = torch.cat(layer, -1) if len(layer) > 1 else layer[0]
        whole = strip if whole is None else whole + strip
        waiting = rest
    return x[..., :1] * x.new_zeros(m) if whole is None else whole


def _fold_in(factors: BlockLowRank, x: Tensor) -> dict[Block, Tensor]:
    columns = _columns(factors.tiling)
    width, padded = columns[0][0].columns, _padded(columns)
    if not padded:
        return {}
    panels = torch.split(factors.right.reshape(-1, width), [sum(_ranks(c)) for c in columns])
    right = torch.stack([F.pad(p, (0, 0, 0, padded - len(p))) for p in panels])  # (q, R, nb)
    x = torch.unflatten(x, -1, (len(columns), width))
    t = torch.einsum("...qn,qrn->...qr", x, right)
    inner: dict[Block, Tensor] = {}
    for k, column in enumerate(columns):
        ranks = _ranks(column)
        parts = torch.split(t[..., k, :], [*ranks, padded - sum(ranks)], -1)
        inner.update((b, parts[i]) for i, b in enumerate(column))
    return inner


def _fold_out(factors: BlockLowRank, inner: dict[Block, Tensor], x: Tensor) -> Tensor:
    rows = _rows(factors.tiling)
    height, padded = rows[0][0].rows, _padded(rows)
    if not padded:
        return x[..., :1] * x.new_zeros(factors.shape[0])
    panels = torch.split(factors.left.reshape(-1, height), [sum(_ranks(row)) for row in rows])
    left = torch.stack([F.pad(p, (0, 0, 0, padded - len(p))) for p in panels])  # (p, R, mb)
    strips = []
    for row in rows:
        t = torch.cat([inner[b] for b in row], -1)
        strips.append(F.pad(t, (0, padded - sum(_ranks(row)))))
    t = torch.stack(strips, -2)  # (..., p, R)
    return torch.einsum("...pr,prm->...pm", t, left).flatten(-2)


def _padded(parts: list[list[Block]]) -> int:
    most = max(sum(_ranks(blocks)) for blocks in parts)
    return -(-most // PADDED) * PADDED


# ---- the kernel ---------------------------------------------------------------------------------


def _form(factors: BlockLowRank) -> Form:
    return tiling_of(factors.tiling.words).form


def _fused(factors: BlockLowRank, x: Tensor, bias: Tensor | None) -> Tensor:
    tensors = factors.left, factors.right, factors.dense
    return blr_linear(x, *tensors, factors.tiling.words, factors.shape, bias)


def _problem(
    factors: BlockLowRank, rows: int, dtype: torch.dtype, tf32: bool
) -> tuple[str, Problem] | None:
    return block_problem(_form(factors), rows, dtype, tf32)


# ---- costs --------------------------------------------------------------------------------------


def _cost(counter: Counter, path: str, factors: BlockLowRank, rows: int) -> None:
    if path == "fused" and block_cost(counter, _form(factors), rows, factors.dtype):
        return
    tiling = factors.tiling
    columns, strips = _columns(tiling), _rows(tiling)
    if path == "fold":
        into, out = _padded(columns), _padded(strips)
        if not into:
            return
        counter.merge(len(columns) * into * columns[0][0].columns)
        counter.products(len(columns), rows, columns[0][0].columns, into)
        counter.merge(len(strips) * out * strips[0][0].rows)
        counter.merge(rows * len(strips) * out)
        counter.products(len(strips), rows, out, strips[0][0].rows)
        return
    for blocks in columns:
        if sum(_ranks(blocks)):
            counter.matmul(rows, blocks[0].columns, sum(_ranks(blocks)))
    for blocks in strips:
        rank = sum(_ranks(blocks))
        if rank:
            if len(blocks) > 1:
                counter.merge(rows * rank)
            counter.matmul(rows, rank, blocks[0].rows)
    for b in tiling.dense:
        counter.matmul(rows, b.columns, b.rows)
    counter.merge(rows * factors.shape[0])


def _rebuild(counter: Counter, factors: BlockLowRank) -> None:
    for b in factors.tiling.low_rank:
        counter.matmul(b.rows, b.rank or 0, b.columns)


FORM = LinearForm[BlockLowRank](_paths, _run, _cost, _rebuild, _fused, _problem)
