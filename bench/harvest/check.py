"""Third phase: every op against its plain meaning in float64, forward and backward, and whether it
repeats: over and over, on two streams at once, and in a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import kernel_cases, served
from bench.clock import error, graphed
from bench.harvest.serve import Tell
from bench.structured_cases import even, ragged
from tensorlrf.factors import BlockLowRank
from tensorlrf_kernels.blr_linear import blr_linear, words
from tensorlrf_kernels.blr_linear import reference as blr
from tensorlrf_kernels.cp_conv2d import cp_conv2d
from tensorlrf_kernels.cp_conv2d import reference as cp
from tensorlrf_kernels.kron_linear import kron_linear
from tensorlrf_kernels.kron_linear import reference as kron
from tensorlrf_kernels.lowrank_embedding import lowrank_embedding
from tensorlrf_kernels.lowrank_embedding import reference as embedding
from tensorlrf_kernels.lowrank_linear import lowrank_linear
from tensorlrf_kernels.lowrank_linear import reference as lowrank
from tensorlrf_kernels.lowrank_swiglu import lowrank_swiglu
from tensorlrf_kernels.lowrank_swiglu import reference as swiglu
from tensorlrf_kernels.mttkrp import contract_modes
from tensorlrf_kernels.mttkrp import reference as mttkrp
from tensorlrf_kernels.sparse_mttkrp import reference as sparse
from tensorlrf_kernels.sparse_mttkrp import sparse_mttkrp
from tensorlrf_kernels.tt_embedding import reference as tt_rows
from tensorlrf_kernels.tt_embedding import tt_embedding
from tensorlrf_kernels.tt_linear import reference as tt
from tensorlrf_kernels.tt_linear import tt_linear
from tensorlrf_kernels.tucker_conv2d import reference as tucker
from tensorlrf_kernels.tucker_conv2d import tucker_conv2d

HALF, SINGLE = torch.bfloat16, torch.float32
# Frobenius-relative error against float64, and against that of library products in the same dtype.
GOAL = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
WORSE = 1.5
REPEATS = {"decode": 200}  # the others 20
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """An op on operands of its own: `run` on them is what `reference` is on theirs in float64."""

    operands: Callable[[], list[Tensor]]
    run: Callable[..., Tensor]
    reference: Callable[..., Tensor]

    def leaves(self) -> list[Tensor]:
        """Operands with gradients, but for indices and what is empty."""
        return [
            t.requires_grad_(t.is_floating_point() and bool(t.numel())) for t in self.operands()
        ]


def handle(case: str, seconds: float, skip: Sequence[str], tell: Tell) -> None:
    """A row for each property. Raises AssertionError, at the end, where one does not hold."""
    check, shape = check_of(case), case.rpartition(" ")[2]
    repeats = REPEATS.get(shape, 20)
    served.forget()
    properties: dict[str, Callable[[], dict[str, object]]] = {
        "forward": lambda: forward(check),
        "backward": lambda: backward(check),
        "repeated": lambda: repeated(check, repeats),
        "two streams": lambda: two_streams(check, repeats),
        "graph": lambda: replayed(check, repeats),
        "by our kernels": by_kernels,
    }
    wrong = []
    for name, holds in properties.items():
        try:
            found = holds()
        except Exception as reason:  # the others may tell more
            found = {"ok": False, "reason": f"{type(reason).__name__}: {reason}"[:500]}
        tell({"row": {"kind": "check", "property": name, **found}})
        if not found["ok"]:
            wrong.append(f"{name} {found}")
    if wrong:
        raise AssertionError("; ".join(wrong))


def check_of(case: str) -> Check:
    """By op and shape, as "kron_linear ragged"; raises KeyError for what is none."""
    op, _, shape = case.partition(" ")
    return CHECKS[op, shape]()


# ---- properties ---------------------------------------------------------------------------------


def by_kernels() -> dict[str, object]:
    """Until now no library product ran in a kernel's place, nor two launches in that of one."""
    fallbacks, apart = served.fallbacks(), served.apart()
    return {"ok": not fallbacks, "library": fallbacks, "apart": apart}


def forward(check: Check) -> dict[str, object]:
    """The values, in memory that was last full of NaN."""
    operands = check.operands()
    with torch.no_grad():
        exact = check.reference(*_wide(operands))
        chain = check.reference(*operands)
        _poison(exact, operands)
        y = check.run(*operands)
    return _verdict({"y": (y, chain, exact)})


