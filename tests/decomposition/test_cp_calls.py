"""What a sweep of CP asks of torch: a small problem takes as long as its calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tensorlrf.decomposition._cp_als import als_sweeps
from tensorlrf.decomposition._cp_init import random_start
from tensorlrf.decomposition._mttkrp import CutTensor


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.made += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "rank"), [((12, 10, 8), 5), ((5, 201, 61), 3), ((96, 24), 6), ((4, 5, 6, 7), 3)]
)
def test_a_further_sweep_makes_few_calls(
    shape: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    """At most ten for each mode, casts of float32 included, and eight for the contractions of it
    with its neighbours; columns are not normalised in between."""
    rng = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=rng, dtype=dtype)
    data, state = CutTensor.of(tensor), random_start(tensor, rank, 1, rng)
    made = []
    for sweeps in (1, 2):
        with Calls() as calls:
            als_sweeps(data, state, [1e-4] * sweeps)
        made.append(calls.made)
    assert made[1] - made[0] <= 18 * len(shape)


@pytest.mark.parametrize("starts", [1, 3])
@pytest.mark.parametrize("shape", [(7, 6, 5), (9, 8), (4, 3, 4, 3)])
def test_sweeps_together_are_sweeps_one_by_one(shape: tuple[int, ...], starts: int) -> None:
    rng = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=rng, dtype=torch.float64)
    data, state = CutTensor.of(tensor), random_start(tensor, 3, starts, rng)
    ridges = [1e-2, 1e-3, 1e-4, 1e-5]
    # The ridge bounds the condition of a system, by which columns of other lengths round otherwise.
    rounding = 4 * torch.finfo(torch.float64).eps * sum(1 / ridge for ridge in ridges)
    together = als_sweeps(data, state, ridges, unit=8.0)
    for ridge in ridges:
        state = als_sweeps(data, state, [ridge], measure=True)
    measured = als_sweeps(data, together, [1e-5], unit=8.0, measure=True)
    largest = float(state.weights.max())
    assert float((together.weights - state.weights).abs().max()) <= rounding * largest
    for ours, theirs in zip(together.factors, state.factors, strict=True):
        assert float((ours - theirs).abs().max()) <= rounding  # of columns of unit length
    assert bool((measured.progress <= state.progress + 1e-9).all())
