"""What a sweep of CP asks of torch: a small problem takes as long as its calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tensorlrf.decomposition.cp import _als as _cp_als
from tensorlrf.decomposition.cp._als import sweeps_of
from tensorlrf.decomposition.cp._start import random_start
from tensorlrf.decomposition.linalg.multilinear._mttkrp import CutTensor


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
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    """At most ten for each mode, casts of float32 included, and eight for the contractions of it
    with its neighbours; columns are not normalised in between. None where the tensor is small."""
    rng = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=rng, dtype=dtype)
    data, state = CutTensor.of(tensor), random_start(tensor, rank, 1, rng)

    def a_further_one() -> int:
        made = []
        for sweeps in (1, 2):
            with Calls() as calls:
                sweeps_of(data, state).run([1e-4] * sweeps)
            made.append(calls.made)
        return made[1] - made[0]

    assert a_further_one() == 0
    monkeypatch.setattr(_cp_als, "is_small", lambda *_: False)
    assert 0 < a_further_one() <= 18 * len(shape)


@pytest.mark.parametrize("starts", [1, 3])
@pytest.mark.parametrize("shape", [(7, 6, 5), (9, 8), (4, 3, 4, 3)])
def test_sweeps_together_are_sweeps_one_by_one(shape: tuple[int, ...], starts: int) -> None:
    rng = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=rng, dtype=torch.float64)
    data, state = CutTensor.of(tensor), random_start(tensor, 3, starts, rng)
    ridges = [1e-2, 1e-3, 1e-4, 1e-5]
    # The ridge bounds the condition of a system, by which columns of other lengths round otherwise.
    rounding = 4 * torch.finfo(torch.float64).eps * sum(1 / ridge for ridge in ridges)
    sweeps = sweeps_of(data, state, unit=8.0).run(ridges)
    together = sweeps.state()
    for ridge in ridges:
        last = sweeps_of(data, state).run([ridge])
        state = last.state()
    largest = float(state.weights.max())
    assert float((together.weights - state.weights).abs().max()) <= rounding * largest
    for ours, theirs in zip(together.factors, state.factors, strict=True):
        assert float((ours - theirs).abs().max()) <= rounding  # of columns of unit length
    further = sweeps.run([1e-5]).progress()
    assert all(now <= before + 1e-9 for now, before in zip(further, last.progress(), strict=True))