def backward(check: Check) -> dict[str, object]:
    """The gradients in all operands."""
    leaves = check.leaves()
    y = check.run(*leaves)
    dy = torch.randn_like(y)
    own = _gradients(y, leaves, dy)
    chain = _gradients(check.reference(*leaves), leaves, dy)
    wide = _wide(leaves)
    exact = _gradients(check.reference(*wide), wide, dy.double())
    return _verdict({f"operand {k}": each for k, each in enumerate(zip(own, chain, exact))})  # noqa: B905


def repeated(check: Check, times: int) -> dict[str, object]:
    """The same to the bit every time."""
    operands = check.operands()
    with torch.no_grad():
        first = check.run(*operands)
        others = sum(not torch.equal(check.run(*operands), first) for _ in range(times))
    return {"ok": others == 0, "times": times, "different": others}


def two_streams(check: Check, times: int) -> dict[str, object]:
    """The same to the bit from two streams side by side."""
    operands = check.operands()
    with torch.no_grad():
        first = check.run(*operands)
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in range(2)]
        made = []
        for _ in range(times):
            for stream in streams:
                with torch.cuda.stream(stream):
                    made.append(check.run(*operands))
        torch.cuda.synchronize()
    others = sum(not torch.equal(y, first) for y in made)
    return {"ok": others == 0, "times": 2 * times, "different": others}


def replayed(check: Check, times: int) -> dict[str, object]:
    """The same to the bit from a CUDA graph, whose output is poisoned before every replay."""
    operands = check.operands()
    made: list[Tensor] = []
    with torch.no_grad():
        first = check.run(*operands)
        graph = graphed(lambda: made.append(check.run(*operands)))
        others = 0
        for _ in range(times):
            made[-1].fill_(math.nan)
            graph.replay()
            others += not torch.equal(made[-1], first)
    return {"ok": others == 0, "times": times, "different": others}


def _verdict(values: dict[str, tuple[Tensor, Tensor, Tensor]]) -> dict[str, object]:
    """The worst of some values, each as it is, by library products and exact."""
    errors = {
        name: (error(own, exact), error(chain, exact))
        for name, (own, chain, exact) in values.items()
    }
    dtype = next(iter(values.values()))[0].dtype
    name = max(errors, key=lambda k: errors[k][0] if errors[k][0] == errors[k][0] else math.inf)
    own, chain = errors[name]
    return {
        "ok": bool(own < GOAL[dtype]),
        "worse": bool(own > WORSE * chain),
        "dtype": str(dtype).removeprefix("torch."),
        "worst": name,
        "error": own if math.isfinite(own) else str(own),
        "chain_error": chain if math.isfinite(chain) else str(chain),
    }


