"""Operands of `blr_linear` in every form, exact values, and how far rounding may carry them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tensorlrf_kernels._activation import activate
from tensorlrf_kernels.blr_linear import blast_linear, blr_linear, monarch_linear
from tensorlrf_kernels.blr_linear import reference as chains
from tensorlrf_kernels.blr_linear._op import form_of, panels_of
from tensorlrf_kernels.blr_linear.calls import Panels
from tensorlrf_kernels.blr_linear.forms import Block, Form, tiling_of, words
from tests.draws import seeded
from tests.kernels.drawn.lowrank import BEND, STEEPEST, roundoff

NAMES = ("x", "left", "right", "third", "bias")
Blocks = list[tuple[int, int, int, int, int | None]]


@dataclass
class BlockOperands:
    """x (M, n), panels, bias (m,); `text` as the op has it. Monarch matrices have no `third`."""

    text: str
    x: Tensor
    left: Tensor
    right: Tensor
    third: Tensor | None
    bias: Tensor | None

    @property
    def form(self) -> Form:
        return form_of(self.text, self.left, self.right)

    @property
    def panels(self) -> Panels:
        return panels_of(self.left, self.right, self.third)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, name) for name in NAMES)

    def map(self, f: Callable[[Tensor], Tensor]) -> BlockOperands:
        return BlockOperands(self.text, *(None if t is None else f(t) for t in self.tensors))  # type: ignore[arg-type]  # x and the panels are there

    def wide(self) -> BlockOperands:
        return self.map(lambda t: t.detach().double().cpu())

    def run(self, activation: str | None = None) -> Tensor:
        """By the public function."""
        return self._by((blr_linear, monarch_linear, blast_linear), activation)

    def chain(self, activation: str | None = None) -> Tensor:
        """By library products."""
        made = (chains.blr_linear, chains.monarch_linear, chains.blast_linear)
        return self._by(made, activation)

    def _by(self, calls: tuple[Callable[..., Tensor], ...], activation: str | None) -> Tensor:
        blocks, monarch, blast = calls
        name, rest = self.text.split(" ", 1)
        shape = tuple(map(int, rest.split(" ")[:2]))
        x, *panels = self.tensors[:4]
        if name == "blr":
            return blocks(x, *panels, rest, shape, self.bias, activation)
        if name == "monarch":
            return monarch(x, *panels[:2], shape, self.bias, activation)
        return blast(x, *panels, shape, self.bias, activation)

    def weight(self) -> Tensor:
        """W (m, n) in float64, block by block from the formats' definitions."""
        wide = self.wide()
        name, rest = self.text.split(" ", 1)
        m, n = map(int, rest.split(" ")[:2])
        if name == "monarch":
            Q, S, *_ = wide.left.shape
            full = torch.einsum("qskr,kqrp->sqkp", wide.left, wide.right)
            return full.reshape(S * Q, -1)[:m, :n]
        if name == "blast":
            assert wide.third is not None
            full = torch.einsum("imr,ijr,jrn->imjn", wide.left, wide.third, wide.right)
            return full.flatten(2).flatten(0, 1)[:m, :n]
        blocks, whole = tiling_of(rest).blocks, torch.full((m, n), float("nan")).double()
        spent = {"left": 0, "right": 0, "third": 0}

        def take(of: str, rows: int, columns: int) -> Tensor:
            first = spent[of]
            spent[of] += rows * columns
            return getattr(wide, of)[first : spent[of]].view(rows, columns)

        rights: dict[Block, Tensor] = {}
        for b in sorted(blocks, key=lambda b: (b.column, b.columns, b.row, b.rows)):
            if b.rank >= 0:
                rights[b] = take("right", b.rank, b.columns)
        for b in blocks:
            if b.rank >= 0:
                tile = take("left", b.rank, b.rows).T @ rights[b]
            else:
                tile = take("third", b.rows, b.columns)
            whole[b.row : b.row + b.rows, b.column : b.column + b.columns] = tile
        return whole


def grid(rows: list[int], columns: list[int], rank: Callable[[int, int], int | None]) -> Blocks:
    """Blocks between these heights and widths; `rank` of (i, j), None for a dense one."""
    made: Blocks = []
    for i, height in enumerate(rows):
        for j, width in enumerate(columns):
            r = rank(i, j)
            r = None if r is None else min(r, height, width)
            made.append((sum(rows[:i]), sum(columns[:j]), height, width, r))
    return made


def tree(m: int, n: int, levels: int, rank: int, row: int = 0, column: int = 0) -> Blocks:
    """Halved `levels` times: low rank off the diagonal, dense on it."""
    if levels == 0 or min(m, n) < 2:
        return [(row, column, m, n, None)]
    h, w = m // 2, n // 2
    r = rank
    return by_rows(
        [
            *tree(h, w, levels - 1, rank, row, column),
            (row, column + w, h, n - w, min(r, h, n - w)),
            (row + h, column, m - h, w, min(r, m - h, w)),
            *tree(m - h, n - w, levels - 1, rank, row + h, column + w),
        ]
    )


def by_rows(blocks: Blocks) -> Blocks:
    return sorted(blocks, key=lambda b: (b[0], b[2], b[1], b[3]))


def draw_tiling(
    rows: int, blocks: Blocks, shape: tuple[int, int], *, bias: bool = True
) -> BlockOperands:
    """Operands near one, float64."""
    text = words(blocks, shape)
    sizes = tiling_of(text).sizes
    mean = max(1.0, tiling_of(text).form.rank)
    return BlockOperands(
        f"blr {text}",
        seeded(rows, shape[1], seed=0),
        seeded(sizes["left"], seed=1) / mean**0.5,
        seeded(sizes["right"], seed=2) / shape[1] ** 0.5,
        seeded(sizes["dense"], seed=3) / shape[1] ** 0.5,
        seeded(shape[0], seed=4) if bias else None,
    )


