"""CP of small tensors, float32, from one start, beside tensorly on numpy and on torch, in turn.

What such a problem takes is calls and set-up, not arithmetic. All make the same number of sweeps
and none looks at the error on the way; ours alone reports a true one at the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

from bench.test_cp import noisy, tensorly_on_torch, uniform_start
from bench.turns import Turns
from tensorlrf.decomposition import fit_cp
from tensorlrf.factors import CPFactors

PEERS = ("ours", "tensorly on numpy", "tensorly on torch")
SIZES = {
    "12x10x8 r5": ((12, 10, 8), 5),
    "5x201x61 r3": ((5, 201, 61), 3),
    "4096x64 r16": ((4096, 64), 16),
}
CASES = {f"{size}, {sweeps} sweeps": (size, sweeps) for size in SIZES for sweeps in (10, 50)}
ROUNDS = 25


@lru_cache(maxsize=1)
def measured(case: str) -> tuple[Turns, dict[str, float]]:
    size, sweeps = CASES[case]
    shape, rank = SIZES[size]
    tensor = noisy(shape, rank)
    weights, factors = uniform_start(shape, rank)
    tensorly = tensorly_on_torch()

    def theirs(backend: str, cast: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        data, start = cast(tensor), (cast(weights), [cast(f) for f in factors])

        def run() -> Any:
            with tensorly.backend_context(backend, local_threadsafe=True):
                return tensorly.decomposition.parafac(
                    data, rank, init=start, n_iter_max=sweeps, tol=0
                )

        return run

    calls = {
        "ours": lambda: (
            fit_cp(tensor, rank, init=(weights, factors), n_iter_max=sweeps, tol=0).factors
        ),
        "tensorly on numpy": theirs("numpy", lambda t: t.numpy()),
        "tensorly on torch": theirs("pytorch", lambda t: t),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turns = Turns.take(calls, ROUNDS, warmup=2)
    errors = {}
    for name, (found, modes) in turns.results.items():
        own = CPFactors(torch.as_tensor(found), tuple(torch.as_tensor(u) for u in modes))
        errors[name] = own.rel_error(tensor)
    return turns, errors


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_cp_small(benchmark: Any, case: str, peer: str) -> None:
    turns, errors = measured(case)
    turns.row(benchmark, case, peer, "tensorly on numpy", rel_error=errors[peer])
