"""What tests of non-negative and constrained models look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations

import torch
from torch import Tensor

from tensorlrf.decomposition import Fit
from tensorlrf.factors import CPFactors
from tests.draws import generator


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """In the unit cube, drawn in float64 and then cast."""
    draws = generator(seed)
    return torch.rand(shape, generator=draws, dtype=torch.float64, device="cpu").to(dtype)


def planted(shape: Sequence[int], rank: int, dtype: torch.dtype = torch.float64) -> CPFactors:
    """A non-negative model, a third of whose entries are zero."""
    factors = []
    for k, n in enumerate(shape):
        u = uniform(n, rank, seed=k)
        factors.append(u.where(uniform(n, rank, seed=90 + k) > 1 / 3, 0.0).to(dtype))
    return CPFactors(torch.ones(rank, dtype=dtype), tuple(factors))


def none_negative(fit: Fit[object]) -> bool:
    """Exactly, in every tensor of the factors."""
    return all(bool((t >= 0).all()) for t in fit.factors.tensors().values())  # type: ignore[attr-defined]  # any factors


def never_rises(errors: Sequence[float]) -> bool:
    """Before the last one, which is after the cast."""
    return all(b <= a for a, b in pairwise(errors[:-1]))


def congruence(found: CPFactors, truth: CPFactors) -> float:
    """The least cosine of matched columns, over the best order of the terms and all modes."""
    cosines = []
    for a, b in zip(found.factors, truth.factors, strict=True):
        a, b = (u / torch.linalg.vector_norm(u, dim=0).clamp_min(1e-30) for u in (a, b))
        cosines.append((a.T @ b).abs())
    r = found.rank
    return max(
        min(float(c[k, order[k]]) for c in cosines for k in range(r))
        for order in permutations(range(r))
    )


def stationary(factor: Tensor, gradient: Tensor) -> float:
    """How far a factor is from the conditions of Karush, Kuhn and Tucker for U >= 0: its gradient
    is zero where it is positive, and not negative where it is zero. In units of the gradient at
    zero, so that 1 is far."""
    return float((factor - (factor - gradient).clamp_min(0.0)).abs().max())


Property = Callable[[Tensor], bool]
