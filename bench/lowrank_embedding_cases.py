"""Embeddings for the GPU run: a lookup in the table, the chain, and our kernels beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import kernel_cases
from bench.kernel_cases import DTYPE, Case, Way
from tensorlrf import ops
from tensorlrf.factors import Factors, LowRank, TTMatrix
from tensorlrf_kernels._tables import choose
from tensorlrf_kernels.launches import Problem
from tensorlrf_kernels.lowrank_embedding import lowrank_embedding, reference
from tensorlrf_kernels.tt_embedding import reference as train
from tensorlrf_kernels.tt_embedding import tt_embedding

ROWS, COLUMNS = 131072, 4096  # about the table of Llama-3-8B (Grattafiori et al. 2024)
COUNTS = (1, 64, 8192)  # two of decoding, one of a prompt
RANKS = (64, 256)
CUT = (512, 256, 64, 64)  # n1, n2 and d1, d2 of a train of two cores
CUT_RANKS = (16, 64)


def embedding_cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Names, and what makes the case: the largest, which the goal is about, first."""
    for M in reversed(COUNTS):
        for rank in reversed(RANKS):
            yield f"embedding M={M} r={rank}", partial(rows_case, M, rank)
        for rank in CUT_RANKS:
            yield f"TT embedding M={M} R={rank}", partial(train_rows_case, M, rank)
    for rank in RANKS:
        # The first by the kernel that makes both products, the second by library products.
        yield f"embedding training r={rank}", partial(embedding_training_case, COUNTS[-1], rank)


def rows_case(M: int, rank: int) -> Case:
    """Rows of a table of low rank."""
    left, right = _normal(ROWS, rank), (rank, COLUMNS)
    table = _normal(ROWS, COLUMNS)

    # The tables are too large for a cache: all copies of the operands share them, and have indices
    # and right factors of their own.
    def operands() -> list[Tensor]:
        return [_indices(M), _normal(*right)]

    ways: dict[str, tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]] = {
        "dense": (lambda i: F.embedding(i, table), lambda: [_indices(M)]),
        "chain": (lambda i, b: reference.lowrank_embedding(i, left, b), operands),
        "fused": (lambda i, b: lowrank_embedding(i, left, b), operands),
    }
    factors = LowRank(_blank(ROWS, rank), _blank(*right))
    problem = Problem(M, COLUMNS, ROWS, rank, DTYPE)
    case = _case(f"embedding {ROWS}x{COLUMNS}, M={M}, r={rank}", ways, factors, M, rank)
    for name in ("chain", "fused"):
        case.exact[name] = lambda i, b: F.embedding(i, left).double() @ b.double()
    return _with_kernel(case, "lowrank_embedding", problem)


def train_rows_case(M: int, rank: int) -> Case:
    """Rows of a table that is a train of two cores."""
    n1, n2, d1, d2 = CUT
    sizes = ((n1, d1, rank), (rank, n2, d2))
    table = _normal(ROWS, COLUMNS)
    shape = (ROWS, COLUMNS)

    def operands() -> list[Tensor]:
        return [_indices(M), *(_normal(*size) for size in sizes)]

    def chain(i: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return train.tt_embedding(i, (a[None], b[..., None]), shape)

    ways: dict[str, tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]] = {
        "dense": (lambda i: F.embedding(i, table), lambda: [_indices(M)]),
        "chain": (chain, operands),
        "fused": (lambda i, a, b: tt_embedding(i, a, b, shape), operands),
    }
    factors = TTMatrix((_blank(1, n1, d1, rank), _blank(rank, n2, d2, 1)))
    problem = Problem(M, COLUMNS, ROWS, rank, DTYPE)
    case = _case(f"TT embedding {ROWS}x{COLUMNS}, M={M}, R={rank}", ways, factors, M, rank)
    for name in ("chain", "fused"):
        case.exact[name] = lambda i, a, b: chain(i, a.double(), b.double())
    return _with_kernel(case, "tt_embedding", problem)


