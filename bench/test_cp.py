"""CP by alternating least squares: time of fifty sweeps beside tensorly, from the same start.

Both run on torch tensors in float32, with the same random factors (tensorly's own kind of start,
uniform on [0, 1)), fifty sweeps and no stopping; `extra_info` holds the true relative error reached
by each. Read the two rows of a group together.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.cp._cp import fit_cp
from tensorlrf.factors import CPFactors

SWEEPS = 50
CASES = {
    "256x256x3x3 r32": ((256, 256, 3, 3), 32),
    "256x256x3x3 r128": ((256, 256, 3, 3), 128),
    "512x512x3x3 r256": ((512, 512, 3, 3), 256),
    "200x200x200 r16": ((200, 200, 200), 16),
}


def noisy(shape: tuple[int, ...], rank: int, noise: float = 1.0, seed: int = 0) -> Tensor:
    """A planted Gaussian CP model and white noise of the given relative norm.

    As in trained kernels, much of the norm is out of reach of the model, and runs from one start
    by different code end at one error; an exact tensor would compare paths through swamps.
    """
    rng = torch.Generator().manual_seed(seed)
    factors = tuple(torch.randn(n, rank, generator=rng) for n in shape)
    model = CPFactors(torch.ones(rank), factors).to_dense()
    white = torch.randn(shape, generator=rng)
    return model.add_(white, alpha=noise * float(model.norm() / white.norm()))


def uniform_start(shape: tuple[int, ...], rank: int, seed: int = 1) -> tuple[Tensor, list[Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return torch.ones(rank), [torch.rand(n, rank, generator=rng) for n in shape]


def tensorly_on_torch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorly
        import tensorly.decomposition

        tensorly.set_backend("pytorch")
    return tensorly


@pytest.mark.parametrize("peer", ["ours", "tensorly"])
@pytest.mark.parametrize("case", CASES)
def test_fifty_sweeps(benchmark: Any, case: str, peer: str) -> None:
    shape, rank = CASES[case]
    tensor = noisy(shape, min(rank, 64))
    weights, factors = uniform_start(shape, rank)

    def ours() -> CPFactors:
        start = (weights, [f.clone() for f in factors])
        return fit_cp(tensor, rank, init=start, n_iter_max=SWEEPS, tol=0).factors

    def theirs() -> CPFactors:
        start = (weights.clone(), [f.clone() for f in factors])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = tensorly.decomposition.parafac(
                tensor, rank, init=start, n_iter_max=SWEEPS, tol=0
            )
        return CPFactors(found.weights, tuple(found.factors))

    tensorly = tensorly_on_torch() if peer == "tensorly" else None
    run = ours if peer == "ours" else theirs
    benchmark.group = f"cp, 50 sweeps, {case}"
    rounds = 7 if peer == "ours" else 2
    result = benchmark.pedantic(run, rounds=rounds, warmup_rounds=int(peer == "ours"))
    benchmark.extra_info.update(case=case, peer=peer, rel_error=result.rel_error(tensor))


@pytest.mark.parametrize("peer", ["ours", "tensorly"])
def test_svd_start(benchmark: Any, peer: str) -> None:
    """The start alone at 200 x 200 x 200, rank 16, and the error after one sweep from it."""
    from tensorlrf.decomposition.cp._start import svd_start

    case = "svd start, 200x200x200 r16"
    shape, rank = CASES["200x200x200 r16"]
    tensor = noisy(shape, rank)
    tensorly = tensorly_on_torch() if peer == "tensorly" else None

    def ours() -> tuple[Tensor, list[Tensor]]:
        state = svd_start(tensor, rank, 1, torch.Generator().manual_seed(0))
        return torch.ones(rank), [u[:, 0] for u in state.factors]

    def theirs() -> tuple[Tensor, list[Tensor]]:
        from tensorly.decomposition._cp import initialize_cp

        found = initialize_cp(tensor, rank, init="svd", random_state=0)
        return found.weights, list(found.factors)

    del tensorly
    benchmark.group = f"cp, {case}"
    start = benchmark.pedantic(ours if peer == "ours" else theirs, rounds=3, warmup_rounds=1)
    error = fit_cp(tensor, rank, init=start, n_iter_max=1, tol=0).error
    benchmark.extra_info.update(case=case, peer=peer, rel_error=error)