def draw_monarch(
    rows: int, counts: tuple[int, int], rank: int, shape: tuple[int, int], *, bias: bool = True
) -> BlockOperands:
    """Q and K equal parts of both sides."""
    (Q, K), (m, n) = counts, shape
    left = seeded(Q, -(-m // Q), K, rank, seed=1) / (K * rank) ** 0.5
    right = seeded(K, Q, rank, -(-n // K), seed=2) / right_scale(n, K)
    shift = seeded(m, seed=4) if bias else None
    return BlockOperands(f"monarch {m} {n}", seeded(rows, n, seed=0), left, right, None, shift)


def draw_blast(
    rows: int, counts: tuple[int, int], rank: int, shape: tuple[int, int], *, bias: bool = True
) -> BlockOperands:
    """p and q equal parts of both sides."""
    (p, q), (m, n) = counts, shape
    left = seeded(p, -(-m // p), rank, seed=1) / rank**0.5
    right = seeded(q, rank, -(-n // q), seed=2) / right_scale(n, q)
    scales = seeded(p, q, rank, seed=3) / q**0.5
    shift = seeded(m, seed=4) if bias else None
    return BlockOperands(f"blast {m} {n}", seeded(rows, n, seed=0), left, right, scales, shift)


def right_scale(n: int, parts: int) -> float:
    return float(-(-n // parts)) ** 0.5


def exact(o: BlockOperands, activation: str | None) -> Tensor:
    """The value in float64, by the dense weight."""
    return activate(_sum(o), activation)


def _sum(o: BlockOperands) -> Tensor:
    wide = o.wide()
    z = wide.x @ o.weight().T
    return z if wide.bias is None else z + wide.bias


def length(o: BlockOperands) -> int:
    """No sum of the layer or of its gradients has more terms, up to a few."""
    form = o.form
    ranks = sum(side.slots for side in (form.left, form.right))
    return len(o.x) + sum(form.shape) + ranks + 16


def sum_bound(o: BlockOperands) -> Tensor:
    """How far z may be off. Every sum is made in float32: off by n u of the same sum over absolute
    values (Higham 2002, section 3.1). Intermediates are rounded to the dtype, twice for BLAST, and
    y at the end."""
    dtype = o.x.dtype
    absolute = o.wide().map(torch.abs)
    u, u32 = roundoff(dtype), roundoff(torch.float32)
    return (3 * u + length(o) * u32) * _sum(absolute) + _underflow(o)


def _underflow(o: BlockOperands) -> Tensor | float:
    """float16 is scaled by lines: beneath 2^-14 of the line's largest entry, which no row of x
    times its largest weight exceeds, only the absolute precision 2^-24 of it is left."""
    if o.x.dtype is not torch.float16 or not o.left.numel():
        return 0.0
    absolute = o.wide().map(torch.abs)
    line = absolute.x.sum(1, keepdim=True) * absolute.right.max()
    if o.text.startswith("blast"):
        assert absolute.third is not None
        line = line * absolute.third.sum(1).max()
    return 2**-24 * (1 + o.form.left.slots * absolute.left.amax() * line)


def forward_bound(o: BlockOperands, activation: str | None) -> Tensor:
    """How far each element of y may be off."""
    y = exact(o, activation).abs()
    return STEEPEST[activation] * sum_bound(o) + roundoff(o.x.dtype) * y + 1e-30


def gradients(o: BlockOperands, dy: Tensor, activation: str | None) -> dict[str, Tensor]:
    """The gradients in float64, by autograd through the chain, which is tested by itself."""
    wide = o.wide().map(lambda t: t.requires_grad_())
    wide.chain(activation).backward(dy.double().cpu())
    pairs = ((name, getattr(wide, name)) for name in NAMES)
    # What no way leads to has no gradient: of an empty panel.
    return {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in pairs if t is not None}


def backward_bounds(o: BlockOperands, dy: Tensor, activation: str | None) -> dict[str, Tensor]:
    """How far each gradient may be off: its terms are those of the gradients of absolute values,
    with a few roundings on the way, and dz of them is off itself."""
    dtype = o.x.dtype
    u, u32 = roundoff(dtype), roundoff(torch.float32)
    g, off = dy.double().cpu().abs(), sum_bound(o)
    dz = STEEPEST[activation] * g
    off_z = g * (BEND[activation] * off + 16 * u32) + (2 * u * dz if activation else 0.0)
    if activation == "relu":
        off_z = off_z + g * (_sum(o).abs() <= off)  # at its jump either slope is right
    absolute = replace(o.wide().map(torch.abs), bias=None)
    absolute = replace(absolute, bias=None if o.bias is None else o.wide().bias.abs())  # type: ignore[union-attr]  # it is there
    from_dz, from_off = gradients(absolute, dz, None), gradients(absolute, off_z, None)
    small = torch.finfo(dtype).smallest_normal * 2**-10 if dtype is torch.float16 else 0.0
    rows = len(o.x)
    return {
        # Subnormal results and operands of float16: each term is off by as much once.
        name: (4 * u + length(o) * u32) * from_dz[name]
        + from_off[name]
        + small * (1 + rows) * (1 + length(o))
        + 1e-30
        for name in from_dz
    }