def embedding_training_case(M: int, rank: int) -> Case:
    """Forward and backward of a lookup, with the gradients of both factors."""

    def step(run: Callable[..., Tensor]) -> Callable[..., Any]:
        def forward_backward(i: Tensor, left: Tensor, right: Tensor, dy: Tensor) -> Any:
            return torch.autograd.grad(run(i, left, right), (left, right), dy)

        return forward_backward

    left = _normal(ROWS, rank).requires_grad_()
    table = _normal(ROWS, COLUMNS).requires_grad_()

    def operands() -> list[Tensor]:
        return [_indices(M), left, _normal(rank, COLUMNS).requires_grad_(), _normal(M, COLUMNS)]

    def dense(i: Tensor, dy: Tensor) -> Any:
        return torch.autograd.grad(F.embedding(i, table), table, dy)

    # The gradient of the rows is as large as they are, and is written twice: zeros, then sums.
    moved = DTYPE.itemsize * (2 * ROWS * rank + 3 * M * COLUMNS)
    ways = {
        "chain": Way(step(reference.lowrank_embedding), operands, moved),
        "fused": Way(step(lowrank_embedding), operands, moved),
        "dense": Way(dense, lambda: [_indices(M), _normal(M, COLUMNS)], moved),
    }
    info: dict[str, dict[str, Any]] = {
        name: {"M": M, "rank": rank, "layer": f"training embedding {ROWS}x{COLUMNS}"}
        for name in ways
    }
    problem = Problem(M, COLUMNS, ROWS, rank, DTYPE)
    sums = Problem(M, rank, ROWS, rank, DTYPE)
    kernels = (
        ("lowrank_embedding", "forward", problem),
        ("lowrank_embedding", "backward", sums),
        ("lowrank_linear", "backward", Problem(M, COLUMNS, rank, rank, DTYPE)),
    )
    name = f"embedding training step {ROWS}x{COLUMNS}, M={M}, r={rank}"
    return Case(name, ways, {}, info, kernels, trains=True)


def _case(
    name: str,
    ways: dict[str, tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]],
    factors: Factors,
    M: int,
    rank: int,
) -> Case:
    profile = kernel_cases.profiled()
    costs = {path: ops.embedding_cost(factors, path, M, rebuild=False) for path in ways}
    seconds = {path: profile.seconds(cost, DTYPE) for path, cost in costs.items()}
    # The path "dense" keeps a table for which there was no room.
    chosen = min(("chain", "fused"), key=seconds.__getitem__)
    floor = costs["fused"]
    info: dict[str, dict[str, Any]] = {
        path: {
            "M": M,
            "layer": name.partition(",")[0],
            "rank": rank,
            "path": path,
            "predicted_us": 1e6 * seconds[path],
            "chosen": chosen,
        }
        for path in ways
    }
    for path in ("chain", "fused"):
        info[path] |= {
            "flops": floor.flops,
            "bytes": floor.bytes,
            "floor_us": 1e6 * profile.floor(floor, DTYPE),
        }
    made = {path: Way(*way, costs[path].bytes) for path, way in ways.items()}
    return Case(name, made, {}, info)


def _with_kernel(case: Case, op: str, problem: Problem) -> Case:
    launch = choose(op, "forward", problem, kernel_cases.DEVICE)
    case.info["fused"] |= {"op": op, "launch": str(launch)}
    return Case(case.name, case.ways, case.exact, case.info, ((op, "forward", problem),))


def _indices(M: int) -> Tensor:
    return torch.randint(0, ROWS, (M,), device=kernel_cases.DEVICE)


def _normal(*size: int) -> Tensor:
    made = torch.randn(size, device=kernel_cases.DEVICE, dtype=DTYPE)
    return made / size[-1] ** 0.5


def _blank(*size: int) -> Tensor:
    return torch.empty(size, dtype=DTYPE, device="meta")
