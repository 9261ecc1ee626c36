"""Randomised CP on planted, noisy data: final error against converged ALS, and time to it.

`reference` is the best of five long runs of our own ALS on the same data. `worst_ratio` is the
worst final error of five seeds over that reference, and every error is a true residual. tensorly's
`randomised_parafac` runs beside with its defaults but for the sweeps; where its error stays above
1.01 of the reference its time says nothing and `reached` is False.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tensorlrf.decomposition.cp._cp import fit_cp
from tensorlrf.factors import CPFactors

SEEDS = range(5)
WITHIN = 1.01
CASES = {
    "200x200x200 r10": ((200, 200, 200), 10),
    "256x256x3x3 r64": ((256, 256, 3, 3), 64),
    "400x400x400 r20": ((400, 400, 400), 20),
}


@functools.lru_cache(maxsize=1)
def noisy(case: str, noise: float = 0.1) -> Tensor:
    """A planted Gaussian CP model and white noise of a tenth of its norm."""
    shape, rank = CASES[case]
    rng = torch.Generator().manual_seed(0)
    factors = tuple(torch.randn(n, rank, generator=rng) for n in shape)
    model = CPFactors(torch.ones(rank), factors).to_dense()
    white = torch.randn(shape, generator=rng)
    return model.add_(white, alpha=noise * float(model.norm() / white.norm()))


@functools.cache
def reference(case: str) -> float:
    """Converged ALS, best of five starts."""
    _, rank = CASES[case]
    return min(
        fit_cp(noisy(case), rank, n_iter_max=400, tol=1e-6, random_state=100 + seed).error
        for seed in range(5)
    )


def tensorly_randomised(tensor: Tensor, rank: int, sweeps: int, seed: int) -> CPFactors:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorly
        from tensorly.decomposition import randomised_parafac

        tensorly.set_backend("pytorch")
        samples = int(10 * rank * torch.tensor(float(rank)).log()) + 1
        found = randomised_parafac(
            tensor, rank, n_samples=samples, n_iter_max=sweeps, random_state=seed
        )
    return CPFactors(found.weights, tuple(found.factors))


@pytest.mark.parametrize("case", CASES)
def test_ours(benchmark: Any, case: str) -> None:
    tensor, (_, rank) = noisy(case), CASES[case]
    seeds = iter(SEEDS)
    errors = []

    def run() -> None:
        errors.append(fit_cp(tensor, rank, solver="cprand", random_state=next(seeds)).error)

    benchmark.group = f"randomised cp, {case}"
    benchmark.pedantic(run, rounds=len(SEEDS))
    goal = reference(case)
    benchmark.extra_info.update(
        case=case,
        peer="ours",
        rel_error=max(errors),
        reference=goal,
        worst_ratio=max(errors) / goal,
        reached=max(errors) <= WITHIN * goal,
    )


@pytest.mark.parametrize("case", CASES)
def test_our_als_to_the_same_error(benchmark: Any, case: str) -> None:
    """Plain ALS from random starts, one after another, until one is within 1.01 of the reference.

    A start is given up after a hundred sweeps or when it settles.
    """
    tensor, (_, rank) = noisy(case), CASES[case]
    goal = WITHIN * reference(case)
    rng = torch.Generator().manual_seed(0)
    best: list[float] = []

    def run() -> None:
        error, starts = 1.0, 0
        while error > goal and starts < 10:
            fit = fit_cp(
                tensor, rank, tol=1e-5, random_state=rng, callback=lambda _, now: now <= goal
            )
            error, starts = min(error, fit.error), starts + 1
        best.append(error)

    benchmark.group = f"randomised cp, {case}"
    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info.update(
        case=case,
        peer="ours, ALS to the same error",
        rel_error=max(best),
        worst_ratio=max(best) / reference(case),
        reached=max(best) <= goal,
    )


@pytest.mark.parametrize("case", CASES)
def test_tensorly(benchmark: Any, case: str) -> None:
    """The fewest sweeps, of 10, 20, 40, 80, with which one of three seeds gets within 1.01.

    Where none does, eighty sweeps of the best seed are timed and `reached` is False.
    """
    tensor, (_, rank) = noisy(case), CASES[case]
    goal = WITHIN * reference(case)
    for sweeps in (10, 20, 40, 80):
        found = [
            (tensorly_randomised(tensor, rank, sweeps, seed).rel_error(tensor), seed)
            for seed in range(3)
        ]
        error, seed = min(found)
        if error <= goal:
            break
    benchmark.group = f"randomised cp, {case}"
    benchmark.pedantic(tensorly_randomised, args=(tensor, rank, sweeps, seed), rounds=1)
    benchmark.extra_info.update(
        case=case,
        peer="tensorly",
        rel_error=error,
        sweeps=sweeps,
        worst_ratio=error / reference(case),
        reached=error <= goal,
    )