def _gradients(y: Tensor, leaves: Sequence[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, [t for t in leaves if t.requires_grad], dy)


def _wide(operands: Sequence[Tensor]) -> list[Tensor]:
    return [
        t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
        for t in operands
    ]


def _poison(like: Tensor, operands: Sequence[Tensor]) -> None:
    dtype = next(t.dtype for t in operands if t.is_floating_point())
    full = [torch.full(like.shape, math.nan, device=like.device, dtype=dtype) for _ in range(3)]
    del full


# ---- the ops ------------------------------------------------------------------------------------


def _draw(dtype: torch.dtype, *sizes: Sizes) -> list[Tensor]:
    """Random, scaled so that products of them stay near one; vectors and the first as they are."""
    made = []
    for k, size in enumerate(sizes):
        t = torch.randn(size, device=kernel_cases.DEVICE) / (
            math.sqrt(size[-1]) if k and len(size) > 1 else 1.0
        )
        made.append(t.to(dtype))
    return made


def _indices(count: int, of: int) -> Tensor:
    return torch.randint(0, of, (count,), device=kernel_cases.DEVICE)


def _lowrank(M: int, N: int, K: int, R: int, dtype: torch.dtype) -> Check:
    sizes = ((M, K), (R, K), (N, R), (N,), (M, N))
    return Check(
        lambda: _draw(dtype, *sizes),
        lambda *t: lowrank_linear(*t, "gelu"),
        lambda *t: lowrank.lowrank_linear(*t, "gelu"),
    )


def _swiglu(M: int, N: int, K: int, R: int, dtype: torch.dtype) -> Check:
    sizes = ((M, K), (R, K), (N, R), (R, K), (N, R))
    return Check(lambda: _draw(dtype, *sizes), lowrank_swiglu, swiglu.lowrank_swiglu)


def _kron(M: int, s: int, a: Sizes, b: Sizes, dtype: torch.dtype) -> Check:
    sizes = ((M, a[1] * b[1]), (s, *a), (s, *b), (a[0] * b[0],))
    return Check(lambda: _draw(dtype, *sizes), kron_linear, kron.kron_linear)


def _tt(M: int, m: Sizes, n: Sizes, ranks: Sizes, dtype: torch.dtype) -> Check:
    ends = (1, *ranks, 1)
    cores = [(ends[k], m[k], n[k], ends[k + 1]) for k in range(len(m))]
    sizes = ((M, math.prod(n)), (math.prod(m),), *cores)

    def scaled() -> list[Tensor]:
        x, bias, *given = _draw(dtype, *sizes)
        # A core sums over its columns and the rank before it; `_draw` knows the last alone.
        return [x, bias, *(c * math.sqrt(c.shape[3] / (c.shape[0] * c.shape[2])) for c in given)]

    return Check(
        scaled,
        lambda x, bias, *c: tt_linear(x, list(c), bias),
        lambda x, bias, *c: tt.epilogue(tt.tt_linear(x, list(c)), bias, None, None),
    )


def _blr(M: int, factors: BlockLowRank, dtype: torch.dtype) -> Check:
    shape = factors.shape
    out, inp = shape
    blocks = words(((b.row, b.column, b.rows, b.columns, b.rank) for b in factors.blocks), shape)
    sizes = [t.shape for t in (factors.left, factors.right, factors.dense)]

    def operands() -> list[Tensor]:
        x, bias, *panels = _draw(dtype, (M, inp), (out,), *(tuple(s) for s in sizes))
        return [x, bias, *(p / inp**0.25 for p in panels)]

    return Check(
        operands,
        lambda x, bias, *p: blr_linear(x, *p, blocks, shape, bias),
        lambda x, bias, *p: blr.blr_linear(x, *p, blocks, shape, bias),
    )


def _image(B: int, C: int, H: int, W: int, dtype: torch.dtype) -> Tensor:
    made = torch.randn(B, C, H, W, device=kernel_cases.DEVICE).to(dtype)
    return made.contiguous(memory_format=torch.channels_last)


def _cp(
    image: Sizes, N: int, k: Sizes, R: int, geometry: tuple[Sizes, Sizes], dtype: torch.dtype
) -> Check:
    def operands() -> list[Tensor]:
        B, C, H, W = image
        _, *drawn = _draw(dtype, (1,), (N, R), (C, R), (k[0], R), (k[1], R), (R,), (N,))
        out, inp, kh, kw, weights, bias = drawn
        return [_image(B, C, H, W, dtype), out, inp, kh * R**0.5, kw * R**0.5, weights, bias]

    return Check(
        operands,
        lambda *t: cp_conv2d(*t, *geometry),
        lambda *t: cp.cp_conv2d(*t, *geometry),
    )


def _tucker(
    image: Sizes, N: int, k: Sizes, R: Sizes, geometry: tuple[Sizes, Sizes], dtype: torch.dtype
) -> Check:
    def operands() -> list[Tensor]:
        B, C, H, W = image
        _, *drawn = _draw(dtype, (1,), (R[0], R[1], *k), (N, R[0]), (C, R[1]), (N,))
        return [_image(B, C, H, W, dtype), *drawn]

    return Check(
        operands,
        lambda *t: tucker_conv2d(*t, *geometry),
        lambda *t: tucker.tucker_conv2d(*t, *geometry),
    )


def _mttkrp(sizes: Sizes, columns: int, modes: Sizes) -> Check:
    shapes = (sizes, *((sizes[k], columns) for k in modes))
    return Check(
        lambda: _draw(SINGLE, *shapes),
        lambda tensor, *f: contract_modes(tensor, f, modes),
        lambda tensor, *f: mttkrp.contract_modes(tensor, f, modes),
    )


def _sparse(nnz: int, rows: int, size: int, columns: int) -> Check:
    def operands() -> list[Tensor]:
        indices = torch.stack([_indices(nnz, size), _indices(nnz, size)])
        starts = torch.arange(rows + 1, device=indices.device) * nnz // rows
        values, *factors = _draw(SINGLE, (nnz,), (size, columns), (size, columns))
        return [values, indices, starts, *factors]

    return Check(
        operands,
        lambda values, at, starts, *f: sparse_mttkrp(values, at, starts, f),
        lambda values, at, starts, *f: sparse.sparse_mttkrp(values, at, starts, f),
    )


def _embedding(M: int, rows: int, columns: int, R: int, dtype: torch.dtype) -> Check:
    return Check(
        lambda: [_indices(M, rows), *_draw(dtype, (rows, R), (R, columns))],
        lowrank_embedding,
        embedding.lowrank_embedding,
    )


def _tt_embedding(M: int, n: Sizes, d: Sizes, R: int, dtype: torch.dtype) -> Check:
    shape = (math.prod(n), math.prod(d))
    return Check(
        lambda: [_indices(M, shape[0]), *_draw(dtype, (n[0], d[0], R), (R, n[1], d[1]))],
        lambda i, a, b: tt_embedding(i, a, b, shape),
        lambda i, a, b: tt_rows.tt_embedding(i, (a[None], b[..., None]), shape),
    )


SAME, TWO = ((1, 1), (1, 1)), ((2, 1), (1, 2))  # strides and paddings
F16 = torch.float16


def _panels(make: Callable[[str], object]) -> BlockLowRank:
    made = make("meta")
    assert isinstance(made, BlockLowRank)
    return made


CHECKS: dict[tuple[str, str], Callable[[], Check]] = {
    ("lowrank_linear", "flagship"): lambda: _lowrank(2048, 4096, 4096, 64, HALF),
    ("lowrank_linear", "ragged"): lambda: _lowrank(333, 1001, 257, 33, F16),
    ("lowrank_linear", "decode"): lambda: _lowrank(16, 4096, 4096, 64, HALF),
    ("lowrank_swiglu", "flagship"): lambda: _swiglu(2048, 14336, 4096, 64, HALF),
    ("lowrank_swiglu", "ragged"): lambda: _swiglu(177, 333, 201, 17, F16),
    ("lowrank_swiglu", "decode"): lambda: _swiglu(16, 14336, 4096, 64, HALF),
    ("kron_linear", "flagship"): lambda: _kron(2048, 2, (64, 64), (64, 64), HALF),
    ("kron_linear", "ragged"): lambda: _kron(77, 3, (17, 20), (33, 24), F16),
    ("kron_linear", "decode"): lambda: _kron(16, 2, (64, 64), (64, 64), HALF),
    ("tt_linear", "flagship"): lambda: _tt(2048, (8,) * 4, (8,) * 4, (8, 8, 8), HALF),
    ("tt_linear", "ragged"): lambda: _tt(77, (4, 5, 3, 7), (6, 3, 5, 4), (3, 5, 4), F16),
    ("blr_linear", "flagship"): lambda: _blr(2048, _panels(even(4096, 4096, 16, 16)), HALF),
    ("blr_linear", "ragged"): lambda: _blr(77, _panels(ragged(306, 300, 3, 11)), F16),
    ("blr_linear", "decode"): lambda: _blr(16, _panels(even(4096, 4096, 16, 16)), HALF),
    ("cp_conv2d", "flagship"): lambda: _cp((32, 64, 56, 56), 64, (3, 3), 64, SAME, HALF),
    ("cp_conv2d", "ragged"): lambda: _cp((3, 40, 17, 19), 48, (3, 5), 24, TWO, F16),
    ("tucker_conv2d", "flagship"): lambda: _tucker(
        (32, 128, 28, 28), 128, (3, 3), (64, 64), SAME, HALF
    ),
    ("tucker_conv2d", "ragged"): lambda: _tucker((3, 40, 17, 19), 48, (3, 5), (24, 16), TWO, F16),
    ("mttkrp", "flagship"): lambda: _mttkrp((200, 200, 200), 64, (1, 2)),
    ("mttkrp", "ragged"): lambda: _mttkrp((37, 50, 23, 5), 19, (0, 2)),
    ("sparse_mttkrp", "flagship"): lambda: _sparse(1_000_000, 2000, 2000, 16),
    ("sparse_mttkrp", "ragged"): lambda: _sparse(7777, 333, 51, 19),
    ("lowrank_embedding", "flagship"): lambda: _embedding(8192, 131072, 4096, 256, HALF),
    ("lowrank_embedding", "ragged"): lambda: _embedding(77, 1001, 333, 33, F16),
    ("tt_embedding", "flagship"): lambda: _tt_embedding(2048, (512, 256), (64, 64), 64, HALF),
    ("tt_embedding", "ragged"): lambda: _tt_embedding(77, (33, 31), (18, 17), 13, F16),
}
