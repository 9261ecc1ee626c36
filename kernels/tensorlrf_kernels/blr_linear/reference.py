"""The plain torch meaning of block linear layers, their gradients included.

Everything is a library product a strip of blocks, or a batched one where blocks are equal. x is
(..., n), the weight W (m, n), and the layers return activation(x W^T + bias), (..., m). These
functions can be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tensorlrf_kernels._activation import activate
from tensorlrf_kernels.blr_linear.forms import Strip, Tiling, tiling_of, words

Pieces = dict[int, Tensor]
"""Block, by its place among those of low rank -> its part of an intermediate, (..., rank)."""


def blr_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    dense: Tensor,
    blocks: str | Iterable[Sequence[int | None]],
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Blocks of unequal rank that tile W, packed as `tensorlrf_kernels.blr_linear` has them."""
    tiling = tiling_of(blocks if isinstance(blocks, str) else words(blocks, shape))
    z, _ = tiled(tiling, x, left, right, dense)
    return activate(z if bias is None else z + bias, activation)


def monarch_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """W[(s, q), (k, p)] = sum over r of left[q, s, k, r] right[k, q, r, p], cut to `shape`."""
    z, _ = monarch(x, left, right, shape)
    return activate(z if bias is None else z + bias, activation)


def blast_linear(
    x: Tensor,
    left: Tensor,
    right: Tensor,
    scales: Tensor,
    shape: Sequence[int],
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Block (i, j) of W is left[i] diag(scales[i, j]) right[j], cut to `shape`."""
    z, *_ = blast(x, left, right, scales, shape)
    return activate(z if bias is None else z + bias, activation)


# ---- tilings ------------------------------------------------------------------------------------


def tiled(
    tiling: Tiling, x: Tensor, left: Tensor, right: Tensor, dense: Tensor
) -> tuple[Tensor, Pieces]:
    """x W^T (..., m), and the intermediate of each block of low rank."""
    inner = _down(tiling.columns, tiling, x, right)
    y = _up(tiling.rows, inner, x.new_zeros(*x.shape[:-1], tiling.shape[0]), left)
    start = 0
    for b in tiling.dense:
        tile = dense[start : start + b.rows * b.columns].view(b.rows, b.columns)
        y[..., b.row : b.row + b.rows] += F.linear(x[..., b.column : b.column + b.columns], tile)
        start += b.rows * b.columns
    return y, inner


def tiled_backward(
    tiling: Tiling,
    dz: Tensor,
    x: Tensor | None,
    inner: Pieces | None,
    left: Tensor,
    right: Tensor,
    dense: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients in x (M, n), left, right and dense, those that are `needed`, from dz (M, m) and
    the intermediates of `tiled`."""
    need_x, need_left, need_right, need_dense = needed
    grown = _down(tiling.rows, tiling, dz, left) if need_x or need_right else {}
    dx = None
    if need_x:
        dx = _up(tiling.columns, grown, dz.new_zeros(len(dz), tiling.shape[1]), right)
        start = 0
        for b in tiling.dense:
            tile = dense[start : start + b.rows * b.columns].view(b.rows, b.columns)
            dx[:, b.column : b.column + b.columns] += dz[:, b.row : b.row + b.rows] @ tile
            start += b.rows * b.columns
    dleft = dright = ddense = None
    if need_left and inner is not None:
        dleft = _panels(tiling.rows, inner, dz, left)
    if need_right and x is not None:
        dright = _panels(tiling.columns, grown, x, right)
    if need_dense and x is not None:
        parts = [
            dz[:, b.row : b.row + b.rows].T @ x[:, b.column : b.column + b.columns]
            for b in tiling.dense
        ]
        ddense = torch.cat([p.reshape(-1) for p in parts]) if parts else torch.zeros_like(dense)
    return dx, dleft, dright, ddense


def _down(strips: Sequence[Strip], tiling: Tiling, x: Tensor, panels: Tensor) -> Pieces:
    """The columns of each strip times its panel, taken apart by blocks."""
    inner: Pieces = {}
    start = 0
    for strip in strips:
        size = strip.ranks * strip.width
        panel = panels[start : start + size].view(strip.ranks, strip.width)
        t = F.linear(x[..., strip.start : strip.start + strip.width], panel)
        ranks = [tiling.low_rank[k].rank for k in strip.blocks]
        inner.update(zip(strip.blocks, torch.split(t, ranks, -1), strict=True))
        start += size
    return inner


def _up(strips: Sequence[Strip], inner: Pieces, y: Tensor, panels: Tensor) -> Tensor:
    """y, with the intermediates of each strip times its panel added to the strip's columns."""
    start = 0
    for strip in strips:
        size = strip.ranks * strip.width
        panel = panels[start : start + size].view(strip.ranks, strip.width)
        t = torch.cat([inner[k] for k in strip.blocks], -1)
        y[..., strip.start : strip.start + strip.width] += torch.matmul(t, panel)
        start += size
    return y


def _panels(strips: Sequence[Strip], inner: Pieces, x: Tensor, like: Tensor) -> Tensor:
    """The gradient of the panels between x and the intermediates, which hold their gradients."""
    parts = [
        torch.cat([inner[k] for k in strip.blocks], -1).T
        @ x[:, strip.start : strip.start + strip.width]
        for strip in strips
    ]
    return torch.cat([p.reshape(-1) for p in parts]) if parts else torch.zeros_like(like)


# ---- equal blocks -------------------------------------------------------------------------------


def monarch(x: Tensor, left: Tensor, right: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """x W^T (..., m), and the intermediate (..., Q, K r)."""
    (Q, S, K, r), P = left.shape, right.shape[3]
    x = _widened(x, shape[1], K * P)
    t = torch.einsum("...kp,kcp->...kc", torch.unflatten(x, -1, (K, P)), right.flatten(1, 2))
    t = torch.unflatten(t, -1, (Q, r)).transpose(-3, -2).flatten(-2)  # (..., Q, K r)
    y = torch.einsum("...qc,qsc->...sq", t, left.flatten(2)).flatten(-2)
    return y if shape[0] == S * Q else y[..., : shape[0]], t


def _widened(x: Tensor, columns: int, padded: int) -> Tensor:
    """x (..., columns) with zeros up to `padded` columns, by which it is cut into equal parts."""
    # By sizes of the weight, so that it can be traced; a padding of nothing would be a copy.
    return x if columns == padded else F.pad(x, (0, padded - columns))


def monarch_backward(
    dz: Tensor,
    x: Tensor | None,
    t: Tensor | None,
    left: Tensor,
    right: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients in x (M, n), left and right, those that are `needed`, from dz (M, m) and the
    intermediate t of `monarch`."""
    need_x, need_left, need_right = needed
    (Q, S, K, r), P = left.shape, right.shape[3]
    strips = torch.unflatten(F.pad(dz, (0, S * Q - dz.shape[-1])), -1, (S, Q))  # (M, S, Q)
    dt = None
    if need_x or need_right:
        dt = torch.einsum("nsq,qsc->nqc", strips, left.flatten(2))  # (M, Q, K r)
        dt = torch.unflatten(dt, -1, (K, r)).transpose(1, 2).flatten(2)  # (M, K, Q r)
    dx = dright = dleft = None
    if dt is not None and need_x:
        dx = torch.einsum("nkc,kcp->nkp", dt, right.flatten(1, 2)).flatten(1)
    if dt is not None and need_right and x is not None:
        padded = torch.unflatten(F.pad(x, (0, K * P - x.shape[-1])), -1, (K, P))
        dright = torch.einsum("nkc,nkp->kcp", dt, padded).view(right.shape)
    if need_left and t is not None:
        dleft = torch.einsum("nsq,nqc->qsc", strips, t).view(left.shape)
    return dx, dleft, dright


def blast(
    x: Tensor, left: Tensor, right: Tensor, scales: Tensor, shape: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """x W^T (..., m), and the intermediates before the scales, (..., q, r), and behind them,
    (..., p, r)."""
    (p, mb, _), (q, _, nb) = left.shape, right.shape
    x = _widened(x, shape[1], q * nb)
    t = torch.einsum("...qn,qrn->...qr", torch.unflatten(x, -1, (q, nb)), right)
    u = torch.einsum("...qr,pqr->...pr", t, scales)
    y = torch.einsum("...pr,pmr->...pm", u, left).flatten(-2)
    return y if shape[0] == p * mb else y[..., : shape[0]], t, u


def blast_backward(
    dz: Tensor,
    x: Tensor | None,
    inner: tuple[Tensor, Tensor] | None,
    left: Tensor,
    right: Tensor,
    scales: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients in x (M, n), left, right and scales, those that are `needed`, from dz (M, m) and
    the intermediates of `blast`."""
    need_x, need_left, need_right, need_scales = needed
    (p, mb, _), (q, _, nb) = left.shape, right.shape
    strips = torch.unflatten(F.pad(dz, (0, p * mb - dz.shape[-1])), -1, (p, mb))  # (M, p, mb)
    du = torch.einsum("npm,pmr->npr", strips, left)
    dx = dleft = dright = dscales = None
    if need_x or need_right:
        dt = torch.einsum("npr,pqr->nqr", du, scales)
        if need_x:
            dx = torch.einsum("nqr,qrb->nqb", dt, right).flatten(1)
        if need_right and x is not None:
            padded = torch.unflatten(F.pad(x, (0, q * nb - x.shape[-1])), -1, (q, nb))
            dright = torch.einsum("nqr,nqb->qrb", dt, padded)
    if inner is not None:
        t, u = inner
        dleft = torch.einsum("npm,npr->pmr", strips, u) if need_left else None
        dscales = torch.einsum("npr,nqr->pqr", du, t) if need_scales else None
    return dx, dleft, dright, dscales
