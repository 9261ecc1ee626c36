"""Linear layers on structured formats for the GPU run: every path, our kernels among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import kernel_cases
from bench.kernel_cases import DTYPE, Case, Way, draw
from tensorlrf import ops
from tensorlrf.factors import (
    BlastFactors,
    Block,
    BlockLowRank,
    Factors,
    KroneckerSum,
    LowRank,
    MonarchFactors,
    TTMatrix,
)
from tensorlrf.factors.tiling import by_rows
from tensorlrf.ops.fused import fused_problem, fuses
from tensorlrf_kernels._tables import bucket, choose

Make = Callable[[torch.device | str], Factors]
"""Factors of a layer on a device, random and scaled so that products stay near one."""


def structured_case(name: str, make: Make, M: int, *, held_out: bool = False) -> Case:
    """A layer on M rows: dense, compiled dense, and what its format has, beside the floor."""
    factors = make(kernel_cases.DEVICE)
    out, inp = factors.shape
    profile = kernel_cases.profiled()
    own = ("fused",) if fuses(factors) else ()
    paths = tuple(dict.fromkeys((*ops.paths_of(factors), *own)))
    costs = {p: ops.path_cost(factors, p, M, rebuild=False) for p in paths}
    predicted = {p: profile.seconds(cost, DTYPE) for p, cost in costs.items()}
    floor = ops.floor_cost(factors, M)
    dense_bytes = DTYPE.itemsize * (M * inp + out * inp + M * out)
    dense = draw((M, inp), (out, inp))
    ways = {
        "dense": Way(F.linear, dense, dense_bytes),
        "compiled dense": Way(kernel_cases.compiled(F.linear), dense, dense_bytes),
    }
    layer = f"{out}x{inp}"
    info: dict[str, dict[str, Any]] = {way: {"M": M, "layer": layer} for way in ways}
    found = fused_problem(factors, M)
    launch = None if found is None else choose(found[0], "forward", found[1], kernel_cases.DEVICE)
    for path in paths:
        if path == "dense" or (path == "fused" and launch is None):
            continue
        ways[path] = Way(_by(path, make), _operands(M, inp, factors), floor.bytes)
        info[path] = {
            "M": M,
            "layer": layer,
            "rank": _rank(factors),
            "format": factors.format,
            "path": path,
            "flops": floor.flops,
            "bytes": floor.bytes,
            "floor_us": 1e6 * profile.floor(floor, DTYPE),
            "predicted_us": 1e6 * predicted[path],
            "chosen": min(predicted, key=predicted.__getitem__),
            "held_out": held_out,
        }
    if found is not None and launch is not None:
        info["fused"] |= {"op": found[0], "launch": str(launch)}
    exact = dict.fromkeys([way for way in ways if "dense" not in way], _exact(make))
    kernels = () if found is None else ((found[0], "forward", found[1]),)
    return Case(name, ways, exact, info, kernels)


def structured_training_case(name: str, make: Make, M: int) -> Case:
    """Forward and backward of a layer, with the gradients of x and of all factors."""
    factors = make(kernel_cases.DEVICE)
    out, inp = factors.shape

    def step(path: str) -> Callable[..., Any]:
        def forward_backward(x: Tensor, dy: Tensor, *tensors: Tensor) -> Any:
            given = dict(zip(factors.tensors(), tensors, strict=True))
            layer = factors._assemble(given, factors._context())
            y = ops.run_linear(path, layer, x)
            return torch.autograd.grad(y, (x, *tensors), dy.detach())

        return forward_backward

    def operands() -> list[Tensor]:
        own = [t.detach().clone() for t in make(kernel_cases.DEVICE).tensors().values()]
        made = [*draw((M, inp), (M, out))(), *own]
        return [t.requires_grad_() for t in made]

    def dense_step(x: Tensor, dy: Tensor, weight: Tensor) -> Any:
        return torch.autograd.grad(F.linear(x, weight), (x, weight), dy.detach())

    moved = DTYPE.itemsize * M * (inp + out)
    chains = [path for path in ops.paths_of(factors) if path not in ("dense", "fused")]
    ways = {path: Way(step(path), operands, moved) for path in (*chains, "fused")}
    ways["dense"] = Way(dense_step, draw((M, inp), (M, out), (out, inp), grad=True), moved)
    info: dict[str, dict[str, Any]] = {
        way: {"M": M, "layer": f"training {out}x{inp}", "format": factors.format} for way in ways
    }
    found = fused_problem(factors, M)
    kernels = (
        () if found is None else tuple((found[0], d, found[1]) for d in ("forward", "backward"))
    )
    return Case(f"training step, {name}", ways, {}, info, kernels, trains=True)


def _by(path: str, make: Make) -> Callable[..., Tensor]:
    factors = make("meta")
    names, context = list(factors.tensors()), factors._context()

    def run(x: Tensor, *tensors: Tensor) -> Tensor:
        # Put together as a layer does it in every call: nothing is checked again.
        layer = factors._assemble(dict(zip(names, tensors, strict=True)), context)
        return ops.run_linear(path, layer, x)

    return run


def _operands(M: int, inp: int, factors: Factors) -> Callable[[], Sequence[Tensor]]:
    """x, and factors of their own for every copy, which no cache holds."""

    def operands() -> list[Tensor]:
        return [*draw((M, inp))(), *(t.clone() for t in factors.tensors().values())]

    return operands


def _exact(make: Make) -> Callable[..., Tensor]:
    factors = make("meta")
    names, context = list(factors.tensors()), factors._context()

    def product(x: Tensor, *tensors: Tensor) -> Tensor:
        wide = {name: t.double() for name, t in zip(names, tensors, strict=True)}
        return F.linear(x.double(), factors._assemble(wide, context).to_dense())

    return product


def _rank(factors: Factors) -> int:
    return max(factors.rank) if isinstance(factors.rank, tuple) else factors.rank


# ---- the layers ---------------------------------------------------------------------------------


def normal(device: torch.device | str, *size: int, terms: int) -> Tensor:
    """Random numbers for a factor of which each output is a sum of so many products."""
    if device == "meta":
        return torch.empty(size, device=device, dtype=DTYPE)
    return torch.randn(size, device=device, dtype=DTYPE) / math.sqrt(terms)


def lowrank(out: int, inp: int, rank: int) -> Make:
    """Two matrices."""

    def make(device: torch.device | str) -> LowRank:
        left, right = normal(device, out, rank, terms=rank), normal(device, rank, inp, terms=inp)
        return LowRank(left, right, (out, inp))

    return make


def kron(terms: int, m1: int, n1: int, m2: int, n2: int) -> Make:
    """A sum of Kronecker products."""

    def make(device: torch.device | str) -> KroneckerSum:
        a = normal(device, terms, m1, n1, terms=n1)
        return KroneckerSum(a, normal(device, terms, m2, n2, terms=n2 * terms))

    return make


def train(rows: Sequence[int], columns: Sequence[int], ranks: Sequence[int]) -> Make:
    """A TT-matrix."""
    ends = (1, *ranks, 1)

    def make(device: torch.device | str) -> TTMatrix:
        each = enumerate(zip(rows, columns, strict=True))
        return TTMatrix(
            tuple(
                normal(device, ends[k], m, n, ends[k + 1], terms=n * ends[k]) for k, (m, n) in each
            )
        )

    return make


def tiling(out: int, inp: int, blocks: Sequence[Block]) -> Make:
    """Blocks of low rank or dense."""
    sizes = {
        "left": sum(b.rows * (b.rank or 0) for b in blocks),
        "right": sum(b.columns * (b.rank or 0) for b in blocks),
        "dense": sum(b.rows * b.columns for b in blocks if b.rank is None),
    }

    def make(device: torch.device | str) -> BlockLowRank:
        panels = [normal(device, n, terms=round(math.sqrt(inp))) for n in sizes.values()]
        return BlockLowRank(*panels, tuple(sorted(blocks, key=by_rows)), (out, inp))

    return make


def even(out: int, inp: int, count: int, rank: int) -> Make:
    """count x count blocks of one rank."""
    return tiling(out, inp, _grid(out, inp, [[rank] * count] * count))


def ragged(out: int, inp: int, count: int, rank: int) -> Make:
    """count x count blocks of ranks from 1 to twice the mean, without pattern."""
    g = torch.Generator().manual_seed(0)
    return tiling(
        out, inp, _grid(out, inp, torch.randint(1, 2 * rank, (count, count), generator=g).tolist())
    )


def _grid(out: int, inp: int, ranks: Sequence[Sequence[int]]) -> list[Block]:
    m, n = out // len(ranks), inp // len(ranks)
    return [
        Block(i * m, j * n, m, n, rank) for i, row in enumerate(ranks) for j, rank in enumerate(row)
    ]


def tree(out: int, inp: int, levels: int, rank: int) -> Make:
    """Low rank off the diagonal at every level, dense leaves on it."""

    def split(row: int, column: int, m: int, n: int, level: int) -> list[Block]:
        if not level:
            return [Block(row, column, m, n, None)]
        h, w = m // 2, n // 2
        return [
            *split(row, column, h, w, level - 1),
            Block(row, column + w, h, n - w, rank),
            Block(row + h, column, m - h, w, rank),
            *split(row + h, column + w, m - h, n - w, level - 1),
        ]

    return tiling(out, inp, split(0, 0, out, inp, levels))


def monarch(out: int, inp: int, parts: int, rank: int) -> Make:
    """parts x parts blocks, interleaved."""

    def make(device: torch.device | str) -> MonarchFactors:
        left = normal(device, parts, out // parts, parts, rank, terms=parts * rank)
        return MonarchFactors(
            left, normal(device, parts, parts, rank, inp // parts, terms=inp // parts)
        )

    return make


def blast(out: int, inp: int, parts: int, rank: int) -> Make:
    """parts x parts blocks with shared bases."""

    def make(device: torch.device | str) -> BlastFactors:
        left = normal(device, parts, out // parts, rank, terms=rank)
        right = normal(device, parts, rank, inp // parts, terms=inp // parts)
        return BlastFactors(left, right, normal(device, parts, parts, rank, terms=parts))

    return make


FLAGSHIP = (64, 64, 64, 64)  # 4096 -> 4096
# Of Llama-3-8B, gate and up, down, keys and values: factors of 16 to 128 rows and columns.
LLAMA_KRON = ((112, 64, 128, 64), (64, 112, 64, 128), (32, 64, 32, 64), (32, 64, 128, 64))
LLAMA = ((4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096))
GRIDS = ((16, 16), (8, 32), (4, 64))  # how many blocks a side, and their rank: b 256, 512, 1024
PARTS = 16


def _goals() -> Iterator[tuple[str, Make, int]]:
    """What the goals are about."""
    for M in (8192, 2048):
        for s in (1, 2, 4):
            yield f"kron 64x64 (x) 64x64 s={s}", kron(s, *FLAGSHIP), M
    for R in (8, 16):
        yield f"tt 8^4 R={R}", train((8,) * 4, (8,) * 4, (8, R, 8)), 8192
    for M in (8192, 16):
        for count, rank in GRIDS:
            yield f"blr b={4096 // count} r={rank}", even(4096, 4096, count, rank), M


def _others() -> Iterator[tuple[str, Make, int]]:
    for M in (16, 1):
        for s in (1, 4):
            yield f"kron 64x64 (x) 64x64 s={s}", kron(s, *FLAGSHIP), M
    for R in (8, 16, 24):
        for M in (2048, 16):
            yield f"tt 8^4 R={R}", train((8,) * 4, (8,) * 4, (8, R, 8)), M
    for M in (8192, 16):
        yield "blr ragged, r=16 in the mean", ragged(4096, 4096, 16, 16), M
        yield "blr tree of 3 levels, r=32", tree(4096, 4096, 3, 32), M
        yield "monarch 64 x 64", monarch(4096, 4096, 64, 1), M
        yield "blast 16 x 16 r=128", blast(4096, 4096, PARTS, 128), M
    for M in (2048, 16):
        for sizes in LLAMA_KRON:
            m1, n1, m2, n2 = sizes
            for s in (1, 16):
                name = f"llama3-8b {m1 * m2}x{n1 * n2} kron s={s}"
                yield name, kron(s, *sizes), M
                if s == 16:
                    # About as many parameters in two matrices, and in four cores.
                    r = 16 * (m1 * n1 + m2 * n2) // (m1 * m2 + n1 * n2)
                    yield f"{name}'s parameters, r={r}", lowrank(m1 * m2, n1 * n2, r), M
                    rows, columns = (8, m1 // 8, m2 // 8, 8), (8, n1 // 8, n2 // 8, 8)
                    yield f"{name}'s parameters, tt", train(rows, columns, (64, 16, 64)), M
        for out, inp in LLAMA:
            for name, make in quarters(out, inp).items():
                yield f"llama3-8b {out}x{inp} {name} at 1/4", make, M


def quarters(out: int, inp: int) -> dict[str, Make]:
    """Formats with a quarter of the weight's parameters."""
    budget = out * inp // 4

    def even_rank(each: int) -> int:
        return max(4, budget // each // 4 * 4)

    parts = PARTS
    return {
        "lowrank": lowrank(out, inp, even_rank(out + inp)),
        "blr": even(out, inp, parts, even_rank(parts * (out + inp))),
        "monarch": monarch(out, inp, parts, even_rank(parts * (out + inp))),
        "blast": blast(out, inp, parts, even_rank(out + inp + parts**2)),
    }


def all_layers() -> list[tuple[str, Make, int, bool]]:
    """Name, factors, rows M, and whether tuning must not see it: a third of those that no goal is
    about, and that share no launch with one."""
    goals = [(*each, False) for each in _goals()]
    tuned = {_launch(make, M) for _, make, M, _ in goals}
    others = list(_others())
    return goals + [
        (name, make, M, k % 3 == 2 and _launch(make, M) not in tuned)
        for k, (name, make, M) in enumerate(others)
    ]


def _launch(make: Make, M: int) -> tuple[str, str] | None:
    """Op and bucket."""
    found = fused_problem(make("meta"), M)
    return None if found is None else (found[0], bucket(found[1]))


N_GOALS = len(tuple(_goals()))


def structured_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Names, and what makes the case, in the order of `all_layers`."""
    for name, make, M, out in all_layers():
        yield f"{name}, M={M}", partial(structured_case, f"{name}, M={M}", make, M, held_out=out)


def training_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """One layer of each op, with its gradients."""
    for name, make in (
        ("kron 64x64 (x) 64x64 s=2", kron(2, *FLAGSHIP)),
        ("tt 8^4 R=8", train((8,) * 4, (8,) * 4, (8, 8, 8))),
        ("blr b=256 r=16", even(4096, 4096, 16, 16)),
    ):
        whole = f"{name}, M=8192"
        yield f"training {whole}", partial(structured_training_case, whole, make, 8192)
