"""sparse_mttkrp beside what torch has for it: gathered rows added up, and a sparse product.

float32, one mode, nonzeros sorted by it. The sparse product is that of the values with the
Khatri-Rao rows of the nonzeros, which it needs in memory. pyttb and genten stand beside it in
bench/field/sparse.py, the kernel in `make gpu-bench`.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf_kernels.sparse_mttkrp import reference, sparse_mttkrp

CASES = {
    "1e6 nonzeros, 2000 rows, r16": (1_000_000, 2_000, 2_000, 16),
    "1e6 nonzeros, 200000 rows, r16": (1_000_000, 200_000, 2_000, 16),
}
ROUNDS = 10

Operands = tuple[Tensor, Tensor, Tensor, list[Tensor]]


def drawn(case: str, device: torch.device) -> Operands:
    nnz, rows, size, columns = CASES[case]
    g = torch.Generator().manual_seed(0)
    indices = torch.randint(size, (2, nnz), generator=g, dtype=torch.int32)
    starts = torch.arange(rows + 1) * nnz // rows
    factors = [torch.randn(size, columns, generator=g).to(device) for _ in range(2)]
    values = torch.randn(nnz, generator=g)
    return values.to(device), indices.to(device), starts.to(device), factors


def by_product(values: Tensor, indices: Tensor, starts: Tensor, factors: list[Tensor]) -> Tensor:
    places = torch.arange(len(values), device=values.device)
    size = len(starts) - 1, len(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: sparse CSR is in beta
        matrix = torch.sparse_csr_tensor(starts, places, values, size)
    product: Tensor = matrix @ (factors[0][indices[0]] * factors[1][indices[1]])
    return product


PEERS = {
    "ours": sparse_mttkrp,
    "torch index_add": reference.sparse_mttkrp,
    "torch sparse product": by_product,
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_sparse_mttkrp(benchmark: Any, case: str, peer: str, device: torch.device) -> None:
    values, indices, starts, factors = drawn(case, device)

    def run() -> Tensor:
        found = PEERS[peer](values, indices, starts, factors)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return found

    name = f"{case}, {device.type}"
    benchmark.group = f"sparse_mttkrp, {name}"
    found = benchmark.pedantic(run, rounds=ROUNDS, iterations=1, warmup_rounds=2)
    wide = reference.sparse_mttkrp(values.double(), indices, starts, [f.double() for f in factors])
    error = float((found.double() - wide).norm() / wide.norm())
    benchmark.extra_info.update(case=name, peer=peer, rel_error=error)
